"""Pictures of what is inside a network: feature maps, filters and vectors as sheets of cells."""

import base64
import io
from typing import Any

import torch
from PIL import Image
from torch.nn.functional import interpolate, pad


MAX_MAPS = 64  # that are drawn of a layer
MAX_SIDE = 32  # of a map, in pixels; larger ones are shrunk
MAP_COLUMNS = 32
FILTER_COLUMNS = 16
VECTOR_COLUMNS = 64


def png(image: Image.Image) -> str:
    """Return a `data:` URL of a picture: quick to make, since the training waits for it."""
    data = io.BytesIO()
    image.save(data, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()


def thumbnail(image: Image.Image, side: int = 160) -> str:
    """Return a `data:` URL of a picture of at most this many pixels a side."""
    image = image.copy()
    image.thumbnail((side, side))
    return png(image)


def draw_maps(tensor: torch.Tensor) -> dict[str, Any]:
    """
    Draw the values of a layer for one picture, from the smallest in black to the largest in white.

    Args:
        tensor: of one picture: maps `(1, C, H, W)`, the vectors of some places `(1, T, D)` or `(T, D)`, or a vector.

    Returns:
        `image`, a `data:` URL; the `width` in pixels; the smallest and the largest value, `min` and `max`.
    """
    values = tensor.detach().float()
    if values.ndim == 4:
        maps = values[0, :MAX_MAPS]
        if max(maps.shape[1:]) > MAX_SIDE:
            scale = MAX_SIDE / max(maps.shape[1:])
            size = [max(1, round(side * scale)) for side in maps.shape[1:]]
            maps = interpolate(maps[None], size, mode="area")[0]
    else:
        vectors = values.reshape(-1, values.shape[-1])[:MAX_MAPS]
        if len(vectors) == 1 and vectors.shape[1] > VECTOR_COLUMNS:
            rest = -vectors.shape[1] % VECTOR_COLUMNS
            vectors = pad(vectors, (0, rest), value=vectors.min().item()).view(-1, VECTOR_COLUMNS)
        maps = vectors[None]
    return {**_sheet(maps[:, None], MAP_COLUMNS), "min": values.min().item(), "max": values.max().item()}


def draw_filters(weight: torch.Tensor) -> dict[str, Any]:
    """
    Draw the filters of a convolution: in colour where they take RGB, or else of their first input channel.

    Args:
        weight: `(out_channels, in_channels, height, width)`.

    Returns:
        As `draw_maps`.
    """
    values = weight.detach().float()
    shown = values[:MAX_MAPS] if values.shape[1] == 3 else values[:MAX_MAPS, :1]
    return {**_sheet(shown, FILTER_COLUMNS), "min": values.min().item(), "max": values.max().item()}


def _sheet(maps: torch.Tensor, columns: int) -> dict[str, Any]:
    """Put maps `(N, channels, H, W)`, of one or three channels, side by side with a line between them; one range for all."""
    low, high = maps.min(), maps.max()
    pixels = ((maps - low) / (high - low).clamp(min=1e-12) * 255).nan_to_num().round().byte().cpu()
    number, channels, height, width = pixels.shape
    columns = min(columns, number)
    rows = -(-number // columns)
    pixels = pad(pixels, (0, 1, 0, 1, 0, 0, 0, rows * columns - number), value=255)
    pixels = pixels.view(rows, columns, channels, height + 1, width + 1).permute(0, 3, 1, 4, 2)
    array = pixels.reshape(rows * (height + 1), columns * (width + 1), channels)[:-1, :-1].numpy()
    image = Image.fromarray(array[..., 0] if channels == 1 else array)
    return {"image": png(image), "width": image.width}
