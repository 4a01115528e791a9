"""Read text files whatever their encoding and their separators: captions in tables, one line or one file a picture."""

import csv
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
from datasets import Dataset

from .columns import CAPTION_NAMES, FILE_NAMES, ID_NAMES, IMAGE_NAMES, URL_NAMES, shown
from .image_files import is_encoded_image, is_image_name
from .reporting import left_out


BYTE_ORDER_MARKS = {
    b"\xef\xbb\xbf": "utf-8-sig",
    b"\xff\xfe\0\0": "utf-32",
    b"\0\0\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
TEXT = datasets.Value("string")
# `1000268201_693b08cb0e.jpg#0<tab>A child in a pink dress`, of Flickr8k.token.txt and results_20130124.token
TOKEN_LINE = re.compile(r"(?P<name>[^\t]+)#\d+[\t ]\s*(?P<caption>.*)")
# Flickr_8k.trainImages.txt
SPLIT_LIST = re.compile(r"(?:^|[^a-z])(train|val|dev|test)images\.txt$", re.IGNORECASE)
MAX_LINE = 2**28
# a larger table, with images in it, becomes files of the cache
MAX_IN_MEMORY = 2**26
# uniq-id, image-id, caption, objects, image: the tables of https://github.com/OFA-Sys/OFA
OFA_COLUMNS = ("uniq_id", "image_id", "caption", "objects", "image")


def encoding_of(path: Path) -> str:
    """Tell the encoding of a text file from its byte order mark."""
    with path.open("rb") as file:
        head = file.read(4)
    return next((name for mark, name in BYTE_ORDER_MARKS.items() if head.startswith(mark)), "utf-8")


def read_text(path: Path) -> str:
    """
    Read a text file as UTF-8, or as what its byte order mark says.

    Raises:
        ValueError: it is in another encoding.
    """
    try:
        return path.read_text(encoding=encoding_of(path))
    except UnicodeError as error:
        raise ValueError(f"{shown(path.name)} is not UTF-8 text: save it as UTF-8.") from error


@dataclass(frozen=True)
class TableFormat:
    """
    How a text file holds a table.

    Args:
        names: the names of the columns.
        separator: the character between fields.
        has_header: whether the first line has the names.
        is_quoted: whether a field may be in double quotes.
        encoding: as `open` takes it.
    """

    names: tuple[str, ...]
    separator: str
    has_header: bool = True
    is_quoted: bool = True
    encoding: str = "utf-8"


def find_format(path: Path) -> TableFormat:
    """
    Find out how a text file holds a table.

    Raises:
        ValueError: the file is empty, or not text.
    """
    encoding = encoding_of(path)
    try:
        with path.open(encoding=encoding, newline="") as file:
            lines = [line.rstrip("\r\n") for line in (file.readline(MAX_LINE) for _ in range(50))]
    except UnicodeError as error:
        raise ValueError(f"{shown(path.name)} is not UTF-8 text: save it as UTF-8.") from error
    lines = [line for line in lines if line.strip()]
    if not lines:
        raise ValueError("the file is empty.")
    known = {*IMAGE_NAMES, *FILE_NAMES, *URL_NAMES, *CAPTION_NAMES, *ID_NAMES}
    best: tuple[int, int, str] = (0, 0, "")
    for separator in "\t|;,":
        fields = _split(lines[0], separator)
        recognised = sum(field.lower() in known for field in fields)
        best = max(best, (recognised, len(fields), separator), key=lambda found: found[:2])
    recognised, _, separator = best
    if recognised == 0 and (headerless := _without_header(lines[0])):
        made_up, separator = headerless
        return TableFormat(made_up, separator, False, _is_quoted(lines, separator), encoding)
    if recognised == 0 and path.suffix.lower() == ".tsv":
        separator = "\t"
    names = [name or f"column_{index}" for index, name in enumerate(_split(lines[0], separator), 1)]
    if len({*names}) < len(names):
        names = [name if names.count(name) == 1 else f"{name}_{index}" for index, name in enumerate(names, 1)]
    return TableFormat(tuple(names), separator, True, _is_quoted(lines[1:], separator), encoding)


def _split(line: str, separator: str) -> list[str]:
    if separator == "\t":
        return [field.strip().strip('"') for field in line.split(separator)]
    return [field.strip() for field in next(csv.reader([line], delimiter=separator, skipinitialspace=True), [])]


def _without_header(line: str) -> tuple[tuple[str, ...], str] | None:
    """Name the columns of a table whose first line is a row: one field of it is an image or the name of one."""
    for separator in "\t|;,":
        fields = line.split(separator)
        images = [index for index, field in enumerate(fields) if is_encoded_image(field.strip())]
        # the separator inside a data URI
        images = images or [index for index, field in enumerate(fields) if is_image_name(field.strip())]
        if not images or len(fields) < 2:
            continue
        if len(fields) == len(OFA_COLUMNS) and images == [4]:
            return OFA_COLUMNS, separator
        names = [f"column_{index}" for index in range(1, len(fields) + 1)]
        texts = [(" " in field.strip(), len(field), i) for i, field in enumerate(fields) if i not in images]
        names[max(texts)[2] if texts else images[-1]] = "caption"
        names[images[0]] = "image" if is_encoded_image(fields[images[0]].strip()) else "file_name"
        return tuple(names), separator
    return None


def _is_quoted(lines: Sequence[str], separator: str) -> bool:
    """Tell quotes around fields from quotes that are a part of the text, as in `0.jpg<tab>"Stop" says a sign.`"""
    if separator == ",":
        return True
    fields = [field.strip() for line in lines for field in line.split(separator) if field.strip().startswith('"')]
    return bool(fields) and all(re.fullmatch(r'"(?:[^"]|"")*"', field) for field in fields)


def read_table(path: Path, cache_dir: str | None = None) -> Dataset:
    """
    Read a table of captions: comma-separated, tab-separated, with `|` or `;`; or `name.jpg#0<tab>caption` lines.

    Every field is text, so that a caption "None" or an id "007" stays what it is.

    Raises:
        ValueError: a line has too many fields, or the file is no table.
    """
    with path.open(encoding=encoding_of(path), errors="replace") as file:
        first = next((line for line in file if line.strip()), "")
    if TOKEN_LINE.fullmatch(first.rstrip("\r\n")) and is_image_name(first.partition("#")[0]):
        return _read_tokens(path)
    format = find_format(path)
    features = datasets.Features(dict.fromkeys(format.names, TEXT))
    if path.stat().st_size > MAX_IN_MEMORY:
        # the time of the last change is a part of the name in the cache
        options = {"path": path, "format": format, "changed": path.stat().st_mtime_ns}
        return Dataset.from_generator(_records, gen_kwargs=options, features=features, cache_dir=cache_dir)
    columns: dict[str, list[str]] = {name: [] for name in format.names}
    for fields in _rows(path, format):
        for name, field in zip(columns, fields, strict=True):
            columns[name].append(field)
    return Dataset.from_dict(columns, features=features)


def _records(path: Path, format: TableFormat, changed: int) -> Iterator[dict[str, str]]:
    for fields in _rows(path, format):
        yield dict(zip(format.names, fields, strict=True))


def _rows(path: Path, format: TableFormat) -> Iterator[list[str]]:
    limit = csv.field_size_limit(MAX_LINE)  # base64 of a photograph is longer than the csv module expects
    try:
        with path.open(encoding=format.encoding, newline="") as file:
            reader = csv.reader(
                file,
                delimiter=format.separator,
                quoting=csv.QUOTE_MINIMAL if format.is_quoted else csv.QUOTE_NONE,
                skipinitialspace=True,
                strict=format.is_quoted,
            )
            if format.has_header:
                while not any(next(reader)):
                    pass
            for fields in reader:
                if any(field.strip() for field in fields):
                    yield _fitted(fields, format, path, reader.line_num)
    except UnicodeError as error:
        raise ValueError(f"{shown(path.name)} is not UTF-8 text: save it as UTF-8.") from error
    except csv.Error as error:
        raise ValueError(
            f"line {reader.line_num} of {shown(path.name)}: {error}; close or double its quotes."
        ) from error
    finally:
        csv.field_size_limit(limit)


def _fitted(fields: list[str], format: TableFormat, path: Path, line: int) -> list[str]:
    """Give a line as many fields as the header; the last column may have separators of its own if it is the caption."""
    width = len(format.names)
    while len(fields) > width and not fields[-1].strip():
        fields = fields[:-1]
    if len(fields) > width:
        if format.names[-1].lower() not in CAPTION_NAMES:
            raise ValueError(
                f"line {line} of {shown(path.name)} has {len(fields)} fields and the header {width}: put captions that "
                f"contain {shown(format.separator)} in double quotes."
            )
        joint = format.separator + " " if format.separator == "," else format.separator
        fields = [*fields[: width - 1], joint.join(fields[width - 1 :])]
    return [field.strip() for field in fields] + [""] * (width - len(fields))


def _read_tokens(path: Path) -> Dataset:
    names, captions, others = [], [], []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if found := TOKEN_LINE.fullmatch(line.rstrip("\r")):
            names.append(found["name"].strip())
            captions.append(found["caption"])
        elif line.strip():
            others.append(f"line {number}")
    left_out(path.name, "lines that are not `name.jpg#0`, a tab and a caption", others)
    return Dataset.from_dict({"file_name": names, "caption": captions})


def split_by_lists(path: Path, rows: Dataset) -> dict[str, Dataset] | None:
    """Split the rows of a file by the lists of images beside it, such as `Flickr_8k.trainImages.txt`; `None` without."""
    lists = {
        found[1].lower(): other for other in sorted(path.parent.iterdir()) if (found := SPLIT_LIST.search(other.name))
    }
    if not lists or ("file_name" not in rows.column_names and "image" not in rows.column_names):
        return None
    split_of: dict[str, str] = {}
    for split, other in lists.items():
        for line in read_text(other).split("\n"):
            split_of[os.path.basename(line.strip())] = split
    indices = defaultdict(list)
    unlisted: dict[str, None] = {}
    for index, name in enumerate(rows["file_name" if "file_name" in rows.column_names else "image"][:]):
        if split := split_of.get(os.path.basename(name)):
            indices[split].append(index)
        else:
            unlisted[name] = None
    left_out(path.name, f"images in none of {', '.join(shown(other.name) for other in lists.values())}", [*unlisted])
    return {split: rows.select(indices[split]) for split in lists if split in indices}


def has_caption_columns(path: Path) -> bool:
    """Return whether a text file is a table that names images and has captions."""
    try:
        with path.open(encoding=encoding_of(path), errors="replace") as file:
            first = next((line for line in file if line.strip()), "").rstrip("\r\n")
        if TOKEN_LINE.fullmatch(first) and is_image_name(first.partition("#")[0]):
            return True
        names = {name.lower() for name in find_format(path).names}
    except (OSError, ValueError):
        return False
    return bool(names & {*IMAGE_NAMES, *FILE_NAMES, *URL_NAMES, *ID_NAMES}) and bool(names & {*CAPTION_NAMES})
