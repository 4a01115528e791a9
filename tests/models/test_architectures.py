"""The captioners of the papers: their options, regions that are padding, and all laws that only some tests hold for them."""

import itertools

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from support import hub_user
from support.local_hub import LocalHub
from support.repositories import fork_jobs
from support.tiny_models import FAMILY, encoded
from torch.testing import assert_close
from transformers import GenerationMixin

from modeling_cnnrnn import (
    CnnRnnConfig,
    CnnRnnForConditionalGeneration,
    CnnRnnProcessor,
    ImageToTextPipeline,
)
from modeling_cnnrnn.models.architectures_cnnrnn import ARCHITECTURES
from modeling_cnnrnn.models.generation_cnnrnn import CnnRnnGenerationMixin


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_architecture_is_the_configuration_of_its_options(tiny_encoder_config, name):
    sizes = {"hidden_size": 12, "embedding_size": 12, "attention_size": 10, "vocab_size": 20}
    config = CnnRnnConfig.from_architecture(name, encoder=tiny_encoder_config.to_dict(), **sizes)
    assert {key: getattr(config, key) for key in ARCHITECTURES[name]} == ARCHITECTURES[name]
    if name == "adaptive":  # it adds its state to the regions
        assert config.hidden_size == (config.region_size or config.embedding_size)


def test_options_win_over_the_architecture_and_unknown_ones_are_refused():
    assert CnnRnnConfig.from_architecture("show_attend_tell", deep_output="tanh").deep_output == "tanh"
    with pytest.raises(ValueError, match="`architecture` is 'transformer': pass one of dvsa, "):
        CnnRnnConfig.from_architecture("transformer")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_injection": "none"}, "both 'none'"),
        ({"image_projection": True}, "`image_projection` is `True`"),
        ({"region_size": 13}, "`region_size` is 13"),
        ({"region_size": 0, "image_injection": "initial_state"}, "`region_size` is 0"),
        ({"attention_type": "att2in", "rnn_type": "gru"}, "`rnn_type` is 'gru'"),
        ({"attention_type": "adaptive", "rnn_type": "rnn_relu"}, "`rnn_type` is 'rnn_relu'"),
        ({"attention_type": "adaptive_mlp", "num_hidden_layers": 2}, "`num_hidden_layers` is 2"),
        ({"attention_type": "up_down"}, "`num_hidden_layers` is 1"),
        ({"attention_type": "adaptive", "attention_activation": "relu"}, "`attention_activation` is 'relu'"),
        ({"attention_type": "adaptive", "hidden_size": 20}, "`region_size` is 512"),
        ({"attention_type": "adaptive", "deep_output": "tanh"}, "`deep_output` is 'tanh'"),
        ({"deep_output": "tanh", "tie_word_embeddings": True, "hidden_size": 20}, None),
    ],
)
def test_parts_that_do_not_fit_are_refused(options, message):
    if message is None:
        assert CnnRnnConfig(**options).output_size == CnnRnnConfig(**options).embedding_size
        return
    with pytest.raises(StrictDataclassClassValidationError, match=message):
        CnnRnnConfig(**options)


def test_raw_features_make_regions_of_their_size(make_model, pixel_values, labels, tmp_path):
    options = {"feature_projection": "none", "attention_type": "additive", "image_injection": "initial_state"}
    model = make_model(**options)
    assert model.config.region_size == 16
    assert model.get_encoder()(pixel_values).last_hidden_state.shape == (3, 16, 16)
    model.save_pretrained(tmp_path)
    loaded = CnnRnnForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(loaded(pixel_values, labels=labels).loss, model(pixel_values, labels=labels).loss)
    with pytest.raises(ValueError, match="`region_size` is 15 but regions have 16 features"):
        make_model(region_size=15, **options)


# --- Regions that are padding ----------------------------------------------------------------------------------------


