"""
Regions of images: their boxes, and their features in the feature map of a CNN.

Boxes are `(x_min, y_min, x_max, y_max)` in parts of the picture that the CNN sees, from 0 to 1, but those of a detector: these
are in pixels of the picture, whose parts `find_view(processor, image).to_parts(boxes)` knows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from .image_loading_cnnrnn import load_image


TOLERANCE = 1e-4  # of boxes, in parts of the picture: detectors round


def pad_boxes(boxes: torch.Tensor | Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Check boxes, and pad those of several images to one number.

    Args:
        boxes: `(batch_size, num_boxes, 4)`, or for each image `(num_boxes, 4)`.

    Returns:
        The boxes `(batch_size, num_boxes, 4)` and where there is one, `(batch_size, num_boxes)`.

    Raises:
        ValueError: a box is outside the picture or has no area, or an image has no box.
    """
    rows = [torch.as_tensor(row) for row in boxes]
    longest = max((len(row) for row in rows), default=0)
    for i, row in enumerate(rows):
        if row.ndim != 2 or row.shape[1] != 4 or len(row) == 0:
            raise ValueError(
                f"`boxes[{i}]` has shape {tuple(row.shape)}: pass (num_boxes, 4), at least one box an image."
            )
        if not row.isfinite().all() or row.min() < -TOLERANCE or row.max() > 1 + TOLERANCE:
            wrong = row[((row < -TOLERANCE) | (row > 1 + TOLERANCE) | ~row.isfinite()).any(dim=1)][0].tolist()
            raise ValueError(
                f"`boxes[{i}]` holds {_rounded(wrong)}, which is not inside the picture: pass (x_min, y_min, x_max, y_max) in "
                "parts of its width and height, from 0 to 1."
            )
        is_empty = (row[:, 2:] <= row[:, :2]).any(dim=1)
        if is_empty.any():
            raise ValueError(
                f"`boxes[{i}]` holds {_rounded(row[is_empty][0].tolist())}, which has no area: pass (x_min, y_min, x_max, "
                "y_max) with x_min < x_max and y_min < y_max."
            )
    if not rows:
        raise ValueError("`boxes` is empty: pass the boxes of at least one image.")
    padded = torch.stack([F.pad(row.clamp(0, 1), (0, 0, 0, longest - len(row))) for row in rows])
    mask = torch.arange(longest, device=padded.device) < torch.tensor(
        [[len(row)] for row in rows], device=padded.device
    )
    return padded, mask


def _rounded(box: list[float]) -> tuple[float, ...]:
    return tuple(round(edge, 4) for edge in box)


def pool_boxes(
    feature_map: torch.Tensor, boxes: torch.Tensor, centers: tuple[torch.Tensor, torch.Tensor]
) -> torch.Tensor:
    """
    Average a feature map over boxes, exactly: the integral of its bilinear interpolation (https://arxiv.org/abs/1807.11590).

    The interpolation is a product of hat functions of the rows and of the columns, and so is its integral.

    Args:
        feature_map: `(batch_size, channels, H', W')`.
        boxes: `(batch_size, num_boxes, 4)`; where one has no area, the result has no meaning, but is finite.
        centers: middles of the rows `(H',)` and of the columns `(W',)`, in parts of the picture. Beyond the first and the
            last, the features stay what they are there.

    Returns:
        `(batch_size, num_boxes, channels)`.
    """
    rows = _hat_integrals(boxes[..., 1], boxes[..., 3], centers[0].to(boxes))
    columns = _hat_integrals(boxes[..., 0], boxes[..., 2], centers[1].to(boxes))
    rows, columns = rows.to(feature_map.dtype), columns.to(feature_map.dtype)
    weights = (rows[..., :, None] * columns[..., None, :]).flatten(2)  # (batch, boxes, H' * W')
    return weights @ feature_map.flatten(2).transpose(1, 2)


def _hat_integrals(start: torch.Tensor, end: torch.Tensor, centers: torch.Tensor) -> torch.Tensor:
    """
    Average the hat function of each cell from `start` to `end`.

    Args:
        start, end: `(...)`.
        centers: middles of the cells, equally far apart, `(cells,)`.

    Returns:
        `(..., cells)`, of sum 1.
    """
    cells = len(centers)
    if cells == 1:
        return torch.ones_like(start)[..., None]
    stride = (centers[-1] - centers[0]) / (cells - 1)
    start, end = (start - centers[0]) / stride, (end - centers[0]) / stride  # in cells

    def area_until(place: torch.Tensor) -> torch.Tensor:
        """Integrate each hat function from the first middle to `place`; before it and after the last, the outer ones are 1."""
        inside = place.clamp(0, cells - 1)[..., None] - torch.arange(cells, device=place.device)
        left, right = inside.clamp(-1, 0), inside.clamp(0, 1)
        area = (left + 1) ** 2 / 2 + right - right**2 / 2
        outside = torch.zeros_like(area)
        outside[..., 0] = place.clamp(max=0)
        outside[..., -1] = (place - (cells - 1)).clamp(min=0)
        return area + outside

    return (area_until(end) - area_until(start)) / (end - start).clamp(min=1e-6)[..., None]


