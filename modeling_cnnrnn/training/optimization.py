"""Which weights learn how fast, and how batches are put together."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

from ..modeling_cnnrnn import CnnRnnForConditionalGeneration


T = TypeVar("T")


def parameter_groups(
    model: CnnRnnForConditionalGeneration,
    learning_rate: float,
    encoder_learning_rate: float | None = None,
    weight_decay: float = 0.0,
) -> list[dict]:
    """
    The groups of an optimiser: decoder and CNN, matrices with weight decay and vectors (biases, norms) without.

    Args:
        encoder_learning_rate: of the CNN; as `learning_rate` if `None`.
    """
    groups: dict[tuple[bool, bool], list] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((".cnn." in name, parameter.ndim > 1), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": encoder_learning_rate if is_cnn and encoder_learning_rate is not None else learning_rate,
            "weight_decay": weight_decay if is_matrix else 0.0,
        }
        for (is_cnn, is_matrix), parameters in groups.items()
    ]


def in_groups(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items, the last one perhaps shorter."""
    iterator = iter(items)
    while group := list(islice(iterator, size)):
        yield group
