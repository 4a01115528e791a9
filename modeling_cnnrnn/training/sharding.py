"""Weights that fully sharded data parallelism (FSDP) distributes over the processes."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedModel


if torch.distributed.is_available():
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor, distribute_tensor
else:  # PyTorch for small devices is often built without it: nothing is sharded there
    FSDPModule = DTensor = ()  # type: ignore[assignment, misc]


@contextmanager
def whole_weights(model: nn.Module) -> Iterator[None]:
    """
    Gather all weights of a model on each process within this context.

    A sharded model gathers them when it is called; generation calls its parts.
    """
    sharded = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for module in sharded:
        module.unshard()
    try:
        yield
    finally:
        for module in sharded:
            module.reshard()


def unsharded(model: PreTrainedModel, accelerator: Accelerator) -> PreTrainedModel:
    """
    Return a model that can be saved: the model itself, or a copy of one whose weights are sharded.

    All processes must call it together; the copy has its weights on the main process alone.
    """
    if not isinstance(model, FSDPModule):
        return model
    weights = accelerator.get_state_dict(model)
    # FSDP derives a class from its own and from the model's
    model_class: Any = next(base for base in type(model).__mro__ if not issubclass(base, FSDPModule))
    copy = model_class._from_config(model.config)
    if accelerator.is_main_process:
        copy.load_state_dict(weights)
    if model.can_generate():
        copy.generation_config = model.generation_config
    return copy


def own_parts(tensors: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """Return this process's shards of sharded tensors, and other tensors as they are; memory is shared."""
    return [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]


def in_one_piece(tensor: torch.Tensor) -> torch.Tensor:
    """Gather all shards of a tensor; all processes must call it together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def copy_from_whole_(tensor: torch.Tensor, whole: torch.Tensor) -> None:
    """Copy a full tensor into `tensor`; if it is sharded, each process copies its own shard."""
    if isinstance(tensor, DTensor):
        whole = distribute_tensor(whole.to(tensor.device), tensor.device_mesh, tensor.placements)
    tensor.copy_(whole)