@pytest.fixture
def features() -> tuple[torch.Tensor, torch.Tensor]:
    """Features of 6, 2 and 4 regions, filled up with what is no number, and their mask."""
    features = torch.randn(3, 6, 16, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(6) < torch.tensor([6, 2, 4])[:, None]
    return features.masked_fill(~mask[..., None], torch.nan), mask


MASKED = {"none": {}, "additive": {"attention_type": "additive"}, **FAMILY}


@torch.no_grad()
@pytest.mark.parametrize("name", MASKED)
def test_masked_regions_get_no_weight(make_model, features, labels, name):
    model, (features, mask) = make_model(**MASKED[name]), features
    inputs = {"image_features": features, "image_features_mask": mask}
    words = model.prepare_decoder_input_ids_from_labels(labels)
    outputs = model(**inputs, decoder_input_ids=words, output_attentions=True)
    for index, (image, is_region) in enumerate(zip(features, mask, strict=True)):
        alone = model(image_features=image[is_region][None], decoder_input_ids=words[index : index + 1])
        assert_close(outputs.logits[index], alone.logits[0], rtol=1e-4, atol=1e-4)
    if outputs.cross_attentions:
        weights = outputs.cross_attentions[0][:, 0]
        assert (weights.transpose(1, 2)[~mask] == 0).all()


@pytest.mark.parametrize("name", MASKED)
def test_sentences_and_losses_are_those_of_the_regions_alone(make_model, features, monkeypatch, name):
    model, (features, mask) = make_model(**MASKED[name]), features
    model.lm_head.bias.data[2] += 2
    inputs, labels = {"image_features": features, "image_features_mask": mask}, torch.full((3, 4), 7)
    fast, make = [], CnnRnnGenerationMixin._fast_writer
    monkeypatch.setattr(
        CnnRnnGenerationMixin, "_fast_writer", lambda *args: fast.append(make(*args) is not None) or make(*args)
    )
    for num_beams in (1, 3):
        sentences = model.generate(**inputs, num_beams=num_beams, max_new_tokens=5)
        for sentence, image, is_region in zip(sentences, features, mask, strict=True):
            (alone,) = model.generate(image_features=image[is_region][None], num_beams=num_beams, max_new_tokens=5)
            assert sentence[: len(alone)].tolist() == alone.tolist()
    assert all(fast)
    loss = model.train()(**inputs, labels=labels).loss
    losses = [
        model(image_features=image[is_region][None], labels=labels[:1]).loss
        for image, is_region in zip(features, mask, strict=True)
    ]
    assert_close(loss, torch.stack(losses).mean(), rtol=1e-4, atol=1e-4)
    loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    ("shape", "mask", "message"),
    [
        ((3, 0, 16), None, "at least one region"),
        ((3, 4, 15), None, r"pass \(batch_size, num_regions, 16\)"),
        ((3, 16), None, r"`image_features` has shape \(3, 16\)"),
        ((3, 4, 16), torch.ones(3, 5), r"`image_features_mask` has shape \(3, 5\)"),
        ((3, 4, 16), torch.tensor([[1] * 4, [0] * 4, [1] * 4]), "leaves image 1 of the batch without a region"),
    ],
)
def test_features_that_describe_no_image_are_refused(make_model, shape, mask, message):
    model = make_model(attention_type="additive")
    with pytest.raises(ValueError, match=message):
        model.generate(image_features=torch.randn(shape), image_features_mask=mask)


def test_a_missing_image_as_a_whole_is_refused(make_model, regions):
    model = make_model(**FAMILY["adaptive"])
    with pytest.raises(ValueError, match="`encoder_outputs` has no `pooler_output`"):
        model.generate(encoder_outputs=(regions,))


