"""The moving average of the weights."""

import pytest
import torch

from modeling_cnnrnn.training.averaging import AveragedWeights


def test_averaged_weights_are_in_the_model_only_within_their_context(captioner, tmp_path):
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
    averaged.save(tmp_path / "average.safetensors")
    again.load(tmp_path / "average.safetensors")
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


def test_without_a_decay_there_is_no_average(captioner, tmp_path):
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
    averaged.save(tmp_path / "average.safetensors")
    AveragedWeights(captioner, 0).load(tmp_path / "average.safetensors")
    assert not list(tmp_path.iterdir())


def test_an_average_is_not_resumed_without_one(captioner, tmp_path):
    path = tmp_path / "average.safetensors"
    with pytest.raises(ValueError, match=r"no average, and `ema_decay` is 0\.9: resume with the one it had"):
        AveragedWeights(captioner, 0.9).load(path)
    AveragedWeights(captioner, 0.9).save(path)
    with pytest.raises(ValueError, match=r"an average of the weights, and `ema_decay` is 0: resume"):
        AveragedWeights(captioner, 0).load(path)


def test_the_average_of_another_model_is_refused(captioner, tmp_path):
    path = tmp_path / "average.safetensors"
    AveragedWeights(captioner.lm_head, 0.9).save(path)
    with pytest.raises(ValueError, match="the average of another model"):
        AveragedWeights(captioner, 0.9).load(path)
