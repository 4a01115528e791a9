"""Find the files that the cells of an image column name. No image is decoded."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import datasets
from datasets import Dataset

from .columns import shown
from .image_files import ImageFiles, OutsideFilesError
from .reporting import left_out


def resolve_images(images: Dataset, files: ImageFiles) -> tuple[Dataset, list[str] | None]:
    """
    Find the files that cells name instead of holding an image.

    Returns:
        The images, and of each row why it has none, or `""`.
    """
    problems, is_changed = [], False
    named = named_files(images)
    if all(name is None for name in named):
        return images, None
    for name in named:
        problem = ""
        if name is not None:
            cell = {"bytes": None, "path": name}
            resolved, problem = resolve_cell(cell, files)
            is_changed |= not problem and resolved is not cell
        problems.append(problem)
    if is_changed:
        cells = images.cast_column("image", datasets.Image(decode=False))
        images = cells.map(
            _resolved_row,
            fn_kwargs={"files": files},
            features=images.features,
            load_from_cache_file=False,
            desc="Opening files",
        )
    return images, problems


def resolve_cell(cell: Any, files: ImageFiles) -> tuple[Any, str]:
    """Return the cell to open and `""`, or why there is none, `"outside"`, `"missing"` or `"absent"`, and the name."""
    name = cell.get("path") if isinstance(cell, Mapping) else cell
    try:
        return files.resolve(cell), ""
    except OutsideFilesError:
        return None, f"outside {name}"
    except FileNotFoundError:
        return None, f"missing {name}" if name else "absent"


def warn_of_problems(split: str, ids: Sequence[str], problems: Sequence[str], files: ImageFiles) -> None:
    """Count and name the images that have a problem of [`resolve_cell`]."""
    names: dict[str, dict[str, None]] = {"outside": {}, "missing": {}, "absent": {}}
    for image_id, problem in zip(ids, problems, strict=True):
        kind, _, name = problem.partition(" ")
        if kind:
            names[kind][name or image_id] = None
    folder = shown(files.folder, 200) if files.folder else "the dataset"
    left_out(
        split,
        f"images outside {folder}",
        [*names["outside"]],
        "; if you trust the dataset, pass the folder that holds them as `image_dir`",
    )
    left_out(split, f"images not found in {folder}", [*names["missing"]])
    left_out(split, "rows without an image", [*names["absent"]])


def named_files(images: Dataset) -> list[str | None]:
    """The file that each cell names instead of holding an image; `""` if it has neither. No image is read."""
    contents, paths = images.data.column("image").flatten()
    if contents.null_count == 0:
        return [None] * len(images)
    is_null = contents.is_null().to_pylist()
    names = [path or "" if null else None for null, path in zip(is_null, paths.to_pylist(), strict=True)]
    rows = images._indices
    return names if rows is None else [names[index] for index in rows.column(0).to_pylist()]


def file_names(images: Dataset) -> list[str] | None:
    """Paths below their common folder, if all images are files beside the table."""
    paths = [path for path in named_files(images) if path]
    if len(paths) < len(images):
        return None
    try:
        folder = os.path.commonpath([os.path.dirname(path) for path in paths])
    except ValueError:  # some are absolute and some are not
        return None
    return [os.path.relpath(path, folder) for path in paths]


def _resolved_row(row: Mapping[str, Any], files: ImageFiles) -> dict[str, Any]:
    return {"image": resolve_cell(row["image"], files)[0]}
