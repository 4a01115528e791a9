"""Read webdataset shards whose samples do not all have the same files."""

import json
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset
from datasets.packaged_modules.imagefolder.imagefolder import IMAGE_EXTENSIONS

from .columns import CAPTION_NAMES, shown
from .json_files import from_records
from .reporting import left_out


# 000123.jpg -> 000123, jpg; as https://github.com/webdataset/webdataset splits names
MEMBER = re.compile(r"((?:.*/|)[^./][^./]*)\.([^/]*)")
MAX_MEMBER_BYTES = 2**28


def _members(path: str) -> Iterator[tuple[str, str, tarfile.TarInfo, tarfile.TarFile]]:
    """Yield key, ending, member and archive of each file; links are passed over."""
    try:
        with tarfile.open(path, "r:*") as archive:
            for member in archive:
                found = MEMBER.fullmatch(member.name)
                if member.isreg() and found:
                    yield found[1], found[2].lower(), member, archive
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ValueError(f"the archive {shown(Path(path).name)} is damaged: {error}.") from error


def find_samples(paths: Sequence[str]) -> tuple[dict[str, set[str]], bool]:
    """
    Find the samples of webdataset shards without reading their files.

    Returns:
        Key -> endings of each sample, and whether `datasets` reads them: all have the same endings, each of them once.
    """
    endings: dict[str, set[str]] = {}
    previous, is_regular = None, True
    for path in paths:
        for key, ending, _, _ in _members(path):
            known = endings.setdefault(key, set())
            # the files of a sample are neighbours in a regular archive
            is_regular &= ending not in known and (not known or key == previous)
            known.add(ending)
            previous = key
    first = next(iter(endings.values()), set())
    return endings, is_regular and all(found == first for found in endings.values())


def read_tars(paths: Sequence[str], endings: dict[str, set[str]], cache_dir: str | None = None) -> Dataset:
    """
    Read shards in which some samples lack a file or have another one; samples without image or text are left out.

    Args:
        endings: the files of each sample, from `find_samples`.

    Raises:
        ValueError: no sample has an image and a text.
    """
    counts = Counter(ending for found in endings.values() for ending in found)
    images = [ending for ending, _ in counts.most_common() if f".{ending}" in IMAGE_EXTENSIONS]
    texts = [ending for ending, _ in counts.most_common() if ending in CAPTION_NAMES]
    without_image = [key for key, found in endings.items() if not found & {*images}]
    without_text = [key for key, found in endings.items() if found & {*images} and not found & {*texts}]
    if not images:
        raise ValueError("no sample of the archive has an image.")
    place = ", ".join(Path(path).name for path in paths[:3]) + (", ..." if len(paths) > 3 else "")
    left_out(place, "samples without an image", without_image)
    if texts:
        left_out(place, "samples without a text", without_text)
    whole = {*endings} - {*without_image} - {*(without_text if texts else ())}
    if not whole:
        raise ValueError("no sample of the archive has both an image and a text.")
    options = {
        # tuples: `datasets` takes lists for shards
        "paths": tuple(paths),
        "changed": tuple(Path(path).stat().st_mtime_ns for path in paths),
        "image_names": tuple(images),
        "text_names": tuple(texts),
        "whole": tuple(sorted(whole)),
    }
    rows = Dataset.from_generator(_samples, gen_kwargs=options, cache_dir=cache_dir, features=_features(options))
    return rows.cast_column(images[0], datasets.Image())


def _features(options: dict[str, Any]) -> datasets.Features:
    """A column for the images, whatever their format, and one for each kind of text."""
    text = datasets.Value("string")
    image = {"bytes": datasets.Value("binary"), "path": text}
    features: dict[str, Any] = {options["image_names"][0]: image, **dict.fromkeys(options["text_names"], text)}
    if "json" in features:
        objects = []
        for sample in _samples(**options):
            if sample["json"] is not None:
                objects.append({"json": sample["json"]})
            if len(objects) == 100:
                break
        features["json"] = from_records(objects).features["json"]
    return datasets.Features({**features, "__key__": text, "__url__": text})


def _samples(
    paths: tuple[str, ...],
    changed: tuple[int, ...],
    image_names: tuple[str, ...],
    text_names: tuple[str, ...],
    whole: tuple[str, ...],
) -> Iterator[dict[str, Any]]:
    wanted = {*whole}
    empty = dict.fromkeys([image_names[0], *text_names])
    sample: dict[str, Any] = {}
    for path in paths:
        for key, ending, member, archive in _members(path):
            if key not in wanted or ending not in (*image_names, *text_names) or member.size > MAX_MEMBER_BYTES:
                continue
            if sample and sample["__key__"] != key:
                yield sample
                sample = {}
            sample = sample or {**empty, "__key__": key, "__url__": path}
            file = archive.extractfile(member)
            assert file is not None  # it is a regular file
            content = file.read()
            if ending in image_names:
                sample[image_names[0]] = {"bytes": content, "path": f"{Path(key).name}.{ending}"}
            else:
                sample[ending] = _text(content, ending, key)
    if sample:
        yield sample


def _text(content: bytes, ending: str, key: str) -> Any:
    text = content.decode("utf-8-sig", errors="replace")
    if ending != "json":
        return text
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"`json` of the sample {shown(key)} is not JSON: {error}.") from error
