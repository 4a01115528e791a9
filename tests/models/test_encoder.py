"""The encoder: any CNN, its features, freezing, and gradient checkpointing."""

import warnings

import pytest
import torch
from support.tiny_models import TINY_CNNS, changed, snapshot, train_a_little
from torch import nn
from torch.testing import assert_close
from transformers import ConvNextConfig, set_seed

from modeling_cnnrnn import CnnRnnForConditionalGeneration


@torch.no_grad()
def test_the_encoder_embeds_the_regions_or_their_mean(make_model, pixel_values):
    for attention_type, pool in (("additive", lambda f: f), ("none", lambda f: f.mean(dim=1, keepdim=True))):
        encoder = make_model(attention_type=attention_type).get_encoder()
        features = encoder.cnn(pixel_values).last_hidden_state.flatten(2).transpose(1, 2)
        assert_close(encoder(pixel_values).last_hidden_state, encoder.projection(pool(features)))


@torch.no_grad()
@pytest.mark.parametrize("attention_type", ["none", "additive"])
@pytest.mark.parametrize("cnn", list(TINY_CNNS))
def test_any_cnn_of_transformers_can_see(make_model, pixel_values, labels, tmp_path, cnn, attention_type):
    model = make_model(encoder=TINY_CNNS[cnn].to_dict(), attention_type=attention_type)
    outputs = model(pixel_values, labels=labels, output_hidden_states=True)
    assert outputs.loss.isfinite()
    assert outputs.encoder_hidden_states is not None
    model.save_pretrained(tmp_path)
    loaded = CnnRnnForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(loaded(pixel_values, labels=labels).logits, outputs.logits)
    assert torch.equal(loaded.generate(pixel_values), model.generate(pixel_values))


@torch.no_grad()
def test_a_cnn_of_timm_can_see(make_model, pixel_values, labels):
    try:
        import timm  # noqa: F401
    except Exception as error:  # a torchvision that does not fit its torch raises RuntimeError
        pytest.skip(f"timm cannot be imported: {error}")
    model = make_model(encoder={"model_type": "timm_wrapper", "architecture": "test_resnet"})
    assert model(pixel_values, labels=labels).loss.isfinite()


@torch.no_grad()
@pytest.mark.parametrize(("layer", "index"), [(-1, -1), (-2, 1), (0, 0), (2, 2)])
def test_vision_feature_layer_chooses_what_is_looked_at(make_model, pixel_values, layer, index):
    model = make_model(vision_feature_layer=layer, attention_type="additive")
    encoder = model.get_encoder()
    expected = encoder.cnn(pixel_values, output_hidden_states=True).hidden_states[index]
    features, _ = encoder.get_image_features(pixel_values)
    assert torch.equal(features, expected.flatten(2).transpose(1, 2))
    assert encoder(pixel_values).last_hidden_state.shape == (3, expected[0, 0].numel(), 12)


def test_captions_of_an_image_share_one_pass_of_the_cnn(any_model, pixel_values):
    batches = []
    any_model.get_encoder().cnn.register_forward_pre_hook(lambda _, args: batches.append(len(args[0])))
    any_model(pixel_values, labels=torch.full((3, 5, 6), 4))
    assert batches == [3]


def test_a_frozen_cnn_does_not_move_by_a_bit(tiny_model, pixel_values, labels):
    cnn = tiny_model.get_encoder().cnn
    tiny_model.freeze_encoder()
    before, projection = snapshot(cnn), snapshot(tiny_model.get_encoder().projection)
    train_a_little(tiny_model, pixel_values, labels)
    assert changed(before, cnn) == set()
    assert changed(projection, tiny_model.get_encoder().projection) == {"weight", "bias"}


def test_a_cnn_from_scratch_learns_its_statistics(tiny_model, pixel_values, labels):
    cnn = tiny_model.get_encoder().cnn
    before = snapshot(cnn)
    train_a_little(tiny_model, pixel_values, labels)
    assert changed(before, cnn) == set(before)


