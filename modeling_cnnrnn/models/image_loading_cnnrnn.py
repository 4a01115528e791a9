"""Load images as RGB from any source: files, URLs, bytes, arrays, tensors."""

import base64
from io import BytesIO
from os import PathLike
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError


try:
    from huggingface_hub.utils import httpx  # what transformers loads its images with
except ImportError:
    import httpx  # type: ignore[no-redef]


# Floats that were rounded to half precision may leave [0, 1] by a little.
ROUNDING = 1e-3


def load_image(
    image: Any, timeout: float | None = None, name: str = "image", input_data_format: str | None = None
) -> Image.Image:
    """
    Load an image from any source as RGB.

    Transparent pixels are blended with white, 16 bits per channel are scaled to 8, the EXIF orientation is applied, and
    an animation gives its first frame. An image in memory that needs none of this is returned itself, not a copy: what
    this function has returned may be passed to it again at no cost.

    Args:
        image: an image of PIL; a path, a URL, a `data:` URI, base64, bytes; or an array or tensor, `(height, width)`,
            `(height, width, channels)` or `(channels, height, width)` with 1, 3 (RGB) or 4 (RGBA) channels. Where both
            ends of a shape may be channels, 3 goes before 1 and 4, then a tensor has them first and an array last.
            `uint8` is in [0, 255] and `uint16` in [0, 65535], other integers in whichever fits; floats are in [0, 1] if
            none is above 1, or else in [0, 255].
        timeout: seconds to wait for a URL; `None` waits without a limit.
        name: the image's name in error messages.
        input_data_format: `"channels_first"` or `"channels_last"`, for an array whose shape does not tell.

    Returns:
        An image of PIL, of mode RGB.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: the file or URL cannot be read.
        ValueError: the content is not a usable image: another format, damaged, too large (PIL's limit against
            decompression bombs), of a wrong shape, with NaN or values out of range.
    """
    if isinstance(image, np.ndarray | torch.Tensor):
        return _array_to_rgb(image, name, input_data_format)
    if isinstance(image, Image.Image):
        source: Any = image
        shown = repr(getattr(image, "filename", "") or f"{image.mode} image of {image.width} x {image.height} pixels")
    elif isinstance(image, bytes):
        source, shown = BytesIO(image), f"{len(image)} bytes"
    elif isinstance(image, str | PathLike):
        source, shown = _open(image, timeout, name)
    else:
        raise ValueError(
            f"`{name}` is a {type(image).__name__}: pass an image of PIL, a path, a URL, an array or a tensor."
        )
    try:
        if isinstance(source, Image.Image):
            return _pil_to_rgb(source, name)
        with Image.open(source) as opened:
            return _pil_to_rgb(opened, name)
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"`{name}` ({shown}) is too large: {error} Raise `PIL.Image.MAX_IMAGE_PIXELS` if you trust it."
        ) from error
    except Exception as error:  # what PIL raises depends on the format and on where the file is broken
        reason = "its format is unknown" if isinstance(error, UnidentifiedImageError) else error
        raise ValueError(f"`{name}` ({shown}) is not an image that can be read: {reason}.") from error


def _open(source: str | PathLike, timeout: float | None, name: str) -> tuple[BytesIO, str]:
    """Read a path, URL or base64 string; returns the content and its name in error messages."""
    text = str(source)
    if text.startswith(("http://", "https://")):
        try:
            response = httpx.get(text, timeout=timeout, follow_redirects=True)
            response.raise_for_status()
        except Exception as error:
            raise OSError(f"`{name}` ({text!r}) cannot be downloaded: {error}") from error
        return BytesIO(response.content), repr(text)
    if text.startswith("data:image/"):
        try:
            return BytesIO(base64.b64decode(text.partition(",")[2])), "a `data:` URI"
        except ValueError as error:
            raise ValueError(f"`{name}` ({text[:40]!r}...) is not an image that can be read: {error}") from error
    try:
        with open(source, "rb") as file:
            return BytesIO(file.read()), repr(text)
    except (OSError, ValueError) as error:
        if content := _base64_image(text):
            return content, "a base64 string"
        shown = repr(text if len(text) <= 200 else text[:40] + "...")
        kind = type(error) if isinstance(error, OSError) else OSError
        reason = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read: {error}"
        raise kind(f"`{name}` ({shown}) {reason}: pass the path of an image file or a URL.") from error


