"""Load images as RGB from any source: files, URLs, bytes, arrays, tensors."""

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from os import PathLike
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from transformers.utils import logging

from .error_messages_cnnrnn import shown
from .image_download_cnnrnn import MAX_BYTES, download
from .image_files_cnnrnn import (
    describe_content,
    has_readable_exif,
    has_sixteen_bit_colors,
    largest_declared_value,
    open_image,
    prepare_decoding,
    transpose_method,
    without_damaged_chunks,
)


logger = logging.get_logger(__name__)

# Floats that were rounded to half precision may leave [0, 1] by a little.
ROUNDING = 1e-3
# Cameras and scanners of these depths save their values in 16 bits as they are.
SENSOR_BITS = (8, 10, 12, 14, 16)
# pixels that are made RGB at a time, where this takes several copies of them
STRIP_PIXELS = 2**22


def load_image(
    image: Any,
    timeout: float | None = None,
    name: str = "image",
    input_data_format: str | None = None,
    min_side: int | None = None,
    allow_private_addresses: bool = True,
) -> Image.Image:
    """
    Load an image from any source as RGB.

    Transparent pixels are blended with white, 16 bits per channel are scaled to 8, the EXIF orientation is applied, and
    an animation gives its first frame. An image in memory that needs none of this is returned itself, not a copy: what
    this function has returned may be passed to it again at no cost.

    Files of strangers are safe to load: only formats of pictures are opened (HEIC where `pillow-heif` is installed), a
    picture has at most 2**26 pixels, and a JPEG of up to 2**28 is decoded at a part of its size. Damage beside the pixels
    (EXIF, text, profiles) is ignored.

    Args:
        image: an image of PIL; a path, a URL, a `data:` URI, base64, bytes; or an array or tensor, `(height, width)`,
            `(height, width, channels)` or `(channels, height, width)` with 1, 3 (RGB) or 4 (RGBA) channels. Where both
            ends of a shape may be channels, 3 goes before 1 and 4, then a tensor has them first and an array last.
            `uint8` is in [0, 255]; wider integers are in [0, 2**bits - 1] for the smallest of 8, 10, 12, 14 and 16 bits
            that holds their largest value, unless the file of the image says another; floats are in [0, 1] if none is
            above 1, or else in [0, 255].
        timeout: seconds that a download may take in all, redirects included; `None` is 60, `math.inf` has no limit. At
            most 64 MiB are downloaded.
        name: the image's name in error messages.
        input_data_format: `"channels_first"` or `"channels_last"`, for an array whose shape does not tell.
        min_side: if given, a JPEG is decoded at a half, a quarter or an eighth of its size where neither side becomes
            shorter than this many pixels.
        allow_private_addresses: whether a URL may be at a private, loopback or link-local address. Pass `False` for
            URLs of strangers.

    Returns:
        An image of PIL, of mode RGB.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: the file or URL cannot be read.
        ValueError: the content is not a usable image: another format, damaged, too large, of a wrong shape, with NaN or
            values out of range.
    """
    if isinstance(image, np.ndarray | torch.Tensor):
        return _array_to_rgb(image, name, input_data_format)
    if isinstance(image, Image.Image):
        label = shown(getattr(image, "filename", "") or f"{image.mode} image of {image.width} x {image.height} pixels")
        with _one_sentence(name, label):
            prepare_decoding(image, min_side)
            return _pil_to_rgb(image, name)
    if isinstance(image, bytes):
        return _file_to_rgb(BytesIO(image), name, shown(image), min_side)
    if not isinstance(image, str | PathLike):
        raise ValueError(
            f"`{name}` is a {type(image).__name__}: pass an image of PIL, a path, a URL, an array or a tensor."
        )
    file, label = _open(image, timeout, name, allow_private_addresses)
    with file:
        return _file_to_rgb(file, name, label, min_side, file_name=str(image)[-255:])


