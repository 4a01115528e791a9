"""Several captions of an image: which one the others agree with, and how much they differ."""

import itertools

import numpy as np
import pytest
from datasets import Dataset

from modeling_cnnrnn import CnnRnnEnsemble, CnnRnnEnsembleProcessor
from modeling_cnnrnn.data.batching import CaptionDataset
from modeling_cnnrnn.evaluation.arguments import EvaluationArguments, GenerationArguments, SearchArguments
from modeling_cnnrnn.evaluation.captioners import load_captioner, title_of
from modeling_cnnrnn.evaluation.captions import evaluate_captioner
from modeling_cnnrnn.evaluation.consensus import rank_by_consensus
from modeling_cnnrnn.evaluation.image_captions import caption_images
from modeling_cnnrnn.evaluation.results import score_evaluation
from modeling_cnnrnn.metrics import CiderD, DocumentFrequency, set_diversity
from modeling_cnnrnn.training.features import compute_image_features


DOGS = ["a dog runs on grass", "a brown dog runs on green grass", "two men sit", "a dog runs on the grass"]


def test_the_caption_that_the_others_agree_with_comes_first():
    table = DocumentFrequency.from_references([["a dog runs", "a dog sits"], ["a man sits"], ["two men sit"]])
    (order,) = rank_by_consensus([DOGS], table)
    means = [
        np.mean([CiderD(table).score([caption], [[other]])[0] for other in DOGS if other != caption])
        for caption in DOGS
    ]
    assert order == sorted(range(4), key=lambda place: -means[place])
    assert rank_by_consensus([DOGS, ["alone"], ["same", "same"]]) == [order, [0], [0, 1]]
    assert order[-1] == 2


def test_equal_captions_have_no_diversity_and_disjoint_ones_have_all():
    same, other = ["a dog runs on grass"] * 3, ["a dog runs fast", "two men sit down", "red cars drive by"]
    diversity = set_diversity([same, same])
    assert diversity["self-cider"] == pytest.approx(0, abs=1e-6)
    assert diversity["mbleu-4"] == pytest.approx(1, abs=1e-6)
    assert diversity["set-distinct-1"] == pytest.approx(5 / 15)
    assert diversity["set-distinct-2"] == pytest.approx(4 / 15)
    diversity = set_diversity([other, other])
    assert diversity["self-cider"] == pytest.approx(1)
    assert diversity["mbleu-4"] == pytest.approx(0, abs=1e-3)
    assert diversity["set-distinct-1"] == 1
    assert set_diversity([same, other])["self-cider"] == pytest.approx(0.5, abs=1e-6)


def test_self_cider_of_two_captions_is_that_of_their_cosine():
    # of one image every n-gram weighs the same; eigenvalues of two captions are 1 + cosine and 1 - cosine
    first, second = "a dog runs on grass", "a dog runs on sand"
    cosine = (4 / 5 + 3 / 4 + 2 / 3 + 1 / 2) / 4
    roots = np.sqrt([1 + cosine, 1 - cosine])
    assert set_diversity([[first, second]])["self-cider"] == pytest.approx(-np.log2(roots[0] / roots.sum()))


@pytest.mark.parametrize("captions", [[["one"]], [["a", "b"], ["a", "b", "c"]], []])
def test_captions_without_others_have_no_diversity(captions):
    with pytest.raises(ValueError, match="pass the same number for all, two or more"):
        set_diversity(captions)


# --- Options -----------------------------------------------------------------------------------------------------------


def test_options_become_arguments_of_generate(tiny_tokenizer):
    search = SearchArguments(
        num_return_sequences=2,
        consensus=6,
        num_beam_groups=3,
        diversity_penalty=0.7,
        force_words=["red circle", "dog|square"],
        finish_sentences=True,
    )
    options = search.search_kwargs(3, tiny_tokenizer)
    ids = tiny_tokenizer.get_vocab()
    assert options.pop("bad_ending_ids") == sorted([ids[word]] for word in ("a", "of"))
    assert options == {
        "num_return_sequences": 6,
        "num_beams": 6,
        "num_beam_groups": 3,
        "diversity_penalty": 0.7,
        "force_words_ids": [[[ids["red"], ids["circle"]]], [[ids["dog"]], [ids["square"]]]],
    }
    sampling = GenerationArguments(do_sample=True, temperature=0.5, no_repeat_ngram_size=2)
    assert sampling.generate_kwargs(tiny_tokenizer) == {
        "num_return_sequences": 1,
        "do_sample": True,
        "temperature": 0.5,
        "top_p": 1.0,
        "top_k": 0,
        "no_repeat_ngram_size": 2,
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"force_words": ["xyzzy"]}, "`force_words` names 'xyzzy', which the captioner has no words for"),
        ({"force_words": ["dog|"]}, "`force_words` names '', which the captioner has no words for"),
        ({"num_return_sequences": 0}, "`num_return_sequences` is 0: pass a positive number"),
        ({"consensus": -1}, "`consensus` is -1: pass a positive number"),
    ],
    ids=str,
)
def test_options_that_mean_nothing_are_refused(tiny_tokenizer, options, message):
    with pytest.raises(ValueError, match=message):
        SearchArguments(**options).search_kwargs(3, tiny_tokenizer)


