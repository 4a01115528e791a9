"""Parameter groups, the layers of a CNN, learning-rate schedules."""

import pytest
import torch

from modeling_cnnrnn.training.optimization import (
    decay_groups,
    encoder_layers,
    in_groups,
    parameter_groups,
    two_stage_scheduler,
    unfreeze_encoder_layers,
)


def test_the_cnn_learns_at_its_own_rate_and_vectors_do_not_decay(captioner):
    groups = parameter_groups(captioner, 1e-3, 1e-5, weight_decay=0.1)
    by_parameter = {id(p): group for group in groups for p in group["params"]}
    for name, parameter in captioner.named_parameters():
        group = by_parameter[id(parameter)]
        assert group["lr"] == (1e-5 if ".cnn." in name else 1e-3)
        assert group["weight_decay"] == (0.1 if parameter.ndim > 1 else 0.0)


def test_frozen_weights_are_not_in_the_optimiser(captioner):
    captioner.freeze_encoder()
    trained = {id(p) for group in parameter_groups(captioner, 1e-3) for p in group["params"]}
    assert not trained & {id(p) for p in captioner.get_encoder().cnn.parameters()}


def test_the_layers_of_a_cnn_hold_each_weight_once_from_the_stem_on(captioner):
    cnn = captioner.get_encoder().cnn
    names = {id(parameter): name for name, parameter in cnn.named_parameters()}
    layers = [{names[id(parameter)] for parameter in layer} for layer in encoder_layers(captioner)]
    assert [len({name.split(".")[0] for name in layer}) for layer in layers] == [1, 1, 1]
    assert all(name.startswith("embedder.") for name in layers[0])
    assert all(name.startswith("encoder.stages.1.") for name in layers[2])
    assert sum(map(len, layers)) == len(names)


def test_a_cnn_is_finetuned_from_a_layer_on_without_its_norms(captioner):
    captioner.freeze_encoder()
    unfreeze_encoder_layers(captioner, -1)
    learning = {name for name, p in captioner.get_encoder().cnn.named_parameters() if p.requires_grad}
    assert learning
    assert all(name.startswith("encoder.stages.1.") and "normalization" not in name for name in learning)
    captioner.train()
    assert not any(m.training for m in captioner.modules() if isinstance(m, torch.nn.BatchNorm2d))
    with pytest.raises(ValueError, match="from -3 to 2"):
        unfreeze_encoder_layers(captioner, 3)


def test_the_rate_of_the_cnn_falls_from_layer_to_layer(captioner):
    groups = parameter_groups(captioner, 1e-3, 1e-4, encoder_layer_decay=0.5)
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    for depth, layer in enumerate(encoder_layers(captioner)):
        assert {rates[id(p)] for p in layer} == {1e-4 * 0.5 ** (2 - depth)}
    assert rates[id(captioner.lm_head.weight)] == 1e-3
    assert {group["name"]: group["lr"] for group in groups} == {"encoder": 1e-4, "decoder": 1e-3}


def test_each_stage_has_the_schedule_with_its_warmup():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    scheduler = two_stage_scheduler("linear", optimizer, 0.25, 12, second_stage_step=8, second_stage_factor=0.1)
    rates = []
    for _ in range(12):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    first = [0, 1, 2, 2 * 5 / 6, 2 * 4 / 6, 1, 2 / 3, 1 / 3]
    assert rates == pytest.approx([*first, 0, 0.2, 0.2 * 2 / 3, 0.2 / 3])


def test_groups_hold_all_items():
    assert list(in_groups(range(5), 2)) == [[0, 1], [2, 3], [4]]


def test_matrices_alone_decay(captioner):
    captioner.freeze_encoder()
    matrices, vectors = decay_groups(captioner, 0.1)
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.1, 0.0)
    trained = {id(parameter) for parameter in captioner.parameters() if parameter.requires_grad}
    assert {id(p) for group in (matrices, vectors) for p in group["params"]} == trained
    assert all(p.ndim > 1 for p in matrices["params"])
    assert all(p.ndim == 1 for p in vectors["params"])
