"""How often pictures are decoded and made RGB."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from PIL import Image, ImageFile, ImageOps


@contextmanager
def counted_pictures() -> Iterator[Counter]:
    """Count the files that are decoded (`"decoded"`), and the pictures converted, copied or turned (`"converted"`)."""
    counts: Counter = Counter()
    is_inside = False  # one of these functions calls another

    def counted(name, function):
        def count(*args, **kwargs):
            nonlocal is_inside
            counts[name] += not is_inside
            before, is_inside = is_inside, is_inside or name == "converted"
            try:
                return function(*args, **kwargs)
            finally:
                is_inside = before

        return count

    with pytest.MonkeyPatch.context() as patch:
        for place, function in ((Image.Image, "convert"), (Image.Image, "copy"), (ImageOps, "exif_transpose")):
            patch.setattr(place, function, counted("converted", getattr(place, function)))
        load_prepare = ImageFile.ImageFile.load_prepare

        def decode(image):
            counts["decoded"] += 1
            return load_prepare(image)

        patch.setattr(ImageFile.ImageFile, "load_prepare", decode)
        yield counts