def test_images_get_the_caption_of_the_consensus(model, tiny_processor, pictures, tmp_path):
    pictures[0]["image"].save(tmp_path / "0.png")
    options = {"num_beams": 6, "num_return_sequences": 6}
    (found,) = caption_images(model, tiny_processor, [str(tmp_path / "0.png")], **options)
    (ranked,) = caption_images(model, tiny_processor, [str(tmp_path / "0.png")], 16, None, 2, True, **options)
    order = rank_by_consensus([found.captions])[0]
    assert ranked.captions == [found.captions[place] for place in order[:2]]


def test_an_evaluation_counts_the_first_caption_and_measures_all(model, tiny_processor, pictures):
    rows: Dataset = pictures.select(range(4))
    args = EvaluationArguments("shapes", model_name_or_path="", num_beams=[5])
    search = SearchArguments(num_return_sequences=5, consensus=5)
    plain = SearchArguments(num_return_sequences=5)
    ways = [*args.generation(search, tiny_processor.tokenizer), *args.generation(plain, tiny_processor.tokenizer)]
    dataset = CaptionDataset(rows, tiny_processor, 5)
    evaluation = evaluate_captioner(model, dataset, generation=ways, with_loss=False)
    by_consensus, by_probability = evaluation.captions
    for ranked, found in zip(by_consensus, by_probability, strict=True):
        assert found.caption == found.all_captions[0]
        order = rank_by_consensus([found.all_captions])[0]
        assert ranked.all_captions == [found.all_captions[place] for place in order]
        assert ranked.caption == ranked.all_captions[0]
        assert found.log_probability >= ranked.log_probability or len(found.words) != len(ranked.words)
    contents = [result.content for result in score_evaluation(evaluation, rows["captions"][:], ["bleu"])]
    expected = set_diversity([caption.all_captions for caption in by_probability])
    assert contents[1] | expected == contents[1]


# --- Ensembles ---------------------------------------------------------------------------------------------------------


def test_captioners_with_commas_between_them_are_an_ensemble(model, tiny_processor, pictures, tmp_path):
    places = [str(tmp_path / name) for name in ("first", "second")]
    for place in places:
        model.save_pretrained(place)
        tiny_processor.save_pretrained(place)
    ensemble, processor = load_captioner(",".join(places))
    assert isinstance(ensemble, CnnRnnEnsemble)
    ensemble.save_pretrained(tmp_path / "both")
    processor.save_pretrained(tmp_path / "both")
    sentences = []
    for place in (places[0], ",".join(places), str(tmp_path / "both")):
        captioner, its_processor = load_captioner(place)
        inputs = its_processor(images=pictures["image"][:2], return_tensors="pt")
        sentences.append(captioner.generate(**inputs, num_beams=2).tolist())
    assert sentences[0] == sentences[1] == sentences[2]
    assert title_of(",".join(places)) == "first + second"
    assert isinstance(load_captioner(str(tmp_path / "both"))[1], CnnRnnEnsembleProcessor)
    with pytest.raises(ValueError, match="`model` is a CnnRnnEnsemble: stored features are of one CNN alone"):
        compute_image_features(ensemble, processor, pictures, tmp_path)


def test_an_ensemble_is_evaluated_as_a_captioner(model, tiny_processor, pictures):
    ensemble, processor = CnnRnnEnsemble.from_captioners([model]), CnnRnnEnsembleProcessor([tiny_processor])
    found = [
        evaluate_captioner(m, CaptionDataset(pictures.select(range(4)), p, 5), with_attention=True)
        for m, p in ((model, tiny_processor), (ensemble, processor))
    ]
    assert found[0].loss == pytest.approx(found[1].loss, rel=1e-5)
    for one, other in itertools.zip_longest(found[0].captions[0], found[1].captions[0]):
        assert one.caption == other.caption
        assert one.log_probability == pytest.approx(other.log_probability, rel=1e-4)
