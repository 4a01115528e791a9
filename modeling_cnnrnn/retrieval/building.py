"""
Index the pictures of a folder, and bring an index up to date.

Pictures are embedded where they are new or their files have changed. Each shard is noted as soon as it is written, so that work
that was stopped resumes there.
"""

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm.auto import tqdm

from ..evaluation.image_captions import images_below
from ..files import FolderLock
from ..models.error_messages_cnnrnn import shown
from .approximate import is_sound, update_graph
from .embedding import Query, bank_digest, embed_images, embed_text, model_fingerprint, score_with_bank
from .storage import (
    GRAPH_NAME,
    MANIFEST_NAME,
    DamagedIndexError,
    Manifest,
    PictureFile,
    Shard,
    StoredPictures,
    check_index_dir,
    shard_number,
    shard_paths,
    valid_rows,
)


# a shard of 26 regions of 256 values has 13 MB, and is what a process that is killed loses
ROWS_PER_SHARD = 1024
BANK_SIZE = 500  # sentences of the query bank that are used, spread over all


@dataclass
class IndexUpdate:
    """
    What an update of an index did.

    Attributes:
        num_pictures: pictures in the index.
        num_embedded: pictures that were embedded, new or changed.
        num_removed: pictures whose files are gone.
        unreadable: why a file that looks like a picture is none, by its name.
        damaged: shards that could not be read, whose pictures were embedded again.
        num_unknown: sentences of the query bank without a word that the model knows, which are left out.
    """

    num_pictures: int = 0
    num_embedded: int = 0
    num_removed: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)
    damaged: list[str] = field(default_factory=list)
    num_unknown: int = 0


def build_index(
    folder: str | os.PathLike,
    index_dir: str | os.PathLike,
    model: Any,
    processor: Any,
    query_bank: Sequence[str] | None = None,
    approximate: bool | None = None,
    overwrite: bool = False,
    batch_size: int = 16,
    rows_per_shard: int = ROWS_PER_SHARD,
    progress: Callable = tqdm,
) -> IndexUpdate:
    """
    Index the pictures in a folder and below it, or bring their index up to date.

    Args:
        folder: folder of the pictures. Hidden files and folders are left out.
        index_dir: folder of the index.
        model: an alignment model, in evaluation mode.
        processor: its processor.
        query_bank: sentences such as the training captions, for a search with less bias of hubs; by default as before.
        approximate: whether to make a graph for an approximate search; by default as before.
        overwrite: whether to remove the index that is there first.
        batch_size: pictures in a batch.
        rows_per_shard: pictures in a shard.
        progress: shows the progress over pictures, as `tqdm` does.

    Raises:
        ValueError: there is no picture in the folder; `index_dir` holds something else, an index of another folder or by
            another model, or one that another process writes; no sentence of the query bank has a known word.
        FileNotFoundError: there is no such folder.
        DamagedIndexError: `index.json` is damaged.
        ModuleNotFoundError: `approximate` without usearch.
    """
    if batch_size < 1:
        raise ValueError(f"`batch_size` is {batch_size}: pass 1 or more.")
    root, index_dir = Path(folder).absolute(), Path(index_dir)
    found = _find_files(root)
    check_index_dir(index_dir)
    with FolderLock(index_dir, "indexing"):
        if overwrite:
            _remove_index(index_dir)
        manifest = _open_manifest(root, index_dir, model, processor)
        writer = _Writer(index_dir, manifest, model, processor, rows_per_shard, query_bank)
        writer.take_stock(found)
        pending = [picture for name, picture in found.items() if name not in writer.valid]
        try:
            with progress(total=len(pending), unit="image", desc="Pictures", disable=not pending) as bar:
                for start in range(0, len(pending), batch_size):
                    batch = pending[start : start + batch_size]
                    writer.add(writer.embed(root, batch))
                    bar.update(len(batch))
        except BaseException:  # Ctrl-C too: what has been embedded is kept
            writer.flush()
            raise
        writer.finish()
        pictures = StoredPictures(index_dir, manifest)
        writer.update.num_pictures = len(pictures)
        _keep_graph(index_dir, manifest, pictures, approximate)
    return writer.update


