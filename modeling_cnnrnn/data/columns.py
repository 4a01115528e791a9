"""Find the columns of image, captions and id in a dataset by their names and types, or take those that are given."""

import ast
import contextlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Self

import datasets

from ..models import error_messages_cnnrnn


# Names are compared in lower case; the first that a dataset has is taken.
IMAGE_NAMES = ("image", "img", "jpg", "jpeg", "png", "webp", "image_bytes")
FILE_NAMES = ("image_path", "file_name", "filename", "filepath", "image_filename", "image_name", "path")
URL_NAMES = ("coco_url", "image_url", "url", "flickr_url")
CAPTION_NAMES = (
    *("captions", "caption", "sentences_raw", "sentences", "sentence", "raw", "text", "txt", "texts", "answer"),
    *("answers", "en_sentences_raw", "alt_text", "description", "comment", "json"),
)
ID_NAMES = ("cocoid", "image_id", "imgid", "img_id", "id", "__key__")
LABEL_NAMES = ("label", "labels", "fine_label", "class", "cls", "category", "target", "class_name", "label_name", "y")
# fields of structs and JSON that hold the text
CAPTION_KEYS = ("raw", "text", "caption", "sentence", "captions", "sentences", "value", "en")


@dataclass(frozen=True)
class CaptionColumns:
    """
    Columns of the image, its captions and its id.

    Args:
        image: column of images, or of the names of image files.
        captions: columns of captions. `"json.title"` is the field `title` of the column `json`.
        image_id: column that tells one image from another; without one, the file name or the row number does.
        embedded: whether `image` holds images; if not, it holds file names or URLs.
        one_per_line: whether a text holds one caption per line, as the `txt` of webdataset shards does.
    """

    image: str
    captions: tuple[str, ...]
    image_id: str | None = None
    embedded: bool = True
    one_per_line: bool = False

    @classmethod
    def infer(
        cls,
        features: Mapping[str, Any],
        image_column: str | None = None,
        caption_column: str | None = None,
        image_id_column: str | None = None,
        names_image: Callable[[str], bool] = lambda column: False,
    ) -> Self:
        """
        Take the columns that are given and guess the others from names and types.

        Args:
            features: the names and types of all columns.
            image_column: column of the images, or of their file names.
            caption_column: a name, names separated by commas, or a pattern such as `"caption_*"`.
            image_id_column: column that tells one image from another.
            names_image: whether a column holds names of image files, which its name alone does not tell.

        Raises:
            ValueError: a column that is given does not exist, or the image or the captions cannot be guessed.
        """
        found = listed(features)
        fields = [*features, *(f"{name}.{key}" for name, struct in features.items() for key in _keys(struct))]
        if image_column is None:
            image_column = _guess_image(features, names_image)
            if image_column is None:
                raise ValueError(f"no column of images among {found}: name it with `image_column`.")
        elif image_column not in features:
            raise ValueError(f"`image_column` is `{image_column}`, but the columns are {found}.")

        if caption_column is None:
            captions = _guess_captions(features)
            if not captions:
                raise ValueError(f"no column of captions among {found}: name it with `caption_column`.")
        else:
            patterns = [pattern.strip() for pattern in caption_column.split(",")]
            captions = [name for pattern in patterns for name in _in_order(fields, pattern)]
            if not captions:
                raise ValueError(f"`caption_column` is `{caption_column}`, but the columns are {found}.")

        embedded = _holds_images(features[image_column])
        if image_id_column is None:
            # an image that is given by its file is identified by it
            image_id_column = _first(features, (*ID_NAMES, *FILE_NAMES, *URL_NAMES)) or (
                None if embedded else image_column
            )
        elif image_id_column not in fields:
            raise ValueError(f"`image_id_column` is `{image_id_column}`, but the columns are {found}.")
        one_per_line = captions == ["txt"] and "__key__" in features
        return cls(image_column, tuple(captions), image_id_column, embedded, one_per_line)

    def __str__(self) -> str:
        captions = ", ".join(f"`{name}`" for name in self.captions)
        image = f"image from `{self.image}`" if self.embedded else f"image from the file in `{self.image}`"
        image_id = f"image_id from `{self.image_id}`" if self.image_id else "image_id from the file or the row number"
        return f"{image}, captions from {captions}, {image_id}"

    @property
    def sources(self) -> set[str]:
        """The columns that captions, id and file name are read from."""
        fields = {*self.captions, self.image_id or "", "" if self.embedded else self.image}
        return fields | {field.partition(".")[0] for field in fields}

    def read_captions(self, row: Mapping[str, Any]) -> list[str]:
        """Read the captions of a row, each as one line; empty ones are `""`."""
        texts = [text for name in self.captions for text in _texts(_value(row, name), name)]
        if self.one_per_line:
            texts = [line for text in texts for line in text.splitlines()]
        # metrics work by line, so a line break inside a caption would shift all captions after it
        return [" ".join(text.split()) for text in texts]

    def read_image_id(self, row: Mapping[str, Any], default: str) -> str:
        """Read the id of a row's image; `default` if no column holds it."""
        image_id = None if self.image_id is None else _value(row, self.image_id)
        return default if image_id is None else str(image_id)


