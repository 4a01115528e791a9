"""
What a frozen CNN sees in each image of a dataset, computed once and kept on disk.

A store is one safetensors file of float16 rows that is memory-mapped when it is read. While it is being made it bears
another name, beside a note of how many rows are done, so that work that was stopped goes on where it stood. Each view of
the images (the plain one, and augmented ones) has a store of its own, so that more views add to those that are there.
"""

import hashlib
import json
import mmap
import os
import random
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from ..data.batching import RandomResizedCrop, load_stored_image
from ..files import write_json
from ..models.modeling_cnnrnn import CnnRnnForConditionalGeneration
from ..models.processing_cnnrnn import CnnRnnProcessor


def compute_image_features(
    model: CnnRnnForConditionalGeneration,
    processor: CnnRnnProcessor,
    dataset: datasets.Dataset,
    cache_dir: str | os.PathLike,
    batch_size: int = 16,
    save_steps: int = 32,
    progress: Callable = tqdm,
    num_views: int = 1,
    augmentation: RandomResizedCrop | None = None,
    seed: int = 0,
) -> tuple[np.ndarray | list[np.ndarray], dict[int, str]]:
    """
    The features of all images, from the store if they are there.

    Args:
        model: its CNN is used as it is, in evaluation mode, and under the autocast of the caller.
        dataset: rows with `image` and `image_id`.
        cache_dir: the stores' folder. A store is named by a fingerprint of CNN, preprocessing and images, so that one
            made with others cannot be used by mistake.
        batch_size: images that go through the CNN together; on a CPU more than 16 are slower, not faster.
        save_steps: batches after which the rows done are noted; what comes after is lost if the work is stopped.
        num_views: looks at each image. View 0 is the image as it is, the others are augmented.
        augmentation: what the other views are made with; its `repr` is part of the name of their stores.
        seed: of the augmentation, which is drawn from `seed`, the row and the view alone.

    Returns:
        A memory-mapped float16 array `(num_images, num_regions, num_feature_channels)`, where a model without attention
        has one region, the mean; of several views a list of such arrays, view 0 first. [`CaptionDataset`] takes either.
        And the rows that could not be read, each with the reason (their features are 0).

    Raises:
        ValueError: `num_views` is less than 1, or more than 1 without an `augmentation` to tell them apart.
    """
    if num_views < 1 or (num_views > 1 and augmentation is None):
        raise ValueError(
            f"`num_views` is {num_views} and `augmentation` {augmentation}: pass 1, or an augmentation (random crops or "
            "flips) that makes the views after the first."
        )
    fingerprint = features_fingerprint(model, processor, dataset)
    views: list[np.ndarray] = []
    broken: dict[int, str] = {}
    for view in range(num_views):
        name, augment = fingerprint, None
        if view > 0 and augmentation is not None:
            augment = partial(_augment, augmentation, seed, view)
            name += "-" + hashlib.sha256(f"{augmentation} {seed} {view}".encode()).hexdigest()[:16]
        title = f"Image features, view {view + 1}/{num_views}" if num_views > 1 else "Image features"
        path = Path(cache_dir) / f"{name}.safetensors"
        rows, view_broken = _compute_view(
            model, processor, dataset, path, augment, batch_size, save_steps, partial(progress, desc=title)
        )
        views.append(rows)
        broken |= view_broken
    return views if num_views > 1 else views[0], broken


def _augment(augmentation: RandomResizedCrop, seed: int, view: int, row: int, image: Image.Image) -> Image.Image:
    return augmentation(image, random.Random(f"{seed}-{row}-view-{view}"))


