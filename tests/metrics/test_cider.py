"""CIDEr-D against a plain Python reference, written from the paper and coco-caption's constants."""

import math
import random
from collections import Counter

import numpy as np
import pytest

from modeling_cnnrnn.metrics import CiderD, DocumentFrequency, cut_after_eos
from modeling_cnnrnn.metrics.bleu import bleu
from modeling_cnnrnn.metrics.cider import cider
from modeling_cnnrnn.metrics.ngrams import Numbering, PairedCaptions, _sort, count_ngrams, encode
from modeling_cnnrnn.metrics.rouge import rouge_l


def plain_ngrams(words):
    return Counter(tuple(words[i : i + n]) for n in range(1, 5) for i in range(len(words) - n + 1))


def plain_document_frequency(references):
    return Counter(ngram for captions in references for ngram in {g for words in captions for g in plain_ngrams(words)})


def plain_cider_d(prediction, references, document_frequency, num_images):
    def vector(words):
        weights = [{} for _ in range(4)]
        for ngram, count in plain_ngrams(words).items():
            idf = math.log(num_images) - math.log(max(1, document_frequency[ngram]))
            weights[len(ngram) - 1][ngram] = count * idf
        return weights, [math.sqrt(sum(w * w for w in part.values())) for part in weights]

    score = 0.0
    predicted, predicted_norms = vector(prediction)
    for reference in references:
        referred, referred_norms = vector(reference)
        difference = max(len(prediction) - 1, 0) - max(len(reference) - 1, 0)
        for n in range(4):
            product = sum(min(w, referred[n].get(g, 0)) * referred[n].get(g, 0) for g, w in predicted[n].items())
            norms = predicted_norms[n] * referred_norms[n]
            score += (product / norms if norms else 0) * math.exp(-(difference**2) / (2 * 6.0**2)) / 4
    return 10 * score / len(references)


def plain_longest_common_subsequence(a, b):
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


def random_ids(rng, num_images, vocab_size=12):
    def caption():
        # the ids spread, small and large, so that no packing of a few bits holds them
        return [rng.randrange(vocab_size) ** 5 * 7919 % (2**31 - 1) for _ in range(rng.randint(0, 9))]

    references = [[caption() for _ in range(rng.randint(1, 5))] for _ in range(num_images)]
    return [caption() for _ in references], references


def as_strings(captions):
    return [" ".join(f"w{word}" for word in caption) for caption in captions]


