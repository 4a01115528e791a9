"""The moving average of the weights."""

import pytest
import torch

from modeling_cnnrnn.training.averaging import AveragedWeights


def test_averaged_weights_are_in_the_model_only_within_their_context(captioner):
    weight, norm = captioner.lm_head.weight, captioner.get_encoder().cnn.embedder.embedder.normalization
    averaged = AveragedWeights(captioner, 0.5)
    start = weight.detach().clone()
    with torch.no_grad():
        weight += 1
        norm.running_mean += 1
    learned = weight.detach().clone()
    averaged.update()  # the first step keeps min(decay, 2 / 11) of the average
    with averaged.applied():
        assert torch.allclose(weight, start + 9 / 11)
        assert torch.allclose(norm.running_mean, torch.tensor(9 / 11))
    assert torch.equal(weight, learned)
    again = AveragedWeights(captioner, 0.5)
    again.load_state_dict(averaged.state_dict())
    assert all(map(torch.equal, again.averages, averaged.averages))
    assert again.num_updates == 1


def test_trained_weights_stay_in_their_average(captioner):
    weight = captioner.lm_head.weight
    averaged = AveragedWeights(captioner, 0.9, warmup=False)
    start = weight.detach().clone()
    with torch.no_grad():
        weight += 1
    averaged.update()
    with averaged.applied():
        assert torch.allclose(weight, start + 0.1)


def test_training_goes_on_from_adopted_weights(captioner):
    weight = captioner.lm_head.weight
    averaged = AveragedWeights(captioner, 0.9, warmup=False)
    start = weight.detach().clone()
    with torch.no_grad():
        weight += 1
    averaged.update()
    averaged.adopt()
    assert torch.allclose(weight, start + 0.1)


def test_without_a_decay_there_is_no_average(captioner):
    weight = captioner.lm_head.weight
    averaged = AveragedWeights(captioner, 0)
    with torch.no_grad():
        weight += 1
    trained = weight.detach().clone()
    averaged.update()
    with averaged.applied():
        assert torch.equal(weight, trained)
    averaged.adopt()
    assert torch.equal(weight, trained)
    AveragedWeights(captioner, 0).load_state_dict(averaged.state_dict())


def test_an_average_is_not_resumed_without_one(captioner):
    saved = AveragedWeights(captioner, 0.9).state_dict()
    with pytest.raises(ValueError, match="resume with the model and the `ema_decay` of the checkpoint"):
        AveragedWeights(captioner, 0).load_state_dict(saved)