def _base64_image(text: str) -> BytesIO | None:
    """Decode base64; `None` if `text` does not encode an image."""
    try:
        content = base64.b64decode(text)
        Image.open(BytesIO(content)).close()
    except Exception:
        return None
    return BytesIO(content)


def _pil_to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return _array_to_rgb(np.asarray(image), name)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    # an image of a file is decoded and parted from its file, which may be closed
    is_in_memory = type(image) is Image.Image
    return image if is_in_memory and image.mode == "RGB" else image.convert("RGB")


def _array_to_rgb(array: np.ndarray | torch.Tensor, name: str, data_format: str | None = None) -> Image.Image:
    is_tensor = isinstance(array, torch.Tensor)
    if isinstance(array, torch.Tensor):
        array = array.detach().cpu()
        array = (array.float() if array.is_floating_point() else array).numpy()
    shape = tuple(array.shape)
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or 0 in shape:
        raise ValueError(
            f"`{name}` has the shape {shape}: pass (height, width), (height, width, channels) or (channels, height, "
            f"width), none of them 0."
        )
    if data_format is None:
        data_format = _channel_dimension(array.shape, prefer_first=is_tensor)
    if data_format == "channels_first":
        array = array.transpose(1, 2, 0)
    if array.shape[-1] not in (1, 3, 4):
        raise ValueError(f"`{name}` has the shape {shape}: pass 1, 3 (RGB) or 4 (RGBA) channels, first or last.")
    pixels = np.ascontiguousarray(_to_uint8(array, name, shape))
    return _pil_to_rgb(Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels), name)


def _channel_dimension(shape: tuple[int, ...], prefer_first: bool) -> str:
    first, last = shape[0], shape[-1]
    for channels in ((3,), (1, 4)):
        if first in channels and (last not in channels or prefer_first):
            return "channels_first"
        if last in channels:
            return "channels_last"
    return "channels_last"


def _to_uint8(array: np.ndarray, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Scale pixels to [0, 255]."""
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * 255
    if not np.issubdtype(array.dtype, np.integer) and not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"`{name}` holds values of type {array.dtype}: pass integers or floats.")
    low, high = float(array.min()), float(array.max())
    if not np.isfinite(low + high):
        raise ValueError(f"`{name}` holds NaN or infinite pixels (shape {shape}): pass finite ones.")
    if np.issubdtype(array.dtype, np.floating):
        scale, limit = (255.0, 1.0) if high <= 1 + ROUNDING else (1.0, 255.0)
        rounding = ROUNDING * limit
    else:
        scale, limit = (1 / 257, 65535.0) if array.dtype == np.uint16 or high > 255 else (1.0, 255.0)
        rounding = 0.0
    if low < -rounding or high > limit + rounding:
        raise ValueError(
            f"`{name}` holds values from {low:g} to {high:g} (shape {shape}): pass pixels in [0, 1] or in [0, 255], "
            f"before they are normalised."
        )
    return np.rint(array.astype(np.float32) * scale).clip(0, 255).astype(np.uint8)


def is_unit_range(image: Any) -> bool:
    """Return whether `image` is an array of floats in [0, 1]."""
    if isinstance(image, torch.Tensor):
        return image.is_floating_point() and bool(image.max() <= 1 + ROUNDING)
    return isinstance(image, np.ndarray) and image.dtype.kind == "f" and bool(image.max() <= 1 + ROUNDING)


__all__ = ["is_unit_range", "load_image"]
