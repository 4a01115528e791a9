"""Weights that fully sharded data parallelism (FSDP) keeps in parts, one on each process."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from torch import nn

from ..models.modeling_cnnrnn import CnnRnnForConditionalGeneration


if torch.distributed.is_available():
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor, distribute_tensor
else:  # PyTorch for small devices is often built without it: nothing is sharded there
    FSDPModule = DTensor = ()  # type: ignore[assignment, misc]


@contextmanager
def whole_weights(model: nn.Module) -> Iterator[None]:
    """
    Within this context each process has all weights of a model.

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


def unsharded(model: CnnRnnForConditionalGeneration, accelerator: Accelerator) -> CnnRnnForConditionalGeneration:
    """
    The model itself, or of one that FSDP keeps in parts a copy to save, of a class that can be saved.

    All processes must call it together; the copy has its weights on the main process alone.
    """
    if not isinstance(model, FSDPModule):
        return model
    weights = accelerator.get_state_dict(model)
    copy = CnnRnnForConditionalGeneration._from_config(model.config)
    if accelerator.is_main_process:
        copy.load_state_dict(weights)
    copy.generation_config = model.generation_config
    return copy


def own_parts(tensors: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """What lies on this process, in the same memory: of a sharded tensor its part, of any other all of it."""
    return [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]


def in_one_piece(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor with all its parts; all processes must call it together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def copy_from_whole_(tensor: torch.Tensor, whole: torch.Tensor) -> None:
    """Take over what [`in_one_piece`] returned: of a sharded tensor, each process its part."""
    if isinstance(tensor, DTensor):
        whole = distribute_tensor(whole.to(tensor.device), tensor.device_mesh, tensor.placements)
    tensor.copy_(whole)