def _find_files(root: Path) -> dict[str, PictureFile]:
    """The pictures of a folder by their names."""
    if not root.is_dir():
        raise FileNotFoundError(f"`folder` is '{root}', which is no folder: pass the one with the pictures.")
    found = {}
    for path in images_below(root):
        name = Path(path).relative_to(root).as_posix()
        try:
            status = os.stat(path)
            found[name] = PictureFile(name, status.st_size, status.st_mtime_ns)
        except OSError:  # a link to nowhere, which loading names
            found[name] = PictureFile(name, 0, 0)
    if not found:
        raise ValueError(f"`folder` is '{root}', which has no picture in it: pass another folder.")
    return found


def _remove_index(index_dir: Path) -> None:
    """Remove the files of an index; others stay."""
    (index_dir / MANIFEST_NAME).unlink(missing_ok=True)
    for path in [*shard_paths(index_dir), index_dir / GRAPH_NAME]:
        path.unlink(missing_ok=True)


def _open_manifest(root: Path, index_dir: Path, model: Any, processor: Any) -> Manifest:
    """Read the manifest of an index of this folder by this model, or write a new one."""
    fingerprint = model_fingerprint(model, processor)
    place = str(model.name_or_path)
    place = str(Path(place).absolute()) if os.path.isdir(place) else place
    if not (index_dir / MANIFEST_NAME).exists():
        manifest = Manifest(str(root), place, fingerprint)
        manifest.save(index_dir)
        return manifest
    manifest = Manifest.load(index_dir)
    if manifest.model_fingerprint != fingerprint:
        raise ValueError(
            f"'{index_dir}' was made by another model ('{manifest.model_name_or_path}'): pass that one, another "
            "--output_dir, or --overwrite_output_dir."
        )
    if manifest.folder != str(root) and os.path.isdir(manifest.folder):  # or it has been moved
        raise ValueError(
            f"'{index_dir}' is the index of '{manifest.folder}', not of '{root}': pass another --output_dir, or "
            "--overwrite_output_dir."
        )
    manifest.folder, manifest.model_name_or_path = str(root), place
    return manifest


class _Row(NamedTuple):
    """One embedded picture on its way into a shard, and the shard and row where it was before, if anywhere."""

    file: PictureFile
    regions: np.ndarray
    pooled: np.ndarray
    origin: tuple[str, int] | None = None


