"""Muon: orthogonal updates of convolutions, and SGD for the rest."""

import torch
from torch.testing import assert_close

from modeling_cnnrnn.training.muon import Muon, orthogonalize


def test_an_update_keeps_its_singular_vectors_and_loses_its_singular_values():
    for shape in ((6, 40), (40, 6)):
        u, s, vh = torch.linalg.svd(torch.randn(shape), full_matrices=False)
        result = orthogonalize(u * s @ vh, steps=5)
        diagonal = u.T @ result @ vh.T
        assert (diagonal.diagonal() - 1).abs().max() < 0.4  # the iteration oscillates around 1
        assert (diagonal - diagonal.diagonal().diag()).abs().max() < 0.05


def test_a_convolution_keeps_the_norm_of_its_weights():
    weight = torch.nn.Parameter(torch.randn(8, 3, 3, 3))
    weight.grad = torch.randn_like(weight)
    optimizer = Muon([{"params": [weight]}], lr=0.0)
    optimizer.step()
    assert_close(weight.norm(), torch.tensor(8.0).sqrt())


def test_a_step_goes_against_the_orthogonal_momentum():
    weight = torch.nn.Parameter(torch.randn(4, 2, 3, 3))
    optimizer = Muon([{"params": [weight]}], lr=0.1, momentum=0.5)
    momentum = torch.zeros(4, 18)
    for _ in range(3):
        weight.grad = torch.randn_like(weight)
        gradient = weight.grad.flatten(1)
        momentum = 0.5 * momentum + gradient
        expected = weight.detach() * 2 / weight.detach().norm()
        expected -= 0.1 * orthogonalize(gradient + 0.5 * momentum).view_as(weight)
        optimizer.step()
        assert_close(weight.detach(), expected)


def test_the_rest_is_trained_as_torch_trains_it():
    weights = [torch.nn.Parameter(torch.ones(5, 3)) for _ in range(2)]
    options = {"momentum": 0.85, "weight_decay": 0.01}
    ours = Muon([{"params": [weights[0]], "lr": 0.1, "orthogonalized": False, **options}])
    theirs = torch.optim.SGD([weights[1]], 0.1, nesterov=True, **options)
    for _ in range(4):
        weights[0].grad = torch.randn(5, 3)
        weights[1].grad = weights[0].grad.clone()
        ours.step()
        theirs.step()
    assert_close(*weights)
