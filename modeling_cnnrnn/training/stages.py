"""The stages of a training: what is learned, by which weights, at which step."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """
    A part of a training.

    Attributes:
        encoder_learns: whether the CNN is finetuned.
        self_critical: whether the model learns from the scores of its own sentences, not from written ones.
    """

    encoder_learns: bool
    self_critical: bool

    def __str__(self) -> str:
        return ("self-critical" if self.self_critical else "cross-entropy") + (
            "" if self.encoder_learns else ", frozen CNN"
        )


@dataclass(frozen=True)
class Stages:
    """
    Which step belongs to which stage. It depends on the step alone, so that a training that was stopped goes on in its
    stage.

    Args:
        encoder_step: the first step that the CNN learns in; `None` if it stays frozen.
        self_critical_step: the first step of self-critical training; `None` if there is none.
    """

    encoder_step: int | None
    self_critical_step: int | None

    def at(self, step: int) -> Stage:
        return Stage(
            self.encoder_step is not None and step >= self.encoder_step,
            self.self_critical_step is not None and step >= self.self_critical_step,
        )


def switch_step(name: str, after_epochs: float | None, after_steps: int | None, steps_per_epoch: int) -> int | None:
    """
    The first step of a stage from `{name}_after_epochs` or `{name}_after_steps`; `None` if neither is given.

    Raises:
        ValueError: both are given, or a negative number.
    """
    if after_epochs is not None and after_steps is not None:
        raise ValueError(f"Pass either `{name}_after_epochs` or `{name}_after_steps`, and not both.")
    step = after_steps if after_epochs is None else round(after_epochs * steps_per_epoch)
    if step is not None and step < 0:
        raise ValueError(f"`{name}_after_epochs` or `{name}_after_steps` is negative: pass 0 or more.")
    return step


def scheduled_sampling_probability(epoch: float, start: float, increase: float, maximum: float) -> float:
    """
    The share of input words that are drawn from the model (Bengio et al., https://arxiv.org/abs/1506.03099).

    It is 0 up to the epoch `start`, and grows from there by `increase` with each epoch up to `maximum`.
    """
    return min(max(0.0, epoch - start) * increase, maximum)