class _Writer:
    """The shards of an index that is brought up to date."""

    def __init__(
        self,
        index_dir: Path,
        manifest: Manifest,
        model: Any,
        processor: Any,
        rows_per_shard: int,
        query_bank: Sequence[str] | None,
    ):
        self.index_dir, self.manifest, self.rows_per_shard = index_dir, manifest, rows_per_shard
        self.model, self.processor = model, processor
        self.update = IndexUpdate()
        self.shards: dict[str, Shard] = {}
        self.valid: set[str] = set()  # names of the pictures that are in the index as they are in the folder
        self.waiting: list[_Row] = []
        if query_bank is not None:
            manifest.bank = list(query_bank[:: max(1, len(query_bank) // BANK_SIZE)])
        self.bank = self._embed_bank()

    def _embed_bank(self) -> list[Query]:
        queries = []
        for sentence in self.manifest.bank:
            try:
                queries.append(embed_text(self.model, self.processor, sentence))
            except ValueError:
                self.update.num_unknown += 1
        if self.manifest.bank and not queries:
            raise ValueError(
                f"`query_bank` holds {len(self.manifest.bank)} sentences without a word that the model knows: pass the "
                "captions that it was trained on."
            )
        return queries

    def take_stock(self, found: Mapping[str, PictureFile]) -> None:
        """Find out which rows of the index are still valid."""
        gone = set()
        # a later shard holds the later picture
        for name in sorted(self.manifest.shards, key=shard_number, reverse=True):
            try:
                shard = Shard.load(self.index_dir / name)
            except DamagedIndexError:
                self.update.damaged.append(name)
                del self.manifest.shards[name]
                self.manifest.has_graph = False
                continue
            removed = self.manifest.shards[name]
            for row in valid_rows(shard, removed):
                file = shard.files[row]
                if found.get(file.name) == file and file.name not in self.valid:
                    self.valid.add(file.name)
                else:
                    removed.append(int(row))
                    self.manifest.has_graph = False
                    gone |= {file.name} - found.keys()
            self.shards[name] = shard
        self.update.num_removed = len(gone)
        self.manifest.is_complete = False

    def _rows_of(self, name: str) -> Iterator[_Row]:
        shard = self.shards[name]
        for row in valid_rows(shard, self.manifest.shards[name]).tolist():
            yield _Row(shard.files[row], shard.regions[row], shard.pooled[row], (name, row))

    def embed(self, root: Path, files: Sequence[PictureFile]) -> Iterator[_Row]:
        """Embed some pictures; those that cannot be read or processed are noted."""
        # a processor that does not crop leaves pictures of different sizes, which are no batch
        by_shape: dict[torch.Size, list[tuple[PictureFile, torch.Tensor]]] = defaultdict(list)
        for file in files:
            try:
                pixel_values = self.processor(images=self.processor.load_image(root / file.name), return_tensors="pt")[
                    "pixel_values"
                ]
                by_shape[pixel_values.shape].append((file, pixel_values))
            except (OSError, ValueError) as error:
                self.update.unreadable[file.name] = " ".join(str(error).split())
        for group in by_shape.values():
            arrays = embed_images(self.model, torch.cat([pixel_values for _, pixel_values in group]))
            self.update.num_embedded += len(group)
            yield from map(_Row, [file for file, _ in group], *arrays)

    def add(self, rows: Iterable[_Row]) -> None:
        for row in rows:
            if self.waiting and row.regions.shape != self.waiting[0].regions.shape:
                raise ValueError(
                    f"The model makes {len(row.regions)} regions of {shown(row.file.name)} and {len(self.waiting[0].regions)} "
                    "of other pictures: use an image processor that crops, or a model with `region_grid_size`."
                )
            self.waiting.append(row)
            if len(self.waiting) == self.rows_per_shard:
                self.flush()

    def flush(self) -> None:
        """Write a shard of the rows that wait, note it, and remove shards of which nothing is left."""
        shards = self.manifest.shards
        if self.waiting:
            regions, pooled = (np.stack([getattr(row, name) for row in self.waiting]) for name in ("regions", "pooled"))
            scores = score_with_bank(self.model, self.bank, regions, pooled) if self.bank else None
            number = max((shard_number(path.name) for path in shard_paths(self.index_dir)), default=-1) + 1
            name = f"{number:05d}.safetensors"
            shard = Shard([row.file for row in self.waiting], regions, pooled, bank_digest(self.manifest.bank), scores)
            shard.save(self.index_dir / name)
            shards[name] = []
            for row in self.waiting:
                if row.origin is not None:
                    shards[row.origin[0]].append(row.origin[1])
            self.waiting = []
            self.manifest.has_graph = False
        for name, shard in self.shards.items():
            if name in shards and len(shards[name]) == len(shard.files):
                del shards[name]
        self.manifest.save(self.index_dir)
        for path in shard_paths(self.index_dir):
            if path.name not in shards:
                path.unlink()

    def finish(self) -> None:
        """Write what is left, together with the rows of shards that are less than half full."""
        digest = bank_digest(self.manifest.bank)
        sparse = []
        for name, shard in list(self.shards.items()):
            num_valid = len(shard.files) - len(self.manifest.shards.get(name, shard.files))
            if not num_valid:
                continue
            if shard.bank != digest:  # its scores are those of another query bank
                self.add(self._rows_of(name))
            elif 2 * num_valid < self.rows_per_shard:
                sparse.append(name)
        if self.waiting or len(sparse) > 1 or any(self.manifest.shards[name] for name in sparse):
            for name in sparse:
                self.add(self._rows_of(name))
        self.manifest.is_complete = True
        self.flush()


def _keep_graph(index_dir: Path, manifest: Manifest, pictures: StoredPictures, approximate: bool | None) -> None:
    """Make the graph of the approximate search, bring it up to date, or remove it."""
    path = index_dir / GRAPH_NAME
    wants_graph = path.exists() if approximate is None else approximate
    if not wants_graph or not len(pictures):
        path.unlink(missing_ok=True)
        manifest.has_graph = False
    elif not (manifest.has_graph and is_sound(path)):
        update_graph(path, pictures.keys, pictures.pooled)
        manifest.has_graph = True
    manifest.save(index_dir)