@dataclass(frozen=True)
class LabelColumns:
    """
    Columns of the image and of its class.

    Args:
        image: column of images, or of the names of image files.
        label: column of classes: names or numbers.
        others: further columns that could hold classes.
    """

    image: str
    label: str
    others: tuple[str, ...] = ()

    @classmethod
    def infer(
        cls, features: Mapping[str, Any], image_column: str | None = None, label_column: str | None = None
    ) -> Self:
        """
        Take the columns that are given and guess the others from names and types.

        Args:
            features: the names and types of all columns.
            image_column: column of the images, or of their file names.
            label_column: column of the classes.

        Raises:
            ValueError: a column that is given does not exist, or one cannot be guessed.
        """
        found = listed(features)
        for name, given in (("image_column", image_column), ("label_column", label_column)):
            if given is not None and given not in features:
                raise ValueError(f"`{name}` is `{given}`, but the columns are {found}.")
        image = image_column or _guess_image(features, lambda column: False)
        if image is None:
            raise ValueError(f"no column of images among {found}: name it with `image_column`.")
        columns = {name.lower(): name for name in features}
        named = [columns[name] for name in LABEL_NAMES if name in columns]
        typed = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
        guesses = [name for name in dict.fromkeys([*named, *typed]) if name != image]
        if label_column is None and not guesses:
            raise ValueError(
                f"no column of labels among {found}: name it with `label_column`, or put the pictures of a folder into one "
                "folder for each class, two or more."
            )
        label = label_column or guesses[0]
        return cls(image, label, tuple(name for name in guesses if name != label))

    def __str__(self) -> str:
        others = f" (other columns of classes: {listed(self.others)})" if self.others else ""
        return f"image from `{self.image}`, label from `{self.label}`{others}"


def shown(value: Any, limit: int = 60) -> str:
    """Quote a value for a message: on one line, without control characters, cut to `limit` characters."""
    return f"`{error_messages_cnnrnn.shown(str(value), limit)[1:-1]}`"


def listed(names: Iterable[str]) -> str:
    """Join names for an error message."""
    return ", ".join(map(shown, names))


def _guess_image(features: Mapping[str, Any], names_image: Callable[[str], bool]) -> str | None:
    images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    if images:
        return images[0]
    guess = _first(features, (*IMAGE_NAMES, *FILE_NAMES))
    if guess is not None and (_holds_images(features[guess]) or names_image(guess)):
        return guess
    # AI Challenger keeps the file name in `image_id`, beside a `url` that is dead
    named = [name for name in features if name.lower() not in URL_NAMES and names_image(name)]
    return _first(dict.fromkeys(named), ID_NAMES) or next(iter(named), guess or _first(features, URL_NAMES))


def _guess_captions(features: Mapping[str, Any]) -> list[str]:
    numbered = [name for name in features if re.fullmatch(r"(caption|sentence|text|comment)s?[_ ]?\d+", name.lower())]
    if numbered:
        return sorted(numbered, key=_number)
    name = _first(features, CAPTION_NAMES)
    return [] if name is None else [name]


def _holds_images(feature: Any) -> bool:
    is_struct = isinstance(feature, dict) and "bytes" in feature
    return is_struct or isinstance(feature, datasets.Image) or getattr(feature, "dtype", "").endswith("binary")


def _first(features: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    columns = {name.lower(): name for name in features}
    return next((columns[name] for name in names if name in columns), None)


def _in_order(fields: list[str], pattern: str) -> list[str]:
    return [pattern] if pattern in fields else sorted((f for f in fields if fnmatchcase(f, pattern)), key=_number)


def _number(name: str) -> tuple[int, str]:
    """Key that sorts `caption_10` after `caption_9`."""
    digits = re.search(r"\d+$", name)
    return (int(digits[0]) if digits else -1, name)


def _keys(feature: Any) -> list[str]:
    return list(feature) if isinstance(feature, dict) else []


def _value(row: Mapping[str, Any], field: str) -> Any:
    if field in row:
        return row[field]
    column, _, key = field.partition(".")
    return (row[column] or {}).get(key)


def _texts(value: Any, column: str) -> Iterator[str]:
    """Yield the texts in a string, a list, a struct, a list of structs, a struct of lists, or any of these as text."""
    if value is None:
        return
    if isinstance(value, bytes):
        value = value.decode("utf-8", errors="replace")
    if isinstance(value, str):
        written = _parse_list(value)
        if written is None:
            yield value
        else:
            yield from written
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item, column)
    elif isinstance(value, dict):
        key = _first(value, CAPTION_KEYS)
        if key is None:
            raise ValueError(f"`{column}` has the fields {listed(value)}: say which with `caption_column={column}.…`.")
        yield from _texts(value[key], column)
    else:
        raise ValueError(
            f"`{column}` holds {type(value).__name__} {str(value)[:60]}, no text: name another `caption_column`."
        )


def _parse_list(text: str) -> list[str] | None:
    """Parse a list such as `'["a dog", "a cat"]'`, as JSON or as Python writes it; `None` for any other text."""
    text = text.strip()
    if text.startswith("[") and text.endswith("]"):
        for parse in (json.loads, ast.literal_eval):
            with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError):
                items = parse(text)
                if isinstance(items, list) and all(isinstance(item, str) for item in items):
                    return items
    return None
