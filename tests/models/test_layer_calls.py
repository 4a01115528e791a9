"""Every layer in the module tree is called by calling it, so hooks, wrappers, quantization, LoRA and export see what runs."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from support.tiny_models import changed, encoded, snapshot
from torch import nn
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from modeling_cnnrnn import CnnRnnCache, CnnRnnForConditionalGeneration


def layers_of(model: CnnRnnForConditionalGeneration) -> dict[str, nn.Module]:
    """All modules with parameters of their own, but those of the CNN."""
    return {
        name: module
        for name, module in model.named_modules()
        if any(True for _ in module.parameters(recurse=False)) and ".cnn." not in name
    }


class Enlarged(nn.Module):
    """A layer whose output is ten times that of another."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, *args):
        output = self.layer(*args)
        return (10 * output[0], output[1]) if isinstance(output, tuple) else 10 * output


def replace(model: nn.Module, name: str, layer: nn.Module):
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, layer)


# --- Hooks and wrappers ----------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("run", ["generate", "evaluate"])
def test_every_layer_is_called(any_model, pixel_values, labels, run):
    calls = set()
    for name, layer in layers_of(any_model).items():
        layer.register_forward_hook(lambda *_, name=name: calls.add(name))
    if run == "generate":
        any_model.generate(pixel_values, max_new_tokens=3)
    else:
        any_model(pixel_values, labels=labels)
    assert calls == set(layers_of(any_model))


@torch.no_grad()
def test_a_layer_that_is_replaced_changes_the_words(any_model, pixel_values):
    words = torch.tensor([[1, 4, 9, 13]]).expand(3, -1)
    logits = any_model(pixel_values, decoder_input_ids=words).logits
    for name in layers_of(any_model):
        model = copy.deepcopy(any_model)
        replace(model, name, Enlarged(model.get_submodule(name)))
        assert not torch.allclose(model(pixel_values, decoder_input_ids=words).logits, logits, atol=1e-5), name


def test_hooks_and_wrappers_see_training_steps_too(make_model, decoder_options, pixel_values, labels):
    expected = make_model(**decoder_options).train()(pixel_values, labels=labels).loss
    for name in layers_of(make_model(**decoder_options)):
        model, calls = make_model(**decoder_options).train(), []
        model.get_submodule(name).register_forward_hook(lambda *_, calls=calls: calls.append(1))
        assert_close(model(pixel_values, labels=labels).loss, expected)
        assert calls, name

        model = make_model(**decoder_options).train()
        replace(model, name, Enlarged(model.get_submodule(name)))
        loss = model(pixel_values, labels=labels).loss
        loss.backward()
        assert not torch.allclose(loss, expected, atol=1e-5), name


def test_a_head_that_is_more_than_linear_is_trained(tiny_model, pixel_values, labels):
    tiny_model.lm_head = nn.Sequential(tiny_model.lm_head, nn.Tanh())  # its output is needed again in the backward pass
    losses = [tiny_model.train()(pixel_values, labels=labels, skip_logits=skip).loss for skip in (True, False)]
    assert_close(*losses)
    losses[0].backward()
    assert tiny_model.lm_head[0].weight.grad.any()


def test_flops_are_counted_by_layer(make_model, regions, labels):
    model = make_model(attention_type="additive", image_injection="initial_state").train()
    with FlopCounterMode(display=False) as counter:
        model(encoder_outputs=encoded(regions), labels=labels)
    counts = {name: sum(flops.values()) for name, flops in counter.get_flop_counts().items()}
    steps = 3 * labels.shape[1]
    name = "CnnRnnForConditionalGeneration.model.decoder.attention"
    assert counts[f"{name}.query"] == 2 * steps * 14 * 10
    assert counts[f"{name}.key"] == 2 * regions.shape[0] * regions.shape[1] * 12 * 10


# --- Quantization ----------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("modules", [{nn.Linear}, None], ids=["linear", "default"])
def test_a_quantized_model_writes_almost_the_same(any_model, pixel_values, modules):
    quantized = torch.ao.quantization.quantize_dynamic(any_model, modules)
    linear = {name for name, module in layers_of(any_model).items() if type(module) is nn.Linear}
    for name in linear:
        assert "quantized" in type(quantized.get_submodule(name)).__module__, name
    words = torch.tensor([[1, 4, 9, 13]]).expand(3, -1)
    expected = any_model(pixel_values, decoder_input_ids=words).logits
    logits = quantized(pixel_values, decoder_input_ids=words).logits
    assert not torch.equal(logits, expected)
    assert (logits - expected).abs().mean() < 0.1 * expected.std()
    for num_beams in (1, 3):
        assert quantized.generate(pixel_values, max_new_tokens=4, num_beams=num_beams).shape[0] == 3


