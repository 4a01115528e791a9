"""
Store the image features of a frozen CNN, computed once, on disk.

A store is one safetensors file of float16 rows that is memory-mapped to read it. While it is being made it has another
name, beside a note of how many rows are done, so that work that was stopped resumes there. Each view of the images (the
plain one, and augmented ones) has a store of its own, so that more views add to those that are there.
"""

import hashlib
import json
import mmap
import os
import random
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import datasets
import numpy as np
import torch
from PIL import Image
from torch.nn.functional import adaptive_avg_pool2d
from tqdm.auto import tqdm

from ..data.batching import RandomResizedCrop, load_stored_image, needed_training_side
from ..files import write_json
from ..models.base_cnnrnn import CnnRnnPreTrainedModel
from ..models.processing_cnnrnn import CnnRnnProcessor


def compute_image_features(
    model: CnnRnnPreTrainedModel,
    processor: CnnRnnProcessor,
    dataset: datasets.Dataset,
    cache_dir: str | os.PathLike,
    batch_size: int = 16,
    save_steps: int = 32,
    progress: Callable = tqdm,
    num_views: int = 1,
    augmentation: RandomResizedCrop | None = None,
    seed: int = 0,
    draft: bool = False,
) -> tuple[np.ndarray | list[np.ndarray], dict[int, str]]:
    """
    Compute the features of all images, or read them from the store if they are there.

    Args:
        model: its CNN is used as it is, in evaluation mode, and under the autocast of the caller.
        dataset: rows with `image` and `image_id`.
        cache_dir: folder of the stores. A store is named by a fingerprint of CNN, preprocessing and images, so that one
            made with others cannot be used by mistake.
        batch_size: images in a batch of the CNN; on a CPU more than 16 are slower, not faster.
        save_steps: batches after which the rows done are noted; later rows are lost if the work is stopped.
        progress: shows the progress over images, as `tqdm` does.
        num_views: views of each image. View 0 is the image as it is, the others are augmented.
        augmentation: makes the other views; its `repr` is part of the name of their stores.
        seed: random seed of the augmentation, which depends on `seed`, the row and the view alone.
        draft: decode large JPEGs at a part of their size, as [`CaptionDataset`] does; such stores have names of their own.

    Returns:
        A memory-mapped float16 array `(num_images, num_regions, num_feature_channels)`, where a captioner without attention
        has one region, the mean, and an alignment with `region_grid_size` the cells of that grid; with several views a list of such arrays, view 0 first. [`CaptionDataset`] takes either.
        And the rows that cannot be read, each with the reason (their features are 0).

    Raises:
        ValueError: `num_views` is less than 1, or more than 1 without an `augmentation` to tell them apart; `model` is an
            ensemble.
    """
    if not isinstance(model, CnnRnnPreTrainedModel):
        raise ValueError(f"`model` is a {type(model).__name__}: stored features are of one CNN alone, leave them out.")
    if num_views < 1 or (num_views > 1 and augmentation is None):
        raise ValueError(
            f"`num_views` is {num_views} and `augmentation` {augmentation}: pass 1, or an augmentation (random crops or "
            "flips) that makes the views after the first."
        )
    fingerprint = features_fingerprint(model, processor, dataset)
    all_cells = features_fingerprint(model, processor, dataset, grid_size=None) if _grid_size(model) == 1 else None
    images = dataset.select_columns(["image"]).cast_column("image", datasets.Image(decode=False))
    views: list[np.ndarray] = []
    broken: dict[int, str] = {}
    for number in range(num_views):
        view = _View(processor, images, number, augmentation if number > 0 else None, seed, draft)
        title = f"Image features, view {number + 1}/{num_views}" if num_views > 1 else "Image features"
        path = Path(cache_dir) / f"{fingerprint}{view.suffix}.safetensors"
        if all_cells is not None and not path.exists():
            _average_cells(Path(cache_dir) / f"{all_cells}{view.suffix}.safetensors", path)
        rows, view_broken = _compute_view(model, view, path, batch_size, save_steps, partial(progress, desc=title))
        views.append(rows)
        broken |= view_broken
    return views if num_views > 1 else views[0], broken