def test_corpus_cider_equals_the_plain_reference():
    predictions, references = random_ids(random.Random(0), 60)
    frequency = plain_document_frequency(references)
    expected = [plain_cider_d(*pair, frequency, 60) for pair in zip(predictions, references, strict=True)]
    pairs = PairedCaptions.from_captions(as_strings(predictions), [as_strings(captions) for captions in references])
    score, per_image = cider(pairs)
    np.testing.assert_allclose(per_image, expected, rtol=0, atol=1e-12)
    assert score == pytest.approx(np.mean(expected), abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_rewards_equal_the_plain_reference(seed):
    rng = random.Random(seed)
    training = random_ids(rng, 80)[1]
    samples, references = random_ids(rng, 20)
    frequency = plain_document_frequency(training)
    expected = [plain_cider_d(*pair, frequency, 80) for pair in zip(samples, references, strict=True)]
    rewards = CiderD(DocumentFrequency.from_references(training)).score(samples, references)
    np.testing.assert_allclose(rewards, expected, rtol=0, atol=1e-12)


def test_rewards_do_not_depend_on_the_batch():
    rng = random.Random(1)
    cider_d = CiderD(DocumentFrequency.from_references(random_ids(rng, 50)[1]))
    samples, references = random_ids(rng, 10)
    alone = [cider_d.score([sample], [captions])[0] for sample, captions in zip(samples, references, strict=True)]
    np.testing.assert_allclose(cider_d.score(samples, references), alone, rtol=0, atol=1e-12)


def test_samples_of_one_image_share_its_references():
    rng = random.Random(2)
    training = random_ids(rng, 30)[1]
    samples = random_ids(rng, 30)[0]
    cider_d = CiderD(DocumentFrequency.from_references(training), dict(zip("abcdefghij", training, strict=False)))
    apart = cider_d.score(samples, [captions for captions in training[:10] for _ in range(3)])
    np.testing.assert_allclose(cider_d.score(samples, training[:10]), apart, rtol=0, atol=1e-12)
    np.testing.assert_allclose(cider_d.score(samples, image_ids="abcdefghij"), apart, rtol=0, atol=1e-12)


def test_strings_score_as_their_ids():
    rng = random.Random(3)
    training = random_ids(rng, 40)[1]
    samples, references = random_ids(rng, 10, vocab_size=20)  # with words that the table does not know
    by_id = CiderD(DocumentFrequency.from_references(training)).score(samples, references)
    table = DocumentFrequency.from_references([as_strings(captions) for captions in training])
    words = {image: as_strings(captions) for image, captions in enumerate(references)}
    by_word = CiderD(table, words).score(as_strings(samples), image_ids=list(words))
    np.testing.assert_allclose(by_word, by_id, rtol=0, atol=1e-12)


@pytest.mark.parametrize("strings", [False, True])
def test_saved_table_scores_as_before(tmp_path, strings):
    rng = random.Random(4)
    samples, references = random_ids(rng, 30)
    if strings:
        samples, references = as_strings(samples), [as_strings(captions) for captions in references]
    table = DocumentFrequency.from_references(references)
    table.save(tmp_path / "document_frequency.safetensors")
    loaded = DocumentFrequency.load(tmp_path / "document_frequency.safetensors")
    assert (CiderD(loaded).score(samples, references) == CiderD(table).score(samples, references)).all()


def test_end_token_is_a_word_of_the_reward():
    references = [[[1, 2, 3, 0]], [[4, 5, 0]], [[6, 0]]]
    cider_d = CiderD(DocumentFrequency.from_references(references))
    whole, broken_off = cider_d.score([[1, 2, 3, 0], [1, 2, 3]], references[:1])
    assert whole > broken_off


def test_sequences_are_cut_after_the_first_end_token():
    cut = cut_after_eos(np.array([[5, 2, 9, 2], [5, 6, 7, 8], [2, 0, 0, 0]]), eos_token_id=2)
    assert [ids.tolist() for ids in cut] == [[5, 2], [5, 6, 7, 8], [2]]


def test_wide_names_sort_as_narrow_ones():
    rng = np.random.default_rng(0)
    names, places = rng.integers(0, 50, 1000), np.arange(1000)
    expected = np.argsort(names, kind="stable")
    for limit in (50, 2**20, 2**62):  # by radix, packed in one integer, by index
        sorted_names, sorted_places = _sort(names, places, limit)
        assert (sorted_places == expected).all()
        assert (sorted_names == names[expected]).all()


def test_ngrams_are_counted_exactly():
    captions = [["a", "b", "a", "b", "a"], ["b"], [], ["a", "b", "c", "a", "b"]]
    numbering = Numbering()
    encoded = encode([" ".join(words) for words in captions], numbering)
    names = {number: word for word, number in numbering.items()}
    counted, previous = Counter(), [()]
    for ngrams in count_ngrams(encoded):
        previous = [(*previous[p], names[w]) for p, w in zip(ngrams.prefix, ngrams.last_word, strict=True)]
        for ngram, caption, number in zip(ngrams.ngram, ngrams.caption, ngrams.count, strict=True):
            counted[caption, previous[ngram]] += number
    assert counted == {(i, g): n for i, words in enumerate(captions) for g, n in plain_ngrams(words).items()}


def test_rouge_equals_the_plain_reference():
    predictions, references = random_ids(random.Random(5), 50)
    predictions, references = as_strings(predictions), [as_strings(captions) for captions in references]
    _, scores = rouge_l(predictions, references)
    for score, prediction, captions in zip(scores, predictions, references, strict=True):
        words, others = prediction.split(" "), [caption.split(" ") for caption in captions]
        common = [plain_longest_common_subsequence(words, other) for other in others]
        precision = max(common) / len(words)
        recall = max(c / len(other) for c, other in zip(common, others, strict=True))
        f = (1 + 1.2**2) * precision * recall / (recall + 1.2**2 * precision) if precision else 0
        assert score == pytest.approx(f, abs=1e-12)


def test_bleu_takes_the_closest_reference_length_and_the_shorter_on_a_tie():
    pairs = PairedCaptions.from_captions(["a b c d"], [["a b c d e f", "a b", "x y z x y z x"]])
    corpus, per_image = bleu(pairs)
    assert corpus[0] == pytest.approx(1.0)  # no brevity penalty: length 2 is as close as length 6
    assert per_image[:, 0] == pytest.approx(corpus)


def test_clipped_counts_take_the_most_of_one_reference():
    corpus, _ = bleu(PairedCaptions.from_captions(["the the the"], [["the cat the", "a the b"]]))
    assert corpus[0] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("samples", "references", "error", "message"),
    [
        ([[1], [2], [3]], [[[1]], [[2]]], ValueError, "3 samples for 2 images"),
        ([[1]], [[]], ValueError, "has no references"),
        (["a"], [["a"]], TypeError, "does not fit 'a'"),
        ([[1.5]], [[[1]]], TypeError, "integer token ids"),
        ([[-1]], [[[1]]], ValueError, "must be in"),
        ([[1]], None, ValueError, "either `references` or `image_ids`"),
    ],
)
def test_what_cannot_be_scored_is_refused(samples, references, error, message):
    cider_d = CiderD(DocumentFrequency.from_references([[[1, 2]], [[2, 3]]]))
    with pytest.raises(error, match=message):
        cider_d.score(samples, references)
