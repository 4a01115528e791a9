"""Images as arrays and as files."""

import io

import numpy as np
from PIL import Image

from modeling_cnnrnn import load_image


def rgb(image, **options) -> np.ndarray:
    """What `load_image` makes of an image."""
    loaded = load_image(image, **options)
    assert (type(loaded), loaded.mode) == (Image.Image, "RGB")
    return np.asarray(loaded)


def encoded(image: Image.Image, format: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()