@dataclass
class _View:
    """One way to look at all images of a dataset, which are not decoded."""

    processor: CnnRnnProcessor
    images: datasets.Dataset
    number: int
    augmentation: RandomResizedCrop | None
    seed: int
    draft: bool

    def __post_init__(self):
        image_processor = self.processor.image_processor
        self.needed_side = needed_training_side(image_processor, self.augmentation) if self.draft else None

    @property
    def suffix(self) -> str:
        """What tells the store of this view from that of the plain images."""
        suffix = ""
        if self.augmentation is not None:
            suffix += "-" + hashlib.sha256(f"{self.augmentation} {self.seed} {self.number}".encode()).hexdigest()[:16]
        if self.needed_side is not None:
            suffix += f"-draft{self.needed_side}"
        return suffix

    def read(self, rows: Sequence[int]) -> tuple[torch.Tensor, dict[int, str]]:
        """Return the `pixel_values` of some rows, and those that cannot be read, each with the reason."""
        opened, broken = [], {}
        for row in rows:
            try:
                image = load_stored_image(self.images[row]["image"], self.needed_side)
                if self.augmentation is not None:
                    image = self.augmentation(image, random.Random(f"{self.seed}-{row}-view-{self.number}"))
            except (OSError, ValueError) as error:
                broken[row] = str(error)
                image = Image.new("RGB", (64, 64))
            opened.append(image)
        return self.processor(images=opened, images_kwargs={"return_tensors": "pt"})["pixel_values"], broken


