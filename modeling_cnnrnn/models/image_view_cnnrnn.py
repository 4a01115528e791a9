"""
The part of a picture that a CNN sees after an image processor has resized and cropped it.

Every image processor has options of its own for that, so the part is found by processing a picture of its coordinates.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from .image_loading_cnnrnn import load_image
from .receptive_field_cnnrnn import place_maps


Box = tuple[float, float, float, float]


@dataclass
class View:
    """
    The part of a picture that the CNN sees.

    Attributes:
        width, height: of the upright picture, in pixels.
        box: what is seen of it, left, top, right, bottom in pixels.
    """

    width: int
    height: int
    box: Box

    def to_pixels(self, box: Sequence[float]) -> Box:
        """Convert a box in parts of what is seen, from 0 to 1, to pixels of the picture."""
        left, top, right, bottom = self.box
        xs = [min(max(left + x * (right - left), 0.0), float(self.width)) for x in box[::2]]
        ys = [min(max(top + y * (bottom - top), 0.0), float(self.height)) for y in box[1::2]]
        return xs[0], ys[0], xs[1], ys[1]

    def to_parts(self, boxes: Sequence[Sequence[float]]) -> np.ndarray:
        """
        Convert boxes in pixels of the picture to parts of what is seen, `(num_boxes, 4)`.

        What is cropped away of a box is left out; of a box that is cropped away as a whole, the nearest line of pixels stays.

        Raises:
            ValueError: a box is outside the picture, or has no area, or there is none.
        """
        if len(boxes) == 0:
            raise ValueError("`boxes` is empty: pass at least one, or None for the cells of the CNN.")
        left, top, right, bottom = self.box
        seen = []
        for box in boxes:
            x_min, y_min, x_max, y_max = map(float, box)
            if not (0 <= x_min < x_max <= self.width and 0 <= y_min < y_max <= self.height):
                raise ValueError(
                    f"`boxes` holds {tuple(box)}, which is no area of a picture of {self.width} x {self.height} pixels: pass "
                    "(left, top, right, bottom) inside it."
                )
            x_min, x_max = _inside(x_min, x_max, left, right)
            y_min, y_max = _inside(y_min, y_max, top, bottom)
            seen.append(
                [
                    (x_min - left) / (right - left),
                    (y_min - top) / (bottom - top),
                    (x_max - left) / (right - left),
                    (y_max - top) / (bottom - top),
                ]
            )
        return np.array(seen, dtype=np.float32)

    def lay_maps(
        self, maps: torch.Tensor, centers: tuple[torch.Tensor, torch.Tensor], size: tuple[int, int]
    ) -> torch.Tensor:
        """
        Lay maps over cells on the picture, each cell where it looks.

        Args:
            maps: `(..., H', W')`.
            centers: middles of the rows `(H',)` and of the columns `(W',)`, in parts of what is seen.
            size: numbers of rows and of columns of the result.

        Returns:
            `(..., *size)`: equal parts of the picture, 0 where it is not seen.
        """
        left, top, right, bottom = self.box
        axes, seen = [], []
        for middles, start, end, length, count in zip(
            centers, (top, left), (bottom, right), (self.height, self.width), size, strict=True
        ):
            axes.append((start + middles * (end - start)) / length)
            edges = (torch.arange(count + 1) * length / count).clamp(start, end)
            seen.append(edges.diff() * count / length)  # the share of each part
        return place_maps(maps, (axes[0], axes[1]), size) * (seen[0][:, None] * seen[1]).to(maps)


def _inside(start: float, end: float, low: float, high: float) -> tuple[float, float]:
    """Cut an interval to the seen one. Where less than a pixel is left of it, the pixel at the edge is what stays."""
    seen = max(start, low), min(end, high)
    if seen[1] - seen[0] >= min(end - start, 1.0):
        return seen
    return (low, low + 1) if start < low else (high - 1, high)


def find_view(processor: Any, image: Any) -> View:
    """
    Find which part of a picture the CNN sees.

    Args:
        processor: resizes and crops.
        image: the picture, as the processor takes it.

    Raises:
        OSError, ValueError: the picture cannot be read, or the processor makes no picture of it.
    """
    width, height = load_image(image).size
    across = np.tile(np.linspace(0, 255, width).round().astype(np.uint8), (height, 1))
    down = np.tile(np.linspace(0, 255, height).round().astype(np.uint8)[:, None], (1, width))
    # black and white show what the processor does with values
    shown = [Image.fromarray(array).convert("RGB") for array in (across, down, 0 * across, 0 * across + 255)]
    pixel_values = processor(images=shown, return_tensors="np")["pixel_values"]
    columns, rows, black, white = np.asarray(pixel_values, dtype=np.float64).mean(axis=1)
    left, right = _ends(((columns - black) / (white - black)).mean(axis=0), width)
    top, bottom = _ends(((rows - black) / (white - black)).mean(axis=1), height)
    return View(width, height, (left, top, right, bottom))


def _ends(parts: np.ndarray, size: int) -> tuple[float, float]:
    """Find the first and the last place that is seen, of which `parts` are the middles of pixels, as parts of the axis."""
    places = parts * (size - 1) + 0.5
    count = len(places)
    if count < 4:  # the ends of the axis weigh too much
        return 0.0, float(size)
    # the outermost pixels are averages with what is beyond the edge
    inner = np.arange(count // 8, count - count // 8)
    slope, first = np.polyfit(inner + 0.5, places[inner], 1)
    start, end = first, first + slope * count
    # a picture that is not cropped is seen to its edges, whatever rounding says
    tolerance = max(0.004 * size, 0.5)
    return (0.0 if abs(start) < tolerance else start), (float(size) if abs(end - size) < tolerance else end)


__all__ = ["View", "find_view"]