def _compute_view(
    model,
    processor,
    dataset,
    path: Path,
    augment: Callable | None,
    batch_size: int,
    save_steps: int,
    progress: Callable,
) -> tuple[np.ndarray, dict[int, str]]:
    """One view of all images, from its store at `path` if it is there."""
    notes_path = path.with_suffix(".json")
    if path.exists():
        return _map_rows(path), _broken(json.loads(notes_path.read_text(encoding="utf-8")))

    pooled = model.config.attention_type == "none"
    images = dataset.select_columns(["image"]).cast_column("image", datasets.Image(decode=False))
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".partial")
    notes: dict = {"done": 0, "broken": {}}
    if unfinished.exists() and notes_path.exists():
        notes = json.loads(notes_path.read_text(encoding="utf-8"))
    rows: np.ndarray | None = _map_rows(unfinished, "r+") if notes["done"] else None
    encoder = model.get_encoder()
    was_training = model.training
    model.eval()
    with progress(total=len(images), initial=notes["done"], unit="image") as bar:
        for start in range(notes["done"], len(images), batch_size):
            batch = [images[index]["image"] for index in range(start, min(start + batch_size, len(images)))]
            features = _features_of(encoder, processor, batch, start, notes["broken"], pooled, augment)
            if rows is None:
                rows = _create_rows(unfinished, (len(images), *features.shape[1:]))
            rows[start : start + len(batch)] = features
            if (start // batch_size + 1) % save_steps == 0:
                rows.flush()  # type: ignore[attr-defined]
                write_json(notes_path, notes | {"done": start + len(batch)})
            bar.update(len(batch))
    model.train(was_training)
    write_json(notes_path, notes | {"done": len(images)})
    if rows is not None:
        rows.flush()  # type: ignore[attr-defined]
        os.replace(unfinished, path)
    return _map_rows(path), _broken(notes)


def features_fingerprint(
    model: CnnRnnForConditionalGeneration, processor: CnnRnnProcessor, dataset: datasets.Dataset
) -> str:
    """A name for the features of these images by this CNN, in this precision, after this preprocessing."""
    digest = hashlib.sha256()
    # a captioner that was saved and loaded sees the same, though its settings say where they came from
    without = ("_name_or_path", "dtype", "auto_map")
    encoder_config, preprocessing = (
        {key: value for key, value in settings.to_dict().items() if key not in without}
        for settings in (model.config.encoder, processor.image_processor)
    )
    settings = [
        encoder_config,
        model.config.vision_feature_layer,
        model.config.attention_type == "none",
        preprocessing,
    ]
    if torch.is_autocast_enabled(model.device.type):
        settings.append(str(torch.get_autocast_dtype(model.device.type)))
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.get_encoder().cnn.state_dict().items()):
        digest.update(name.encode())
        values = tensor.detach().float().cpu() + 0.0  # a moving average has made 0.0 of -0.0
        digest.update(values.contiguous().numpy().tobytes())
    images = dataset.select_columns(["image", "image_id"]).cast_column("image", datasets.Image(decode=False))
    for row in images:
        content = row["image"]["bytes"]
        if content is None:
            status = os.stat(row["image"]["path"])
            content = f"{row['image']['path']} {status.st_size} {status.st_mtime_ns}".encode()
        digest.update(f"{row['image_id']} {len(content)} ".encode() + content[-4096:])
    return digest.hexdigest()[:32]


def _features_of(
    encoder, processor, batch: list, start: int, broken: dict, pooled: bool, augment: Callable | None
) -> np.ndarray:
    opened = []
    for row, value in enumerate(batch, start):
        try:
            image = load_stored_image(value)
            opened.append(image if augment is None else augment(row, image))
        except (OSError, ValueError) as error:
            broken[str(row)] = str(error)
            opened.append(Image.new("RGB", (64, 64)))
    pixel_values = processor(images=opened, images_kwargs={"return_tensors": "pt"})["pixel_values"]
    with torch.inference_mode():
        features, _ = encoder.get_image_features(pixel_values.to(encoder.device))
        if pooled:
            features = features.float().mean(dim=1, keepdim=True)
    array = features.half().cpu().numpy()
    array[[str(row) in broken for row in range(start, start + len(batch))]] = 0
    return array


def _broken(notes: dict) -> dict[int, str]:
    return {int(row): reason for row, reason in notes["broken"].items()}


class _Rows(np.memmap):
    """Stored rows. A process that receives them maps the file itself: plain memory maps travel as a copy of the whole."""

    def __reduce__(self):
        is_whole = isinstance(self.base, mmap.mmap)  # and not a part of it
        return (_map_rows, (self.filename,)) if is_whole else super().__reduce__()


def _create_rows(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """An empty safetensors file with one float16 tensor, `image_features`, open for writing."""
    size = 2 * int(np.prod(shape))
    header = {"image_features": {"dtype": "F16", "shape": list(shape), "data_offsets": [0, size]}}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the format wants the data aligned
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + size)
    return _map_rows(path, "r+")


def _map_rows(path: str | os.PathLike, mode: str = "r") -> np.ndarray:
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        shape = tuple(json.loads(file.read(length))["image_features"]["shape"])
    return _Rows(path, np.float16, mode, offset=8 + length, shape=shape)  # type: ignore[call-overload]
