"""The stages of a captioner's training: which weights are trained, on what, at which step."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """
    A part of a training.

    Attributes:
        trains_encoder: whether the CNN is trained too.
        self_critical: whether the model is trained on the scores of its own sentences, not on reference captions.
    """

    trains_encoder: bool
    self_critical: bool

    def __str__(self) -> str:
        return ("self-critical" if self.self_critical else "cross-entropy") + (
            "" if self.trains_encoder else ", frozen CNN"
        )


@dataclass(frozen=True)
class Stages:
    """
    The stage of each step. It depends on the step alone, so that a training resumes in the stage it was stopped in.

    Args:
        encoder_step: first step that trains the CNN; `None` if it stays frozen.
        self_critical_step: first step of self-critical training; `None` if there is none.
    """

    encoder_step: int | None
    self_critical_step: int | None

    def at(self, step: int) -> Stage:
        """Return the stage of a step."""
        return Stage(
            self.encoder_step is not None and step >= self.encoder_step,
            self.self_critical_step is not None and step >= self.self_critical_step,
        )


def switch_step(name: str, after_epochs: float | None, after_steps: int | None, steps_per_epoch: int) -> int | None:
    """
    Compute the first step of a stage from `{name}_after_epochs` or `{name}_after_steps`; `None` if neither is given.

    Raises:
        ValueError: both are given, or the number is negative.
    """
    if after_epochs is not None and after_steps is not None:
        raise ValueError(f"Pass either `{name}_after_epochs` or `{name}_after_steps`, and not both.")
    step = after_steps if after_epochs is None else round(after_epochs * steps_per_epoch)
    if step is not None and step < 0:
        raise ValueError(f"`{name}_after_epochs` or `{name}_after_steps` is negative: pass 0 or more.")
    return step


def scheduled_sampling_probability(epoch: float, start: float, increase: float, maximum: float) -> float:
    """
    Compute the probability that an input word is drawn from the model (Bengio et al., https://arxiv.org/abs/1506.03099).

    It is 0 up to the epoch `start`, and rises from there by `increase` per epoch up to `maximum`.
    """
    return min(max(0.0, epoch - start) * increase, maximum)