@dataclass
class Grid:
    """
    The cells of one axis of a feature map.

    Attributes:
        centers: where they look, `(cells,)`, in parts of the picture. The first may look at the very edge.
        starts, ends: one stride around it, `(cells,)`, or around the cells that were averaged to one.
    """

    centers: torch.Tensor
    starts: torch.Tensor
    ends: torch.Tensor

    @classmethod
    def of_cells(cls, centers: torch.Tensor, stride: float) -> "Grid":
        return cls(centers, centers - stride / 2, centers + stride / 2)

    def pooled(self, size: int) -> "Grid":
        """Average cells to `size`, as `adaptive_avg_pool2d` does."""
        cells = len(self.centers)
        firsts = [i * cells // size for i in range(size)]
        lasts = [-(-(i + 1) * cells // size) - 1 for i in range(size)]
        return Grid((self.centers[firsts] + self.centers[lasts]) / 2, self.starts[firsts], self.ends[lasts])


def grid_boxes(rows: Grid, columns: Grid) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Make the boxes of the cells of a grid, row by row.

    Returns:
        The boxes `(num_cells, 4)` inside the picture, and where the cells look, `(num_cells, 2)`, x and y.
    """
    top, left = torch.meshgrid(rows.starts, columns.starts, indexing="ij")
    bottom, right = torch.meshgrid(rows.ends, columns.ends, indexing="ij")
    y, x = torch.meshgrid(rows.centers, columns.centers, indexing="ij")
    boxes = torch.stack([left, top, right, bottom], dim=-1).flatten(0, 1).clamp(0, 1)
    return boxes, torch.stack([x, y], dim=-1).flatten(0, 1)


@torch.no_grad()
def detect_boxes(
    detector: Any, image_processor: Any, image: Any, num_boxes: int = 19, threshold: float = 0.0
) -> list[tuple[float, float, float, float]]:
    """
    Find the boxes of an object detector in a picture, the most certain ones first (the paper takes 19).

    Args:
        detector: a model of `AutoModelForObjectDetection`.
        image_processor: its image processor.
        image: the picture, as [`load_image`] takes it.
        num_boxes: largest number of boxes.
        threshold: least score of a box.

    Returns:
        `[(left, top, right, bottom)]` in pixels of the upright picture, each box once and a pixel wide and high at least, as
        [`~CnnRnnForImageTextRetrieval.align`] takes them; where nothing is found, the whole picture.

    Raises:
        TypeError: the image processor is not one of a detector.
        ValueError: `num_boxes` is less than 1, or the picture is not usable.
        OSError: the picture cannot be read.
    """
    if not hasattr(image_processor, "post_process_object_detection"):
        raise TypeError(
            f"`image_processor` is a {type(image_processor).__name__}, which finds no boxes: pass that of the detector, "
            "`AutoImageProcessor.from_pretrained(...)`."
        )
    if num_boxes < 1:
        raise ValueError(f"`num_boxes` is {num_boxes}: pass 1 or more.")
    picture = load_image(image)
    # alone, because some detectors take the padding of a batch for a part of the picture
    outputs = detector(**image_processor(images=picture, return_tensors="pt").to(detector.device, detector.dtype))
    (found,) = image_processor.post_process_object_detection(
        outputs, threshold=threshold, target_sizes=[(picture.height, picture.width)]
    )
    boxes = found["boxes"][found["scores"].argsort(descending=True, stable=True)].float().cpu()
    boxes = boxes.clamp(min=0).minimum(torch.tensor([picture.width, picture.height] * 2))
    boxes = boxes[(boxes[:, 2:] - boxes[:, :2] >= 1).all(dim=1)]
    # detectors that rank pairs of a box and a class find a box once for each class
    different: list[Any] = list(dict.fromkeys(map(tuple, boxes.tolist())))[:num_boxes]
    return different or [(0.0, 0.0, float(picture.width), float(picture.height))]


__all__ = ["Grid", "detect_boxes", "grid_boxes", "pad_boxes", "pool_boxes"]
