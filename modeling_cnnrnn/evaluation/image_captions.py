"""Caption image files: find them, generate sentences batch by batch, write a table."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..files import atomic_path, write_text
from ..models.image_files_cnnrnn import CAMERA_RAW_SUFFIXES
from ..models.image_loading_cnnrnn import load_image


FORMATS = (".csv", ".jsonl", ".parquet")
# pictures of phones and cameras, of which PIL does not know before it has a plugin, or never
OTHER_SUFFIXES = CAMERA_RAW_SUFFIXES | {".heic", ".heif", ".hif"}


@dataclass
class ImageCaptions:
    """
    The sentences about one image.

    Attributes:
        source: the file or URL.
        captions: the sentences, best first; none if the image cannot be read.
        error: why the image cannot be read.
    """

    source: str
    captions: list[str] = field(default_factory=list)
    error: str | None = None


def find_images(sources: Sequence[str]) -> list[str]:
    """
    List files and URLs, and the images below each folder, in order.

    Raises:
        ValueError: there is no image in a folder.
        FileNotFoundError: a file does not exist.
    """
    found: list[str] = []
    for source in sources:
        if source.startswith(("http://", "https://")):
            found.append(source)
        elif os.path.isdir(source):
            inside = images_below(source)
            if not inside:
                raise ValueError(
                    f"`images` names the folder '{source}', which has no image in it: pass another folder."
                )
            found += inside
        elif os.path.exists(source):
            found.append(source)
        else:
            raise FileNotFoundError(f"`images` names '{source}', which does not exist: pass a file, a folder or a URL.")
    return found


def images_below(folder: str | Path) -> list[str]:
    """List the files of a folder that are called like images, in order, without hidden ones and those in hidden folders."""
    endings = {*Image.registered_extensions(), *OTHER_SUFFIXES}
    found: list[Path] = []
    for place, folders, names in os.walk(str(folder)):
        folders[:] = [name for name in folders if name[0] != "."]
        found += [Path(place, name) for name in names if name[0] != "." and Path(name).suffix.lower() in endings]
    return list(map(str, sorted(found)))


@torch.inference_mode()
def caption_images(
    model: Any,
    processor: Any,
    sources: Sequence[str],
    batch_size: int = 16,
    prompt: str | None = None,
    **generate_kwargs: Any,
) -> Iterator[ImageCaptions]:
    """
    Generate sentences about images, batch by batch, in their order.

    Args:
        model: a captioner, [`CnnRnnForConditionalGeneration`].
        processor: its [`CnnRnnProcessor`].
        sources: files and URLs, see [`find_images`].
        batch_size: images in a batch.
        prompt: text that each sentence begins with.
        generate_kwargs: arguments of `generate`, such as `num_beams`.

    Returns:
        An iterator with one item for each source; an image that cannot be read has an error in place of sentences.
    """
    for start in range(0, len(sources), batch_size):
        batch = [ImageCaptions(source) for source in sources[start : start + batch_size]]
        images = []
        for item in batch:
            try:
                images.append(load_image(item.source))
            except (OSError, ValueError) as error:
                item.error = " ".join(str(error).split())
        if images:
            inputs = processor(images=images, text=prompt or None, return_tensors="pt").to(model.device)
            inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
            texts = processor.batch_decode(model.generate(**inputs, **generate_kwargs), skip_special_tokens=True)
            each = len(texts) // len(images)
            for index, item in enumerate(item for item in batch if item.error is None):
                item.captions = texts[index * each : (index + 1) * each]
        yield from batch


def write_table(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """
    Write rows whole or not at all, as CSV, JSONL or Parquet, by the ending of `path`.

    Raises:
        ValueError: the ending is another one.
    """
    path = check_table(path)
    if path.suffix == ".jsonl":
        write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        return
    import pandas

    table = pandas.DataFrame(rows)
    with atomic_path(path) as partial:
        if path.suffix == ".csv":
            table.to_csv(partial, index=False)
        else:
            table.to_parquet(partial, index=False)


def check_table(path: str | Path) -> Path:
    """
    Check the ending of a table's path.

    Raises:
        ValueError: it is none of a table's.
    """
    if Path(path).suffix not in FORMATS:
        raise ValueError(f"`output` is '{path}': pass a file that ends in {', '.join(FORMATS)}.")
    return Path(path)