def test_a_finetuned_cnn_keeps_its_batch_norm(tiny_model, pixel_values, labels):
    cnn = tiny_model.get_encoder().cnn
    tiny_model.freeze_encoder()
    tiny_model.train()
    tiny_model.unfreeze_encoder()
    before = snapshot(cnn)
    train_a_little(tiny_model, pixel_values, labels)
    moved = changed(before, cnn)
    assert moved == {name for name in before if "normalization" not in name}
    assert any("convolution" in name for name in moved)


def test_a_frozen_cnn_gives_the_same_loss_in_training_and_evaluation(tiny_model, pixel_values, labels):
    tiny_model.freeze_encoder()
    losses = [tiny_model.train(mode)(pixel_values, labels=labels, skip_logits=False).loss for mode in (True, False)]
    assert torch.equal(*losses)


def test_a_frozen_cnn_drops_no_path(make_model, pixel_values):
    encoder = ConvNextConfig(num_stages=2, hidden_sizes=[8, 16], depths=[1, 2], drop_path_rate=0.5)
    model = make_model(encoder=encoder.to_dict())
    model.train()
    model.freeze_encoder()
    features = [model.get_encoder().get_image_features(pixel_values)[0] for _ in range(8)]
    assert all(torch.equal(f, features[0]) for f in features)


def test_a_frozen_cnn_keeps_no_activations(tiny_model, pixel_values):
    encoder = tiny_model.train().get_encoder()
    assert encoder.get_image_features(pixel_values)[0].requires_grad
    tiny_model.freeze_encoder()
    assert not encoder.get_image_features(pixel_values)[0].requires_grad
    assert encoder(pixel_values).last_hidden_state.requires_grad  # the projection learns


def test_pixels_have_a_gradient_through_a_frozen_cnn(tiny_model, pixel_values, labels):
    tiny_model.freeze_encoder()
    tiny_model(pixel_values.requires_grad_(), labels=labels).loss.backward()  # what the sentence depends on
    assert pixel_values.grad.any()


def checkpoint_activations(model: CnnRnnForConditionalGeneration, *args):
    """`gradient_checkpointing_enable` has another name in the newest releases, and warns there."""
    with warnings.catch_warnings(action="ignore", category=FutureWarning):
        getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)(*args)


def count_runs(model: CnnRnnForConditionalGeneration) -> list[int]:
    """A list that grows by one each time the first block of the CNN is run."""
    block = next(m for m in model.get_encoder().cnn.modules() if isinstance(m, nn.ModuleList))[0]
    convolution = next(m for m in block.modules() if isinstance(m, nn.Conv2d))
    runs: list[int] = []
    convolution.register_forward_hook(lambda *_: runs.append(1))
    return runs


@pytest.mark.parametrize("reentrant", [False, True], ids=["non_reentrant", "reentrant"])
@pytest.mark.parametrize("cnn", ["resnet", "convnext", "efficientnet", "mobilenet_v2", "bit"])
def test_gradient_checkpointing_changes_only_the_memory(make_model, pixel_values, labels, cnn, reentrant):
    def step(checkpointing):
        model = make_model(encoder=TINY_CNNS[cnn].to_dict()).train()
        if checkpointing:
            checkpoint_activations(model, {"use_reentrant": reentrant})
        runs = count_runs(model)
        set_seed(0)  # some CNNs drop whole paths
        loss = model(pixel_values, labels=labels).loss
        loss.backward()
        return loss, {name: p.grad for name, p in model.named_parameters()}, snapshot(model), len(runs)

    loss, gradients, state, runs = step(checkpointing=False)
    checkpointed_loss, checkpointed_gradients, checkpointed_state, checkpointed_runs = step(checkpointing=True)
    assert torch.equal(loss, checkpointed_loss)
    assert_close(checkpointed_gradients, gradients)
    assert_close(checkpointed_state, state, rtol=0, atol=0)  # the statistics of BatchNorm among them
    assert (runs, checkpointed_runs) == (1, 2)


