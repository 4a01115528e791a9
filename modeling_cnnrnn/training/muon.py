"""Muon for convolutions: `torch.optim.Muon` takes matrices alone."""

from collections.abc import Callable, Iterable
from typing import Any

import torch


# of the quintic iteration that brings all singular values near 1
COEFFICIENTS = (3.4445, -4.7750, 2.0315)


class Muon(torch.optim.Optimizer):
    """
    Orthogonalize the updates of convolutions (https://kellerjordan.github.io/posts/muon), and train the rest with SGD.

    A convolution is a matrix with a row for each output channel. Its weights keep the norm `sqrt(out_channels)`, as in
    airbench94 (https://github.com/KellerJordan/cifar10-airbench), so that a learning rate means the same in all layers.
    Momentum is Nesterov's throughout.

    Args:
        params: parameter groups with `lr`, and if they differ from these defaults `momentum`, `weight_decay` (of SGD) and
            `orthogonalized`, which says which of the two ways is theirs.
        lr: learning rate of groups that have none.
        momentum: share of the momentum that each step keeps.
        weight_decay: weight decay of groups that are not orthogonalized.
    """

    def __init__(
        self, params: Iterable[dict[str, Any]], lr: float = 0.24, momentum: float = 0.6, weight_decay: float = 0.0
    ):
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "orthogonalized": True}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take a step; `closure` computes the loss again, if it is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)
        return loss

    def _update(self, parameter: torch.Tensor, group: dict[str, Any]) -> None:
        gradient, momentum = parameter.grad, group["momentum"]
        if not group["orthogonalized"]:
            gradient = gradient.add(parameter, alpha=group["weight_decay"])  # type: ignore[union-attr]
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        average = state["momentum_buffer"].mul_(momentum).add_(gradient)
        update = gradient.add(average, alpha=momentum)  # type: ignore[union-attr]
        if group["orthogonalized"]:
            parameter.mul_(len(parameter) ** 0.5 / parameter.norm().clamp(min=1e-12))
            update = orthogonalize(update.flatten(1)).view_as(update)
        parameter.add_(update, alpha=-group["lr"])


def orthogonalize(matrix: torch.Tensor, steps: int = 3) -> torch.Tensor:
    """
    Bring the singular values of a matrix near 1, by Newton-Schulz iterations in bfloat16.

    Args:
        matrix: `(rows, columns)`.
        steps: more bring them nearer; 3 are as good as 5 for a CNN.

    Returns:
        A matrix with the same singular vectors, in the dtype of `matrix`.
    """
    a, b, c = COEFFICIENTS
    x = matrix.bfloat16()
    x = x / (x.norm() + 1e-7)
    if is_tall := len(x) > x.shape[1]:
        x = x.T
    for _ in range(steps):
        product = x @ x.T
        x = a * x + (b * product + c * product @ product) @ x
    return (x.T if is_tall else x).to(matrix.dtype)