# --- What is slow, for each of them ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILY)
def test_ten_images_are_learned_by_heart(make_model, name):
    sizes = {"hidden_size": 32, "embedding_size": 32} if name == "adaptive" else {"hidden_size": 32}
    model = make_model(**(FAMILY[name] | sizes | {"initializer_range": 0.1})).train()
    pixel_values, labels = torch.randn(10, 3, 32, 32), torch.randint(4, 20, (10, 6))
    labels[:, -1] = 2
    labels[:5, 3:] = torch.tensor([2, 0, 0])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(400):
        loss = model(pixel_values, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.02
    model.get_encoder().cnn.train()  # statistics of this one batch, as learned
    model.model.decoder.eval()
    assert torch.equal(model.generate(pixel_values, max_new_tokens=6)[:, 1:], labels)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("name", FAMILY)
def test_beam_search_finds_the_best_of_all_sentences(make_model, pixel_values, monkeypatch, name):
    monkeypatch.setattr(  # more beams than words
        CnnRnnForConditionalGeneration, "_validate_generation_mode", GenerationMixin._validate_generation_mode
    )
    model = make_model(**FAMILY[name], vocab_size=5, unk_token_id=None)
    options = {"num_beams": 64, "num_return_sequences": 10, "max_new_tokens": 4, "early_stopping": "never"}
    outputs = model.generate(
        pixel_values, suppress_tokens=None, output_scores=True, return_dict_in_generate=True, **options
    )
    words = [0, 1, 3, 4]
    sentences = [(*body, 2) for n in range(4) for body in itertools.product(words, repeat=n)]
    sentences += list(itertools.product(words, repeat=4))
    padded = torch.tensor([(1, *sentence, *[0] * (4 - len(sentence))) for sentence in sentences])
    lengths = torch.tensor([len(sentence) for sentence in sentences])
    is_word = torch.arange(4) < lengths[:, None]
    found, scores = outputs.sequences.unflatten(0, (3, 10)), outputs.sequences_scores.unflatten(0, (3, 10))
    for image, best, best_scores in zip(pixel_values, found, scores, strict=True):
        logits = model(image.expand(len(sentences), -1, -1, -1), decoder_input_ids=padded[:, :-1]).logits
        log_probs = logits.log_softmax(dim=-1).gather(2, padded[:, 1:, None]).squeeze(-1)
        expected = ((log_probs * is_word).sum(dim=1) / lengths).topk(10)
        assert_close(best_scores, expected.values, rtol=1e-4, atol=1e-4)
        assert best[0].tolist() == padded[expected.indices[0], : best.shape[1]].tolist()


@pytest.mark.slow
def test_each_is_a_whole_repository_as_remote_code(make_model, tiny_processor: CnnRnnProcessor, tmp_path):
    jobs, expected = {}, {}
    for name, options in FAMILY.items():
        model = make_model(**options)
        for part in (model, tiny_processor):
            part.save_pretrained(tmp_path / name)
        jobs[name] = ["piped", {"task": None, "repository": str(tmp_path / name), "trust_remote_code": True}]
        pipe = ImageToTextPipeline(model, processor=tiny_processor, device="cpu")
        expected[name] = ["transformers_modules", pipe(hub_user.picture())]
    with LocalHub(tmp_path / "hub") as hub:  # for a process of its own, without this package
        assert fork_jobs(hub, tmp_path, jobs) == expected


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize(
    ("rnn_type", "attention_type", "image_injection", "deep_output"),
    [
        options
        for options in itertools.product(
            ["lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_maxout", "lstm_linear_output"],
            ["none", "additive", "att2in", "adaptive", "adaptive_mlp", "up_down"],
            ["first_token", "initial_state", "bias_first_step", "bias_every_step", "none"],
            ["none", "tanh"],
        )
        if (options[1] != "none" or options[2] != "none")
        and (options[0].startswith("lstm") or options[1] not in ("att2in", "adaptive", "adaptive_mlp"))
        and (options[3] == "none" or options[1] in ("none", "additive", "att2in"))
    ],
)
def test_any_combination_decodes_alike_in_every_way(
    make_model, regions, monkeypatch, rnn_type, attention_type, image_injection, deep_output
):
    """Cached as uncached, packed as plain, trained by gathered as by plain steps."""
    model = make_model(
        rnn_type=rnn_type,
        attention_type=attention_type,
        image_injection=image_injection,
        deep_output=deep_output,
        hidden_size=12,
        image_projection=attention_type != "none",
        num_hidden_layers={"none": 2, "up_down": 2}.get(attention_type, 1),
    )
    model.lm_head.bias[2] += 2
    words = torch.randint(4, 20, (3, 6))
    expected = model(encoder_outputs=encoded(regions), decoder_input_ids=words).logits
    cache, steps = None, []
    for chunk in words.split([1, 2, 3], dim=1):
        outputs = model(encoder_outputs=encoded(regions), decoder_input_ids=chunk, past_key_values=cache)
        cache = outputs.past_key_values
        steps.append(outputs.logits)
    assert_close(torch.cat(steps, dim=1), expected, rtol=1e-4, atol=1e-4)
    options = {"encoder_outputs": encoded(regions), "num_beams": 3, "max_new_tokens": 6}
    fast = model.generate(**options)
    with monkeypatch.context() as patch:
        patch.setattr(CnnRnnGenerationMixin, "_fast_writer", lambda *args: None)
        assert torch.equal(fast, model.generate(**options))
    labels = torch.randint(4, 20, (3, 5))
    with torch.enable_grad():
        losses = [
            model.train()(encoder_outputs=encoded(regions), labels=labels, skip_logits=skip).loss for skip in (0, 1)
        ]
    assert_close(*losses, rtol=1e-4, atol=1e-4)