def test_gradient_checkpointing_can_be_switched_off(tiny_model, pixel_values, labels):
    checkpoint_activations(tiny_model.train())
    with warnings.catch_warnings(action="ignore", category=FutureWarning):
        tiny_model.gradient_checkpointing_disable()
    runs = count_runs(tiny_model)
    tiny_model(pixel_values, labels=labels).loss.backward()
    assert len(runs) == 1


def test_gradient_checkpointing_leaves_the_cnn_as_it_was(tiny_model, pixel_values, labels):
    checkpoint_activations(tiny_model.train())
    tiny_model(pixel_values, labels=labels).loss.backward()
    cnn = tiny_model.get_encoder().cnn
    assert all("forward" not in vars(module) for module in cnn.modules())
    norms = [module for module in cnn.modules() if isinstance(module, nn.BatchNorm2d)]
    assert {(norm.momentum, int(norm.num_batches_tracked)) for norm in norms} == {(0.1, 1)}


def test_gradient_checkpointing_of_a_frozen_cnn_computes_it_once(tiny_model, pixel_values, labels):
    checkpoint_activations(tiny_model.train())
    tiny_model.freeze_encoder()
    runs = count_runs(tiny_model)
    tiny_model(pixel_values, labels=labels).loss.backward()
    assert len(runs) == 1


def test_gradient_checkpointing_goes_by_its_old_name_too(tiny_model, pixel_values, labels):
    with warnings.catch_warnings(action="ignore", category=FutureWarning):
        tiny_model.train().gradient_checkpointing_enable()
    runs = count_runs(tiny_model)
    tiny_model(pixel_values, labels=labels).loss.backward()
    assert len(runs) == 2


def test_a_captioner_without_a_cnn_reads_features_from_outside(make_config, tmp_path):
    CnnRnnForConditionalGeneration(make_config(feature_size=20)).save_pretrained(tmp_path)
    model = CnnRnnForConditionalGeneration.from_pretrained(tmp_path)
    assert model.config.encoder is None
    assert not any(".cnn." in name for name in model.state_dict())
    model.train().eval()
    assert model.generate(image_features=torch.randn(2, 3, 20), max_length=5).shape[0] == 2
    for call in (model.generate, model.get_encoder().get_image_features):
        with pytest.raises(ValueError, match=r"pass `image_features`.*20"):
            call(pixel_values=torch.zeros(1, 3, 32, 32))
    with pytest.raises(ValueError, match=r"pass `image_features`.*20"):
        model.get_encoder().cell_centers(32, 32)


def test_features_from_outside_may_reach_attention_as_they_are(make_config):
    config = make_config(feature_size=20, feature_projection="none", attention_type="att2in", image_injection="none")
    model = CnnRnnForConditionalGeneration(config).to(torch.bfloat16).eval()
    regions = model.get_encoder()(image_features=torch.ones(1, 3, 20)).last_hidden_state
    assert regions.dtype == torch.bfloat16
    assert model.generate(image_features=torch.randn(2, 3, 20), max_length=5).shape[0] == 2


def test_the_feature_map_is_averaged_to_a_grid_of_any_size(make_model, pixel_values):
    model = make_model(attention_type="additive")
    plain = model.get_encoder().compute_feature_map(pixel_values)[0]  # (B, 16, 4, 4)
    model.config.feature_map_size = 6
    regions, _ = model.get_encoder().get_image_features(pixel_values)
    grid = regions.transpose(1, 2).unflatten(2, (6, 6))
    assert_close(grid[..., 1, 1], plain[..., 0:2, 0:2].mean(dim=(2, 3)))  # cell 1 of 6 covers 4/6 to 8/6
    assert_close(grid[..., 5, 0], plain[..., 3, 0])
