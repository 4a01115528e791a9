"""
Where a cell of a feature map looks in the picture.

A convolution of stride 2 with an odd kernel and padding on both sides puts the middle of cell i on pixel 2 i, and not
between the pixels 2 i and 2 i + 1. Over the strides of a ResNet that adds up to half a cell, up and to the left; other CNNs
pad on one side only, depending on the size of the picture. So the middle is measured.
"""

import math
from collections.abc import Callable
from itertools import cycle, islice, product

import torch


NUM_PICTURES = 4  # of noise, for one pass; the measured middles vary by about a tenth of a cell


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
    Measure the middles of the cells of a CNN: the centre of mass of the absolute gradients of a cell's features.

    Squared gradients would leave the matter to a few pixels, and vary several times as much. The cells in the middle of the map
    are measured; all others look as far beside their place, because a CNN computes the same everywhere.

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
        # around the middle of the map, what lies beyond the edges of the picture is missing on all sides alike
        chosen = list(islice(cycle(product(*map(_middle_cells, features.shape[2:]))), NUM_PICTURES))
        total = torch.stack([features[i, :, row, column] @ signs[i] for i, (row, column) in enumerate(chosen)]).sum()
        (gradient,) = torch.autograd.grad(total, pictures)
        sensitivity = gradient.double().abs().sum(dim=1).cpu()
    offsets = [
        _offsets_of(weights, cell, features.shape[2:]) for weights, cell in zip(sensitivity, chosen, strict=True)
    ]
    offset = torch.stack(offsets).mean(dim=0).tolist()
    centers = []
    for size, cells, shift in zip(pixel_values.shape[2:], features.shape[2:], offset, strict=True):
        centers.append(nominal_stride(size, cells) * (torch.arange(cells, dtype=torch.float32) + 0.5) + shift)
    return centers[0], centers[1]


def _middle_cells(count: int) -> list[int]:
    """Find the cell in the middle of a row, or the two beside it."""
    return sorted({(count - 1) // 2, count // 2})


def _offsets_of(sensitivity: torch.Tensor, cell: tuple[int, ...], cells: torch.Size) -> torch.Tensor:
    """Return how far below and right of its place a cell looks, in pixels; 0 where it does not look anywhere."""
    offsets = torch.zeros(2, dtype=torch.float64)
    if sensitivity.sum() == 0:
        return offsets
    for axis in (0, 1):
        weights = sensitivity.sum(dim=1 - axis) / sensitivity.sum()
        middle = float(weights @ (torch.arange(len(weights), dtype=torch.float64) + 0.5))
        offsets[axis] = middle - nominal_stride(len(weights), cells[axis]) * (cell[axis] + 0.5)
    return offsets


def place_maps(maps: torch.Tensor, centers: tuple[torch.Tensor, torch.Tensor], size: tuple[int, int]) -> torch.Tensor:
    """
    Interpolate maps over cells to where the cells look, so that a map can be laid over the picture as it is.

    Args:
        maps: `(..., H', W')`.
        centers: middles of the rows `(H',)` and of the columns `(W',)`, in parts of the picture. Beyond the first and the
            last, a map stays what it is there.
        size: numbers of rows and of columns of the result.

    Returns:
        `(..., *size)`: equal parts of the picture.
    """
    rows, columns = (_hats(axis.to(maps), count) for axis, count in zip(centers, size, strict=True))
    return rows @ maps @ columns.T


def _hats(centers: torch.Tensor, count: int) -> torch.Tensor:
    """Weigh cells for places in the middles of `count` equal parts, `(count, cells)`, by linear interpolation."""
    places = (torch.arange(count).to(centers) + 0.5) / count
    if len(centers) == 1:
        return torch.ones_like(places)[:, None]
    in_cells = (places - centers[0]) / ((centers[-1] - centers[0]) / (len(centers) - 1))
    in_cells = in_cells.clamp(0, len(centers) - 1)
    return (1 - (in_cells[:, None] - torch.arange(len(centers)).to(centers)).abs()).clamp(min=0)


__all__ = ["measure_cell_centers", "nominal_stride", "place_maps"]
