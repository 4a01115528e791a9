"""Write pages of pictures: one HTML file that needs no other."""

import base64
import io
import os
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from PIL import Image

from ..files import write_text


def write_page(path: str | os.PathLike, template: Path, **values: Any) -> Path:
    """
    Fill a template and write the page, whole or not at all.

    Args:
        path: the HTML file.
        template: file of the template, which may include those of this folder.
        values: what the template shows; all text is escaped.
    """
    loader = FileSystemLoader([template.parent, Path(__file__).parent])
    environment = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    write_text(path, environment.get_template(template.name).render(values))
    return Path(path)


def is_small(image: Image.Image, thumbnail_size: int) -> bool:
    """Return whether a picture is so small that its pixels are kept: drawn pictures are smaller than a thumbnail."""
    return max(image.size) <= thumbnail_size // 2


def data_url(image: Image.Image, image_format: str) -> str:
    """Return a `data:` URL of an image."""
    data = io.BytesIO()
    image.save(data, image_format, quality=82, optimize=True)
    return f"data:image/{image_format.lower()};base64,{base64.b64encode(data.getvalue()).decode()}"