def _open(source: str | PathLike, timeout: float | None, name: str, allow_private: bool) -> tuple[BinaryIO, str]:
    """Open a path, URL or base64 string; returns a file and its name in error messages."""
    text = str(source)
    start = text[:32].lower()
    if start.startswith(("http://", "https://")):
        try:
            return BytesIO(download(text, timeout, allow_private)), shown(text)
        except Exception as error:
            kind = ValueError if isinstance(error, ValueError) and "`timeout`" in str(error) else OSError
            raise kind(f"`{name}` ({shown(text)}) cannot be downloaded: {shown(error)}.") from error
    if start.startswith("data:"):
        try:
            return BytesIO(base64.b64decode(text.partition(",")[2])), "a `data:` URI"
        except ValueError as error:
            raise ValueError(
                f"`{name}` ({shown(text, 60)}) is not an image that can be read: {shown(error)}."
            ) from error
    try:
        file = open(source, "rb")  # noqa: SIM115 (the caller closes it)
    except (OSError, ValueError) as error:
        if content := _base64_image(text):
            return content, "a base64 string"
        kind = type(error) if isinstance(error, OSError) else OSError
        reason = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read, {shown(error)}"
        raise kind(f"`{name}` ({shown(text)}) {reason}: pass the path of an image file or a URL.") from error
    if file.seekable():
        return file, shown(text)
    with file:  # a pipe
        return BytesIO(file.read(MAX_BYTES)), shown(text)


def _base64_image(text: str) -> BytesIO | None:
    """Decode base64; `None` if `text` does not encode an image."""
    try:
        content = BytesIO(base64.b64decode(text))
        open_image(content)
    except Image.DecompressionBombError:
        return content
    except Exception:
        return None
    return content


@contextmanager
def _one_sentence(name: str, label: str, file: BinaryIO | None = None, file_name: str = "") -> Iterator[None]:
    """Turn whatever PIL raises, which depends on the format and on where a file is broken, into one sentence."""
    try:
        yield
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"`{name}` ({label}) is too large: {shown(error).rstrip('.')}; if you trust it, pass a smaller copy, as in "
            f"`Image.open(path).reduce(4)`."
        ) from error
    except Exception as error:
        reason = None
        if file is not None:
            file.seek(0)
            reason = describe_content(file.read(512), file_name)
        if isinstance(error, UnidentifiedImageError):
            reason = reason or "its format is unknown, or its header damaged"
        elif isinstance(error, ValueError) and str(error).startswith((f"`{name}` ", "it is ")):  # a sentence of ours
            reason = shown(error, 400).rstrip(".").replace(f"`{name}` ", "it ", 1)
        reason = reason or f"it is damaged or of an unknown kind ({shown(error).rstrip('.')})"
        raise ValueError(f"`{name}` ({label}) is not an image that can be read: {reason}.") from error


def _file_to_rgb(
    file: BinaryIO, name: str, label: str, min_side: int | None = None, file_name: str = ""
) -> Image.Image:
    with _one_sentence(name, label, file, file_name):
        try:
            return _pil_to_rgb(open_image(file, file_name, min_side), name)
        except Image.DecompressionBombError:
            raise
        except Exception:
            repaired = without_damaged_chunks(file)
            if repaired is None:
                raise
            return _pil_to_rgb(open_image(repaired, file_name, min_side), name)


def _pil_to_rgb(image: Image.Image, name: str) -> Image.Image:
    largest_value = largest_declared_value(image)
    is_deep = has_sixteen_bit_colors(image)
    image.load()
    method = transpose_method(image)  # PIL reads the EXIF of a PNG with its pixels, and turns a TIFF itself
    rgb = image
    if is_deep:
        rgb = _brightened(rgb)
    if rgb.mode.startswith("I;16") or rgb.mode in ("I", "F"):
        rgb = _array_to_rgb(np.asarray(rgb), name, largest_value=largest_value)
    elif _has_transparency(rgb):
        rgb = _on_white(rgb)
    elif rgb.mode != "RGB":
        rgb = rgb.convert("RGB")
    if method is not None:
        rgb = rgb.transpose(method)
    if rgb is image and type(image) is Image.Image and has_readable_exif(image):
        return image
    if type(rgb) is not Image.Image or rgb is image:
        rgb = rgb._new(rgb.im)  # parted from its file, which may be closed; the pixels are not copied
    # what the pixels were made of is not applied again: orientation, transparency
    profile = rgb.info.get("icc_profile")
    rgb.info = {"icc_profile": profile} if isinstance(profile, bytes) else {}
    return rgb


def _has_transparency(image: Image.Image) -> bool:
    """Return whether pixels of an image may be transparent."""
    # a text in a PNG that calls itself so is not meant
    if not isinstance(image.info.get("transparency", 0), int | bytes | tuple):
        del image.info["transparency"]
    return image.has_transparency_data