# --- LoRA ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention_type", ["none", "additive"])
def test_lora_trains_the_layers_of_the_decoder(make_model, pixel_values, labels, attention_type):
    targets = ["projection", "initial_state", "lm_head", "embed_tokens"]
    if attention_type == "additive":
        targets += ["query", "key", "gate"]
    model = make_model(attention_type=attention_type, image_injection="initial_state")
    words = torch.tensor([[1, 4, 9, 13]]).expand(3, -1)
    with torch.no_grad():
        expected = model(pixel_values, decoder_input_ids=words).logits
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=targets))
    with torch.no_grad():
        assert torch.equal(adapted(pixel_values=pixel_values, decoder_input_ids=words).logits, expected)

    before = snapshot(adapted)
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=0.5)
    for _ in range(3):  # the first step trains B alone, because B starts at 0
        optimizer.zero_grad()
        adapted.train()(pixel_values=pixel_values, labels=labels).loss.backward()
        optimizer.step()
    adapters = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert len(adapters) == 2 * len(targets)
    frozen_statistics = {name for name in before if "running" in name or "num_batches" in name}
    assert changed(before, adapted) - frozen_statistics == adapters

    adapted.eval()
    sentences = adapted.generate(pixel_values=pixel_values, max_new_tokens=5)
    with torch.no_grad():
        logits = adapted(pixel_values=pixel_values, decoder_input_ids=words).logits
        assert not torch.allclose(logits, expected, atol=1e-3)
        merged = adapted.merge_and_unload()
        assert type(merged) is CnnRnnForConditionalGeneration
        assert_close(merged(pixel_values, decoder_input_ids=words).logits, logits, rtol=1e-4, atol=1e-4)
    assert torch.equal(merged.generate(pixel_values, max_new_tokens=5), sentences)


# --- Export ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("attention_type", ["none", "additive"])
def test_the_encoder_is_exported(make_model, pixel_values, attention_type):
    encoder = make_model(attention_type=attention_type).get_encoder()
    batch = torch.export.Dim("batch", min=2)
    exported = torch.export.export(encoder, (pixel_values,), dynamic_shapes={"pixel_values": {0: batch}})
    for images in (pixel_values, pixel_values[:2]):
        expected = encoder(images).last_hidden_state
        assert_close(exported.module()(images).last_hidden_state, expected)


class Step(nn.Module):
    """One step of the decoder, with its state as tensors: a word in, the scores of the next word out."""

    def __init__(self, model: CnnRnnForConditionalGeneration):
        super().__init__()
        self.decoder, self.lm_head = model.model.decoder, model.lm_head

    def forward(self, words: torch.Tensor, regions: torch.Tensor, state: list[torch.Tensor] | None):
        cache = CnnRnnCache()
        if state is not None:
            cache.update(tuple(state), 1)
        image = regions.mean(dim=1)
        outputs = self.decoder(
            words, encoder_hidden_states=regions, past_key_values=cache, use_cache=True, image_embeds=image
        )
        return self.lm_head(outputs.last_hidden_state[:, -1]), list(outputs.past_key_values.state)


def check_export(step: Step, words: torch.Tensor, regions: torch.Tensor, state: list[torch.Tensor] | None):
    """Export with any number of images; the program computes the same for three and for two of them."""
    batch = torch.export.Dim("batch", min=2)
    shapes = {"words": {0: batch}, "regions": {0: batch}, "state": state and [{1: batch}] * len(state)}
    exported = torch.export.export(step, (words, regions, state), dynamic_shapes=shapes).module()
    for count in (3, 2):
        inputs = words[:count], regions[:count], state and [s[:, :count].contiguous() for s in state]
        assert_close(exported(*inputs), step(*inputs))


@pytest.mark.slow
@torch.no_grad()
def test_a_step_of_every_decoder_is_exported(any_model, regions):
    step = Step(any_model)
    _, state = step(torch.tensor([[1], [1], [1]]), regions, None)
    check_export(step, torch.tensor([[4], [9], [13]]), regions, state)


@torch.no_grad()
@pytest.mark.parametrize("attention_type", ["none", "additive"])
@pytest.mark.parametrize("image_injection", ["first_token", "initial_state", "bias_first_step"])
def test_the_first_step_is_exported(make_model, regions, attention_type, image_injection):
    model = make_model(attention_type=attention_type, image_injection=image_injection)
    check_export(Step(model), torch.tensor([[1], [1], [1]]), regions, None)