def _compute_view(
    model: CnnRnnPreTrainedModel, view: _View, path: Path, batch_size: int, save_steps: int, progress: Callable
) -> tuple[np.ndarray, dict[int, str]]:
    """Compute one view of all images, or read it from its store at `path` if it is there."""
    notes = path.with_suffix(".json")
    if path.exists():
        return _map_rows(path), _read_notes(notes)[1]
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".partial")
    done, broken = _read_notes(notes) if unfinished.exists() and notes.exists() else (0, {})
    rows: np.ndarray | None = _map_rows(unfinished, "r+") if done else None
    num_images = len(view.images)
    was_training = model.training
    model.eval()
    with progress(total=num_images, initial=done, unit="image") as bar:
        for start in range(done, num_images, batch_size):
            batch = range(start, min(start + batch_size, num_images))
            pixel_values, batch_broken = view.read(batch)
            features = _features_of(model, pixel_values)
            features[[row - start for row in batch_broken]] = 0
            broken |= batch_broken
            if rows is None:
                rows = _create_rows(unfinished, (num_images, *features.shape[1:]))
            rows[batch.start : batch.stop] = features
            if (start // batch_size + 1) % save_steps == 0:
                rows.flush()  # type: ignore[attr-defined]
                write_json(notes, {"done": batch.stop, "broken": broken})
            bar.update(len(batch))
    model.train(was_training)
    write_json(notes, {"done": num_images, "broken": broken})
    if rows is not None:
        rows.flush()  # type: ignore[attr-defined]
        os.replace(unfinished, path)
    return _map_rows(path), broken


def _average_cells(cells: Path, path: Path, block: int = 256) -> None:
    """Make a store of means from one of all cells, if there is one: that takes seconds, and the CNN minutes."""
    if not cells.exists():
        return
    rows, unfinished = _map_rows(cells), path.with_suffix(".averaging")
    means = _create_rows(unfinished, (len(rows), 1, rows.shape[2]))
    for start in range(0, len(rows), block):
        part = rows[start : start + block]
        means[start : start + block] = part.mean(axis=1, keepdims=True, dtype=np.float32)
    means.flush()  # type: ignore[attr-defined]
    write_json(path.with_suffix(".json"), json.loads(cells.with_suffix(".json").read_text(encoding="utf-8")))
    os.replace(unfinished, path)


@torch.inference_mode()
def _features_of(model: CnnRnnPreTrainedModel, pixel_values: torch.Tensor) -> np.ndarray:
    """Run the CNN on a batch: float16 `(batch_size, num_regions, num_feature_channels)`."""
    encoder = model.get_encoder()
    feature_map, _ = encoder.compute_feature_map(pixel_values.to(encoder.device))
    if size := _grid_size(model):
        height, width = feature_map.shape[2:]
        feature_map = adaptive_avg_pool2d(feature_map.float(), (min(size, height), min(size, width)))
    return feature_map.flatten(2).transpose(1, 2).half().cpu().numpy()


def _grid_size(model: CnnRnnPreTrainedModel) -> int | None:
    """Return the height and width of the grid that all a model reads of a feature map fits in; `None` for all cells."""
    return (
        1 if getattr(model.config, "attention_type", "") == "none" else getattr(model.config, "region_grid_size", None)
    )


def _read_notes(path: Path) -> tuple[int, dict[int, str]]:
    """Read how many rows of a store are done, and which cannot be read."""
    notes = json.loads(path.read_text(encoding="utf-8"))
    return notes["done"], {int(row): reason for row, reason in notes["broken"].items()}


def features_fingerprint(
    model: CnnRnnPreTrainedModel,
    processor: CnnRnnProcessor,
    dataset: datasets.Dataset,
    grid_size: int | Literal["as read"] | None = "as read",
) -> str:
    """
    Name the features of these images by this CNN, in this precision, after this preprocessing.

    Args:
        grid_size: height and width of the grid of cells, `None` for all cells; by default what the model reads.
    """
    if grid_size == "as read":
        grid_size = _grid_size(model)
    digest = hashlib.sha256()
    # a captioner that was saved and loaded computes the same, though its settings say where they came from
    without = ("_name_or_path", "dtype", "auto_map")
    encoder_config, preprocessing = (
        {key: value for key, value in settings.to_dict().items() if key not in without}  # type: ignore[union-attr]
        for settings in (model.config.encoder, processor.image_processor)
    )
    settings = [
        encoder_config,
        model.config.vision_feature_layer,
        grid_size == 1,
        preprocessing,
    ]
    if (grid_size or 1) > 1:
        settings.append(f"grid {grid_size}")
    if getattr(model.config, "feature_map_size", None):
        settings.append(f"feature map {model.config.feature_map_size}")
    if torch.is_autocast_enabled(model.device.type):
        settings.append(str(torch.get_autocast_dtype(model.device.type)))
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.get_encoder().cnn.state_dict().items()):
        digest.update(name.encode())
        values = tensor.detach().float().cpu() + 0.0  # a moving average makes 0.0 of -0.0
        digest.update(values.contiguous().numpy().tobytes())
    images = dataset.select_columns(["image", "image_id"]).cast_column("image", datasets.Image(decode=False))
    for row in images:
        content = row["image"]["bytes"]
        if content is None:
            status = os.stat(row["image"]["path"])
            content = f"{row['image']['path']} {status.st_size} {status.st_mtime_ns}".encode()
        digest.update(f"{row['image_id']} {len(content)} ".encode() + content[-4096:])
    return digest.hexdigest()[:32]


class _Rows(np.memmap):
    """Stored rows that another process maps itself: pickling a plain memory map copies the whole file."""

    def __reduce__(self):
        is_whole = isinstance(self.base, mmap.mmap)  # not a part of the rows
        return (_map_rows, (self.filename,)) if is_whole else super().__reduce__()


def _create_rows(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Create an empty safetensors file with one float16 tensor, `image_features`, open for writing."""
    size = 2 * int(np.prod(shape))
    header = {"image_features": {"dtype": "F16", "shape": list(shape), "data_offsets": [0, size]}}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the format aligns data to 8 bytes
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + size)
    return _map_rows(path, "r+")


def _map_rows(path: str | os.PathLike, mode: str = "r") -> np.ndarray:
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        shape = tuple(json.loads(file.read(length))["image_features"]["shape"])
    return _Rows(path, np.float16, mode, offset=8 + length, shape=shape)  # type: ignore[call-overload]
