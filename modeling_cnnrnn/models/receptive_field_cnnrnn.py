"""
Where a cell of a feature map looks in the picture.

A convolution of stride 2 with an odd kernel and padding on both sides puts the middle of cell i on pixel 2 i, and not
between the pixels 2 i and 2 i + 1. Over the strides of a ResNet that adds up to half a cell, up and to the left; other CNNs
pad on one side only, depending on the size of the picture. So the middle is measured.
"""

import math
from collections.abc import Callable

import torch


NUM_PICTURES = 4  # of noise; the measured middles vary by less than a tenth of a cell


def nominal_stride(size: int, num_cells: int) -> int:
    """
    Return the distance of neighbouring cells in pixels.

    It is `size / num_cells` where that is a whole number, and else the nearest power of two: the last cell of a row then
    lies partly outside the picture, or the last pixels belong to none.
    """
    return size // num_cells if size % num_cells == 0 else 2 ** round(math.log2(max(size / num_cells, 1)))


def measure_cell_centers(
    feature_map: Callable[[torch.Tensor], torch.Tensor], pixel_values: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Measure the middles of the cells of a CNN: the centre of mass of the squared gradients of a cell's features.

    The cells in the middle of the map are measured; all others look as far beside their place, because a CNN computes the
    same everywhere.

    Args:
        feature_map: computes `(batch_size, num_feature_channels, H', W')` of pictures.
        pixel_values: gives the size of the pictures, the precision and the device, `(batch_size, num_channels, H, W)`. Its
            values do not matter.

    Returns:
        The middles of the rows `(H',)` and of the columns `(W',)`, in pixels from the upper left corner. That of the first
        cell may be 0.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode(False), torch.enable_grad():
        pictures = torch.randn(NUM_PICTURES, *pixel_values.shape[1:], generator=generator)
        pictures = pictures.to(pixel_values.device, pixel_values.dtype).requires_grad_()
        features = feature_map(pictures)
        signs = torch.randn(features.shape[:2], generator=generator).sign().to(features)
        middles = [sorted({(cells - 1) // 2, cells // 2}) for cells in features.shape[2:]]
        offsets = torch.zeros(2, dtype=torch.float64)
        for row in middles[0]:
            for column in middles[1]:
                total = (features[:, :, row, column] * signs).sum()
                (gradient,) = torch.autograd.grad(total, pictures, retain_graph=True)
                energy = gradient.double().pow(2).sum(dim=(0, 1)).cpu()
                offsets += _offsets_of(energy, (row, column), features.shape[2:])
        offsets /= len(middles[0]) * len(middles[1])
    centers = []
    for size, cells, offset in zip(pixel_values.shape[2:], features.shape[2:], offsets.tolist(), strict=True):
        centers.append(nominal_stride(size, cells) * (torch.arange(cells, dtype=torch.float32) + 0.5) + offset)
    return centers[0], centers[1]


def _offsets_of(energy: torch.Tensor, cell: tuple[int, int], cells: torch.Size) -> torch.Tensor:
    """Return how far below and right of its place a cell looks, in pixels; 0 where it does not look anywhere."""
    offsets = torch.zeros(2, dtype=torch.float64)
    if energy.sum() == 0:
        return offsets
    for axis in (0, 1):
        weights = energy.sum(dim=1 - axis) / energy.sum()
        middle = float(weights @ (torch.arange(len(weights), dtype=torch.float64) + 0.5))
        offsets[axis] = middle - nominal_stride(len(weights), cells[axis]) * (cell[axis] + 0.5)
    return offsets


__all__ = ["measure_cell_centers", "nominal_stride"]
