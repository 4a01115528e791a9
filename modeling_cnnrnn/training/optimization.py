"""Parameter groups, learning-rate schedules, and the batches of an optimizer step."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_scheduler

from ..models.encoder_cnnrnn import cnn_blocks
from ..models.loss_cnnrnn import IGNORE_INDEX
from ..models.modeling_cnnrnn import CnnRnnForConditionalGeneration


T = TypeVar("T")


def encoder_layers(model: CnnRnnForConditionalGeneration) -> list[list[nn.Parameter]]:
    """
    List the CNN's parameters by depth: those of the stem, then those of each layer.

    The layers are the elements of the CNN's outermost `nn.ModuleList`s and `nn.Sequential`s: four stages in transformers'
    ResNet, the single blocks in EfficientNet. Parameters after the last layer count as its own.
    """
    cnn = model.get_encoder().cnn
    depths = {id(p): depth for depth, layer in enumerate(cnn_blocks(cnn), 1) for p in layer.parameters()}
    layers: list[list[nn.Parameter]] = [[] for _ in range(max(depths.values(), default=0) + 1)]
    depth = 0
    for parameter in cnn.parameters():
        depth = depths.get(id(parameter), depth)
        layers[depth].append(parameter)
    return layers


def unfreeze_encoder_layers(model: CnnRnnForConditionalGeneration, from_layer: int = 0) -> None:
    """
    Unfreeze the CNN from one of its [`encoder_layers`] on; BatchNorm layers stay frozen.

    Args:
        from_layer: the first layer to train. 0 is the stem; negative numbers count from the end, as in `vision_feature_layer`.

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
    Make the parameter groups of an optimizer: decoder and CNN, matrices with weight decay and vectors without.

    Args:
        learning_rate: learning rate of the decoder.
        encoder_learning_rate: learning rate of the CNN's last layer; `learning_rate` if `None`.
        weight_decay: weight decay of matrices. Vectors are biases and the weights of norms.
        encoder_layer_decay: factor of the learning rate from each of the [`encoder_layers`] to the one below it.

    Returns:
        Groups of trainable parameters, each with its `name`: "decoder" or "encoder".
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


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Make two parameter groups of an optimizer: matrices with weight decay, vectors (biases, norms) without."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
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
    Make transformers' schedule of this name over a training, or over each of its two stages with warmup in both.

    Args:
        warmup_ratio: share of each stage in which the rates rise from 0.
        num_steps: optimizer steps of the training.
        second_stage_step: step at which the second stage begins; `None` for a single stage.
        second_stage_factor: factor of all learning rates in the second stage.

    Raises:
        ValueError: the schedule does not depend on the step alone.
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


def in_groups(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield lists of `size` items; the last one may be shorter."""
    iterator = iter(items)
    while group := list(islice(iterator, size)):
        yield group


def without_repeats(batches: Iterable[dict[str, Any]], accelerator: Accelerator, batch_size: int) -> Iterator[dict]:
    """
    Yield batches in which each example has labels once an epoch, whatever the number of processes.

    Where the examples do not fill the last batches of all processes, accelerate repeats the first ones. They stay, so that
    batches keep their size in every process, but without labels.

    Args:
        batches: batches of a prepared loader, with `labels` `(batch_size, ...)`.
        batch_size: examples in a batch of one process.
    """
    for batch in batches:
        state = accelerator.gradient_state
        if state.end_of_dataloader and state.remainder > 0:
            batch["labels"][max(0, state.remainder - accelerator.process_index * batch_size) :] = IGNORE_INDEX
        yield batch
