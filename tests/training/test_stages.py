"""The stages of a captioner's training."""

import pytest

from modeling_cnnrnn.training.stages import Stages, scheduled_sampling_probability, switch_step


def test_stages_follow_each_other():
    stages = Stages(encoder_step=2, self_critical_step=4)
    assert [str(stages.at(step)) for step in (1, 2, 4)] == [
        "cross-entropy, frozen CNN",
        "cross-entropy",
        "self-critical",
    ]
    assert str(Stages(None, 0).at(0)) == "self-critical, frozen CNN"
    assert switch_step("self_critical", 1.5, None, 10) == 15
    assert switch_step("self_critical", None, 0, 10) == 0
    with pytest.raises(ValueError, match="self_critical_after_epochs"):
        switch_step("self_critical", -1, None, 10)


def test_scheduled_sampling_grows_from_its_start_to_its_maximum():
    values = [scheduled_sampling_probability(epoch, 2, 0.05, 0.25) for epoch in (0, 2, 3.5, 7, 50)]
    assert values == pytest.approx([0, 0, 0.075, 0.25, 0.25])
