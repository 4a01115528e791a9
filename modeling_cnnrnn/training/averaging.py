"""The moving average of a model's weights, which is evaluated and kept in place of the weights themselves."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from .sharding import copy_from_whole_, in_one_piece, own_parts


class AveragedWeights:
    """
    The exponential moving average of a model's weights, and of the statistics of its BatchNorm layers.

    Args:
        model: the model, whose parameters and buffers keep their place in memory.
        decay: share of the average that each step keeps. With 0 there is no average, and all methods do nothing.
        warmup: whether the decay is smaller in the first steps, so that untrained weights are soon forgotten. Trained ones
            are worth keeping: the mean of a model and what self-critical training makes of it is better than either
            (https://arxiv.org/abs/2109.01903).

    Raises:
        ValueError: `decay` is negative, or 1 or more.
    """

    def __init__(self, model: nn.Module, decay: float, warmup: bool = True):
        if not 0 <= decay < 1:
            raise ValueError(
                f"`ema_decay` is {decay}: pass a number between 0 and 1, such as 0.999, or 0 for no average."
            )
        named = chain(model.named_parameters(), model.named_buffers()) if decay else ()
        tensors = {name: tensor.detach() for name, tensor in named if tensor.is_floating_point()}
        self.names, self.tensors = list(tensors), list(tensors.values())
        self.averages = [tensor.clone() for tensor in self.tensors]
        self.decay, self.warmup = decay, warmup
        self.num_updates = 0

    @torch.no_grad()
    def update(self) -> None:
        """Add the weights after an optimizer step to the average."""
        if not self.averages:
            return
        self.num_updates += 1
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates)) if self.warmup else self.decay
        torch._foreach_lerp_(own_parts(self.averages), own_parts(self.tensors), 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Give the model the averaged weights within this context, and its own back at the end."""
        tensors = own_parts(self.tensors)
        trained = [tensor.clone() for tensor in tensors]
        _copy_(tensors, own_parts(self.averages))
        try:
            yield
        finally:
            _copy_(tensors, trained)

    def adopt(self) -> None:
        """Give the model the averaged weights for good: training continues from them."""
        _copy_(own_parts(self.tensors), own_parts(self.averages))

    def save(self, path: str | os.PathLike, is_main_process: bool = True) -> None:
        """Write the averages as safetensors on the main process; all processes must call it together."""
        averages = {name: in_one_piece(tensor) for name, tensor in zip(self.names, self.averages, strict=True)}
        if averages and is_main_process:
            contiguous = {name: tensor.contiguous() for name, tensor in averages.items()}
            save_file(contiguous, path, {"num_updates": str(self.num_updates)})

    def load(self, path: str | os.PathLike) -> None:
        """
        Read what `save` wrote.

        Raises:
            ValueError: it is the average of another model, or there is an average on one side alone.
        """
        if not os.path.exists(path) and not self.averages:
            return
        if not os.path.exists(path) or not self.averages:
            found = "no average" if self.averages else "an average of the weights"
            raise ValueError(
                f"The checkpoint holds {found}, and `ema_decay` is {self.decay}: resume with the one it had."
            )
        with safe_open(path, "pt") as saved:
            if set(saved.keys()) != set(self.names):
                raise ValueError(
                    f"{path} holds the average of another model: resume with the options of the checkpoint."
                )
            for name, average in zip(self.names, self.averages, strict=True):
                copy_from_whole_(average, saved.get_tensor(name))
            self.num_updates = int((saved.metadata() or {})["num_updates"])


@torch.no_grad()
def _copy_(targets: list[torch.Tensor], sources: list[torch.Tensor]) -> None:
    if targets:
        torch._foreach_copy_(targets, sources)
