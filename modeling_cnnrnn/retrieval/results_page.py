"""Write a page of the pictures that a search has found."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ..evaluation.pages import data_url, is_small, write_page
from ..models.error_messages_cnnrnn import printable
from ..models.image_loading_cnnrnn import load_image
from .index import SearchResult


THUMBNAIL_SIZE = 400  # pixels: a picture of the page is some 208 wide, and screens have two pixels for one


def write_results(
    path: str | os.PathLike,
    results: Sequence[SearchResult],
    title: str,
    image: Image.Image | None = None,
    summary: Mapping[str, object] | None = None,
) -> Path:
    """
    Write the page, whole or not at all. A picture that is gone or cannot be read has the reason in its place.

    Args:
        path: the HTML file.
        results: the pictures, best first.
        title: heading of the page, such as the sentence that was searched for.
        image: the picture that was searched for.
        summary: names and values shown above the pictures.
    """
    rows = []
    for result in results:
        row: dict[str, Any] = {"name": printable(os.path.basename(result.path)), "score": result.score}
        row["link"] = Path(result.path).absolute().as_uri()
        try:
            row["picture"] = _thumbnail(load_image(result.path))
        except FileNotFoundError:
            row["error"] = "this picture is gone"
        except (OSError, ValueError):
            row["error"] = "this picture can no longer be read"
        rows.append(row)
    template = Path(__file__).with_name("results.html.jinja")
    picture = None if image is None else _thumbnail(image)
    return write_page(path, template, title=title, picture=picture, summary=summary or {}, rows=rows)


def _thumbnail(image: Image.Image) -> dict[str, Any]:
    small = image.copy()
    keeps_pixels = is_small(image, THUMBNAIL_SIZE)
    small.thumbnail((THUMBNAIL_SIZE, THUMBNAIL_SIZE))
    return {"url": data_url(small, "PNG" if keeps_pixels else "JPEG"), "is_small": keeps_pixels}
