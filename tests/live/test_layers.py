"""A look inside a network: what it finds, and that it leaves no trace."""

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from modeling_cnnrnn.live.layers import look_inside
from modeling_cnnrnn.live.pictures import draw_filters, draw_maps


def decoded(sheet: dict) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(sheet["image"].partition(",")[2]))))


@pytest.fixture
def cnn() -> nn.Module:
    """A CNN with what a look might move: statistics, dropout, a part that is frozen in evaluation mode, gradients."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(0.5)
    )
    model.append(nn.Linear(4 * 3 * 3, 2))
    model.train()
    model[1].eval()
    model(torch.randn(5, 3, 8, 8)).sum().backward()
    return model


def look(model: nn.Module, pixel_values: torch.Tensor) -> list[dict]:
    return look_inside(model, lambda: nn.functional.cross_entropy(model(pixel_values), torch.tensor([1])))


def test_a_look_leaves_no_trace(cnn):
    before = {name: tensor.clone() for name, tensor in cnn.state_dict().items()}
    gradients = [parameter.grad.clone() for parameter in cnn.parameters()]
    random = torch.get_rng_state()
    look(cnn, torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    assert all(torch.equal(before[name], tensor) for name, tensor in cnn.state_dict().items())
    assert all(torch.equal(x, y.grad) for x, y in zip(gradients, cnn.parameters(), strict=True))
    assert [module.training for module in cnn] == [True, False, True, True, True, True, True]
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(module._forward_hooks for module in cnn.modules())


def test_layers_are_those_that_compute_with_their_sizes_and_values(cnn):
    pixel_values = torch.randn(1, 3, 8, 8)
    layers = look(cnn, pixel_values)
    assert [layer["kind"] for layer in layers] == ["Conv2d", "BatchNorm2d", "ReLU", "MaxPool2d", "Linear"]
    assert [layer["size"] for layer in layers] == ["6 x 6 x 4", "6 x 6 x 4", "6 x 6 x 4", "3 x 3 x 4", "2"]
    assert [layer["parameters"] for layer in layers] == [112, 8, 0, 0, 74]
    cnn.eval()
    values = cnn[0](pixel_values)
    assert layers[0]["activations"]["max"] == pytest.approx(values.max().item())
    logits = cnn(pixel_values)
    assert layers[-1]["activations"]["min"] == pytest.approx(logits.min().item())
    difference = logits.softmax(-1) - torch.tensor([[0.0, 1.0]])  # the gradient of the cross-entropy
    assert layers[-1]["gradients"]["min"] == pytest.approx(difference.min().item())


def test_what_is_frozen_is_shown_without_gradients(cnn):
    cnn[0].requires_grad_(False)
    layers = look(cnn, torch.randn(1, 3, 8, 8))
    assert "gradients" not in layers[0]
    assert "filter_gradients" not in layers[0]
    assert "gradients" in layers[-1]


def test_a_cell_that_is_called_for_each_word_has_a_row_for_each():
    cell = nn.LSTMCell(3, 5)
    model = nn.ModuleList([cell])

    def compute_loss():
        state = None
        for _ in range(4):
            state = cell(torch.randn(1, 3), state)
        return state[0].sum()

    (layer,) = look_inside(model, compute_loss)
    assert layer["size"] == "4 x 5"
    assert decoded(layer["activations"]).shape == (4, 5)


def test_filters_of_colors_are_drawn_in_color():
    weight = torch.full((2, 3, 2, 2), -1.0)
    weight[1, 0] = 1.0
    picture = decoded(draw_filters(weight))
    assert picture.shape == (2, 5, 3)
    assert picture[0, 0].tolist() == [0, 0, 0]
    assert picture[0, 2].tolist() == [255, 255, 255]  # the line between them
    assert picture[1, 3].tolist() == [255, 0, 0]


def test_large_maps_are_shrunk_and_many_are_cut():
    sheet = draw_maps(torch.randn(1, 100, 64, 32))
    assert decoded(sheet).shape == (2 * 33 - 1, 32 * 17 - 1)
    constant = draw_maps(torch.full((1, 2, 3, 3), 7.0))
    assert (constant["min"], constant["max"]) == (7.0, 7.0)


def test_a_map_that_is_not_finite_is_drawn_all_the_same():
    assert "image" in draw_maps(torch.tensor([[float("nan"), 1.0]]))
