"""Look inside a network without leaving a trace in it."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from .pictures import draw_filters, draw_maps


MAX_LAYERS = 24  # with norms and activations; networks of more are shown without these
MAX_DRAWN = 24  # layers whose maps are drawn; of the others there are numbers alone
COMPUTING = ("conv", "linear", "pooling", "rnn", "sparse")  # modules of torch.nn


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Set a model to evaluation within this context, and each of its modules back to its own mode at the end."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def look_inside(model: nn.Module, compute_loss: Callable[[], torch.Tensor]) -> list[dict[str, Any]]:
    """
    Describe the layers of a network as it computes the loss of one picture, in evaluation mode.

    Weights, gradients, statistics of norms and modes are as before afterwards; random numbers are drawn only if
    `compute_loss` draws some.

    Args:
        model: the network.
        compute_loss: computes the loss of one picture with it.

    Returns:
        Of each layer, in the order of the computation: `name`, `kind`, `size` ("16 x 16 x 64": width, height, channels),
        `parameters`, and as `draw_maps` makes them `activations`, `gradients`, `filters` and `filter_gradients`, where
        there are such.
    """
    outputs: dict[str, list[torch.Tensor]] = defaultdict(list)
    modules = dict(model.named_modules())

    def keep(name: str) -> Callable:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            tensor = output[0] if isinstance(output, tuple) else output
            if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
                outputs[name].append(tensor)

        return hook

    handles = [modules[name].register_forward_hook(keep(name)) for name in _layers(modules)]
    try:
        # a compiled network would be compiled again for these hooks
        with evaluation_mode(model), torch.enable_grad(), torch.compiler.set_stance("force_eager"):
            loss = compute_loss()
        gradients = _gradients(loss, outputs, modules)
    finally:
        for handle in handles:
            handle.remove()
    drawn = set(list(outputs)[: MAX_DRAWN - 1]) | set(list(outputs)[-1:])
    return [_describe(name, modules[name], outputs[name], gradients, name in drawn) for name in outputs]


def _layers(modules: dict[str, nn.Module]) -> list[str]:
    """Name the modules that compute something by themselves."""
    leaves = [
        name
        for name, module in modules.items()
        if not any(module.children()) and not isinstance(module, (nn.Identity, nn.Dropout, nn.Flatten))
    ]
    if len(leaves) <= MAX_LAYERS:
        return leaves
    return [name for name in leaves if type(modules[name]).__module__.rpartition(".")[2] in COMPUTING]


def _gradients(
    loss: torch.Tensor, outputs: dict[str, list[torch.Tensor]], modules: dict[str, nn.Module]
) -> dict[int, torch.Tensor]:
    """Differentiate the loss by outputs and filters, by the `id` of each; no parameter's `grad` is touched."""
    weights = [module.weight for name, module in modules.items() if name in outputs and isinstance(module, nn.Conv2d)]
    wanted = [tensor for tensors in outputs.values() for tensor in tensors] + weights
    wanted = [tensor for tensor in wanted if tensor.requires_grad]
    if not wanted or not loss.requires_grad:
        return {}
    found = torch.autograd.grad(loss, wanted, allow_unused=True)
    return {id(tensor): gradient for tensor, gradient in zip(wanted, found, strict=True) if gradient is not None}


def _describe(
    name: str, module: nn.Module, outputs: list[torch.Tensor], gradients: dict[int, torch.Tensor], draws: bool
) -> dict[str, Any]:
    """Describe a layer. One that was called several times, as a cell is for each word, has a row for each call."""
    values = outputs[0] if outputs[0].ndim == 4 else torch.cat([output.flatten(0, -2) for output in outputs])
    own = [gradients[id(output)] for output in outputs if id(output) in gradients]
    parts: dict[str, Any] = {"activations": draw_maps(values)}
    if own:
        parts["gradients"] = draw_maps(own[0] if own[0].ndim == 4 else torch.cat([x.flatten(0, -2) for x in own]))
    if isinstance(module, nn.Conv2d) and module.weight.shape[-1] > 1:
        parts["filters"] = draw_filters(module.weight)
        if id(module.weight) in gradients:
            parts["filter_gradients"] = draw_filters(gradients[id(module.weight)])
    if not draws:
        parts = {part: {"min": sheet["min"], "max": sheet["max"]} for part, sheet in parts.items()}
    shape = values.shape[:0:-1] if values.ndim == 4 else [size for size in values.shape if size > 1] or [1]
    return {
        "name": name,
        "kind": type(module).__name__,
        "size": " x ".join(map(str, shape)),
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
        **parts,
    }
