"""Which weights learn, how fast, and in which average, and how batches are put together."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_scheduler

from ..models.loss_cnnrnn import IGNORE_INDEX
from ..models.modeling_cnnrnn import CnnRnnForConditionalGeneration
from .sharding import copy_from_whole_, in_one_piece, own_parts


T = TypeVar("T")


def encoder_layers(model: CnnRnnForConditionalGeneration) -> list[list[nn.Parameter]]:
    """
    The CNN's weights by depth: those of the stem, then those of each layer.

    The layers are the elements of the CNN's outermost `nn.ModuleList`s and `nn.Sequential`s: four stages in transformers'
    ResNet, the single blocks in EfficientNet. What follows the last one belongs to it.
    """
    cnn = model.get_encoder().cnn
    depths = {id(p): depth for depth, layer in enumerate(_layers_of(cnn), 1) for p in layer.parameters()}
    layers: list[list[nn.Parameter]] = [[] for _ in range(max(depths.values(), default=0) + 1)]
    depth = 0
    for parameter in cnn.parameters():
        depth = depths.get(id(parameter), depth)
        layers[depth].append(parameter)
    return layers


def _layers_of(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if isinstance(child, (nn.ModuleList, nn.Sequential)):
            yield from child
        else:
            yield from _layers_of(child)


def unfreeze_encoder_layers(model: CnnRnnForConditionalGeneration, from_layer: int = 0) -> None:
    """
    Finetune the CNN, its BatchNorm layers excepted, from one of its [`encoder_layers`] on.

    Args:
        from_layer: 0 is the stem; negative numbers count from the end, as in `vision_feature_layer`.

    Raises:
        ValueError: the CNN has fewer layers.
    """
    layers = encoder_layers(model)
    if not -len(layers) <= from_layer < len(layers):
        raise ValueError(
            f"`unfreeze_encoder_from_layer` is {from_layer}, but this CNN has a stem, 0, and {len(layers) - 1} layers: "
            f"pass a number from {-len(layers)} to {len(layers) - 1}."
        )
    model.unfreeze_encoder()
    for layer in layers[: from_layer % len(layers)]:
        for parameter in layer:
            parameter.requires_grad_(False)
    encoder = model.get_encoder()
    encoder.train(encoder.training)


def parameter_groups(
    model: CnnRnnForConditionalGeneration,
    learning_rate: float,
    encoder_learning_rate: float | None = None,
    weight_decay: float = 0.0,
    encoder_layer_decay: float = 1.0,
) -> list[dict[str, Any]]:
    """
    The groups of an optimiser: decoder and CNN, matrices with weight decay and vectors (biases, norms) without.

    Args:
        encoder_learning_rate: of the CNN's last layer; as `learning_rate` if `None`.
        encoder_layer_decay: of the learning rate, from each of the [`encoder_layers`] to the one before.
    """
    encoder_learning_rate = learning_rate if encoder_learning_rate is None else encoder_learning_rate
    layers = encoder_layers(model)
    encoder_rates = {
        id(parameter): encoder_learning_rate * encoder_layer_decay ** (len(layers) - 1 - depth)
        for depth, layer in enumerate(layers)
        for parameter in layer
    }
    groups: dict[tuple[bool, float, bool], list] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            rate = encoder_rates.get(id(parameter))
            key = (rate is not None, learning_rate if rate is None else rate, parameter.ndim > 1)
            groups.setdefault(key, []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": rate,
            "weight_decay": weight_decay if is_matrix else 0.0,
            "name": "encoder" if is_encoder else "decoder",
        }
        for (is_encoder, rate, is_matrix), parameters in groups.items()
    ]


def two_stage_scheduler(
    name: str,
    optimizer: torch.optim.Optimizer,
    warmup_ratio: float,
    num_steps: int,
    second_stage_step: int | None = None,
    second_stage_factor: float = 1.0,
) -> LambdaLR:
    """
    transformers' schedule of this name over a training, or over each of its two stages with warmup in both.

    Args:
        second_stage_step: where the second stage begins; `None` for a training of one.
        second_stage_factor: of all learning rates in the second stage.

    Raises:
        ValueError: a schedule that is not a function of the step alone.
    """

    def factor(length: int) -> Callable[[int], float]:
        try:
            return get_scheduler(name, optimizer, round(warmup_ratio * length), length).lr_lambdas[0]
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError(
                f"`lr_scheduler_type` is '{name}', which cannot be used here ({error}): pass 'linear', 'cosine', "
                "'constant', 'constant_with_warmup', 'polynomial' or 'inverse_sqrt'."
            ) from error

    if second_stage_step is None or second_stage_step >= num_steps:
        return LambdaLR(optimizer, factor(num_steps))
    first, second = factor(second_stage_step), factor(num_steps - second_stage_step)
    return LambdaLR(
        optimizer,
        lambda step: (
            first(step) if step < second_stage_step else second_stage_factor * second(step - second_stage_step)
        ),
    )


class AveragedWeights:
    """
    The exponential moving average of a model's weights, and of the statistics of its BatchNorm layers.

    Args:
        decay: share of the average that each step keeps.
        warmup: whether it is less in the first steps, so that untrained weights are soon forgotten. Trained ones are worth
            keeping: the mean of a model and what self-critical training makes of it is better than either, as with
            https://arxiv.org/abs/2109.01903.
    """

    def __init__(self, model: nn.Module, decay: float, warmup: bool = True):
        if not 0 < decay < 1:
            raise ValueError(f"`ema_decay` is {decay}: pass a number between 0 and 1, such as 0.999.")
        self.tensors = [t.detach() for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()]
        self.averages = [tensor.clone() for tensor in self.tensors]
        self.decay, self.warmup = decay, warmup
        self.num_updates = 0

    @torch.no_grad()
    def update(self) -> None:
        """Take the weights after a step of the optimiser into the average."""
        self.num_updates += 1
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates)) if self.warmup else self.decay
        torch._foreach_lerp_(own_parts(self.averages), own_parts(self.tensors), 1 - decay)

    @torch.no_grad()
    def adopt(self) -> None:
        """Go on from the average: what learns from now on are these weights."""
        torch._foreach_copy_(own_parts(self.tensors), own_parts(self.averages))

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within this context the model has the averaged weights."""
        tensors = own_parts(self.tensors)
        learned = [tensor.clone() for tensor in tensors]
        self.adopt()
        try:
            yield
        finally:
            torch._foreach_copy_(tensors, learned)

    def state_dict(self) -> dict[str, Any]:
        return {"averages": [in_one_piece(average) for average in self.averages], "num_updates": self.num_updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for average, whole in zip(self.averages, state["averages"], strict=True):
            copy_from_whole_(average, whole)
        self.num_updates = state["num_updates"]


def in_groups(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items, the last one perhaps shorter."""
    iterator = iter(items)
    while group := list(islice(iterator, size)):
        yield group


def without_repeats(batches: Iterable[dict[str, Any]], accelerator: Accelerator, batch_size: int) -> Iterator[dict]:
    """
    Batches from which each image is learned once an epoch, whatever the number of processes.

    Where the images do not fill the last batches of all processes, accelerate repeats the first ones. They stay, so that
    the processes keep in step, but without a caption.
    """
    for batch in batches:
        state = accelerator.gradient_state
        if state.end_of_dataloader and state.remainder > 0:
            batch["labels"][max(0, state.remainder - accelerator.process_index * batch_size) :] = IGNORE_INDEX
        yield batch