def _on_white(image: Image.Image) -> Image.Image:
    """Blend transparent pixels with white."""
    rows = max(1, STRIP_PIXELS // image.width)
    if image.height <= rows:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    rgb = Image.new("RGB", image.size)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        rgb.paste(_on_white(strip), (0, top))
    return rgb


def _brightened(image: Image.Image) -> Image.Image:
    """Scale colours of 16 bits, of which PIL keeps the upper 8, that hold values of 14, 12 or 10 bits."""
    is_color = [band != "A" for band in image.getbands()]
    extrema = image.getextrema()
    pairs = extrema if isinstance(extrema[0], tuple) else (extrema,)
    highest = max(int(high) for (_, high), counts in zip(pairs, is_color, strict=True) if counts)
    bits = next(bits for bits in SENSOR_BITS[1:] if highest < 2 ** (bits - 8))
    if highest == 0 or bits == 16:
        return image
    _say_scaled(bits)
    scaled = [min(255, round(value * 255 / (2 ** (bits - 8) - 1))) for value in range(256)]
    return image.point([value for counts in is_color for value in (scaled if counts else range(256))])


def _say_scaled(bits: int) -> None:
    logger.warning_once(
        f"An image of 16 bits holds no value above {2**bits - 1}: it is scaled as one of {bits} bits. If it is as dark as "
        f"that, pass its values divided by 65535."
    )


def _array_to_rgb(
    array: np.ndarray | torch.Tensor, name: str, data_format: str | None = None, largest_value: int | None = None
) -> Image.Image:
    is_tensor = isinstance(array, torch.Tensor)
    if isinstance(array, torch.Tensor):
        array = array.detach().cpu()
        array = (array.float() if array.is_floating_point() else array).numpy()
    shape = tuple(array.shape)
    if array.ndim == 2:
        array, data_format = array[..., None], "channels_last"
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
    pixels = np.ascontiguousarray(_to_uint8(array, name, shape, largest_value))
    return _pil_to_rgb(Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels), name)


def _channel_dimension(shape: tuple[int, ...], prefer_first: bool) -> str:
    first, last = shape[0], shape[-1]
    for channels in ((3,), (1, 4)):
        if first in channels and (last not in channels or prefer_first):
            return "channels_first"
        if last in channels:
            return "channels_last"
    return "channels_last"


def _to_uint8(array: np.ndarray, name: str, shape: tuple[int, ...], largest_value: int | None = None) -> np.ndarray:
    """Scale pixels to [0, 255]."""
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * 255
    if array.dtype.kind not in "iuf":
        raise ValueError(f"`{name}` holds values of type {array.dtype}: pass integers or floats.")
    low, high = float(array.min()), float(array.max())
    if not np.isfinite(low + high):
        raise ValueError(f"`{name}` holds NaN or infinite pixels (shape {shape}): pass finite ones.")
    if array.dtype.kind == "f":
        limit = 1.0 if high <= 1 + ROUNDING else 255.0
        rounding = ROUNDING * limit
    else:
        limit, rounding = float(_largest_value(high, array.dtype, largest_value)), 0.0
    if low < -rounding or high > limit + rounding:
        raise ValueError(
            f"`{name}` holds values from {low:g} to {high:g} (shape {shape}): pass pixels in [0, 1] or in [0, 255], "
            f"before they are normalised."
        )
    scaled = array.astype(np.float32)
    scaled *= np.float32(255 / limit)
    return np.rint(scaled, out=scaled).clip(0, 255, out=scaled).astype(np.uint8)


def _largest_value(high: float, dtype: np.dtype, declared: int | None) -> int:
    """Return the value that is white: the declared one, or the largest of the smallest depth that holds `high`."""
    if declared is not None and 0 < high <= declared <= 65535:
        return declared
    bits = next((bits for bits in SENSOR_BITS if high < 2**bits), 16)
    is_wide = dtype.kind == "u" and dtype.itemsize == 2
    if high > 0 and bits < 16 and (is_wide or bits > 8):
        _say_scaled(bits)
    return 2**bits - 1


def is_unit_range(image: Any) -> bool:
    """Return whether `image` is an array of floats in [0, 1]."""
    if isinstance(image, torch.Tensor):
        return image.is_floating_point() and bool(image.max() <= 1 + ROUNDING)
    return isinstance(image, np.ndarray) and image.dtype.kind == "f" and bool(image.max() <= 1 + ROUNDING)


__all__ = ["is_unit_range", "load_image"]
