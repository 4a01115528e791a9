"""
Read phrases and the boxes of what they name, in the layout of Flickr30k Entities (https://arxiv.org/abs/1505.04870).

    Sentences/1000092795.txt     [/EN#1/people Two young guys] with [/EN#2/bodyparts shaggy hair] look at [/EN#3/other hands] .
    Annotations/1000092795.xml   boxes of the entities 1, 2, 3, in pixels
"""

import os
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

from .columns import shown
from .text_files import read_text


Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels

PHRASE = re.compile(r"\[/EN#(?P<entity>[^/\s\]]+)(?P<kinds>(?:/[^/\s\]]+)*) (?P<text>[^\[\]]*)\]")


@dataclass
class Phrase:
    """
    Words of a sentence that name something.

    Attributes:
        start, end: its characters in the sentence.
        entity: what it names; phrases of several sentences may name the same.
        kinds: of it, such as `("people",)`.
    """

    start: int
    end: int
    entity: str
    kinds: tuple[str, ...] = ()


@dataclass
class GroundedSentence:
    """A sentence, and its phrases in their order."""

    text: str
    phrases: list[Phrase]


@dataclass
class GroundedImage:
    """
    The sentences of an image, and where the things are that they name.

    Attributes:
        image_id: the name of its files, without ending.
        width, height: of the image, in pixels.
        sentences: with their phrases.
        boxes: of each entity; one without boxes is not in the picture, or all of it.
    """

    image_id: str
    width: int
    height: int
    sentences: list[GroundedSentence]
    boxes: dict[str, list[Box]] = field(default_factory=dict)


def read_phrase_boxes(folder: str | os.PathLike, image_ids: Iterable[str] | None = None) -> list[GroundedImage]:
    """
    Read phrases and boxes.

    Args:
        folder: holds `Sentences` and `Annotations`.
        image_ids: which images, by default all that have sentences.

    Raises:
        FileNotFoundError: a folder, or a file of an image, is not there.
        ValueError: a file is not in this layout; the sentence names it.
    """
    folder = Path(folder)
    for name in ("Sentences", "Annotations"):
        if not (folder / name).is_dir():
            raise FileNotFoundError(
                f"{shown(str(folder))} has no folder {name}: pass the unpacked annotations of Flickr30k Entities."
            )
    if image_ids is None:
        image_ids = sorted(path.stem for path in (folder / "Sentences").glob("*.txt"))
    return [_read_image(folder, image_id) for image_id in image_ids]


def _read_image(folder: Path, image_id: str) -> GroundedImage:
    sentences, annotations = folder / "Sentences" / f"{image_id}.txt", folder / "Annotations" / f"{image_id}.xml"
    for path in (sentences, annotations):
        if not path.is_file():
            raise FileNotFoundError(
                f"{shown(path.name)} is not in {shown(path.parent.name)}: each image needs both files."
            )
    lines = [line for line in read_text(sentences).splitlines() if line.strip()]
    grounded = [parse_sentence(line, f"{sentences.name}, line {number}") for number, line in enumerate(lines, 1)]
    width, height, boxes = _read_annotations(annotations)
    return GroundedImage(image_id, width, height, grounded, boxes)


def parse_sentence(line: str, place: str = "the sentence") -> GroundedSentence:
    """
    Parse a sentence with marked phrases.

    Args:
        line: `[/EN#1/people Two young guys] with ...`.
        place: where it stands, for messages.

    Raises:
        ValueError: a bracket is not closed, or holds no phrase.
    """
    text, phrases, end = "", [], 0
    line = line.strip()
    for match in PHRASE.finditer(line):
        text += line[end : match.start()]
        words, end = match["text"].strip(), match.end()
        if not words:
            raise ValueError(f"{place} has a phrase without words: {shown(match[0])}.")
        phrases.append(Phrase(len(text), len(text) + len(words), match["entity"], tuple(match["kinds"].split("/")[1:])))
        text += words
    text += line[end:]
    if "[/EN#" in text:
        raise ValueError(f"{place} has a phrase that is not closed: {shown(text[text.index('[/EN#') :][:80])}.")
    return GroundedSentence(text, phrases)


def _read_annotations(path: Path) -> tuple[int, int, dict[str, list[Box]]]:
    content = read_text(path)
    if "<!DOCTYPE" in content or "<!ENTITY" in content:  # a few lines of which can fill the memory
        raise ValueError(
            f"{shown(path.name)} declares a document type, which annotations do not: take the official file."
        )
    boxes: dict[str, list[Box]] = defaultdict(list)
    try:
        root = ElementTree.fromstring(content)
        width, height = (int(_text(root, f"size/{name}")) for name in ("width", "height"))
        for thing in root.iter("object"):
            if thing.find("bndbox") is None:  # it has `nobox` or `scene`
                continue
            left, top, right, bottom = (
                float(_text(thing, f"bndbox/{edge}")) for edge in ("xmin", "ymin", "xmax", "ymax")
            )
            # pixels are counted from 1, and both ends belong to the box
            box = (max(left - 1, 0.0), max(top - 1, 0.0), min(right, width), min(bottom, height))
            if not (box[0] < box[2] and box[1] < box[3]):
                raise ValueError(f"the box {(left, top, right, bottom)} has no area in {width} x {height} pixels")
            for name in thing.iter("name"):
                boxes[(name.text or "").strip()].append(box)
    except (ElementTree.ParseError, ValueError) as error:
        raise ValueError(f"{shown(path.name)} cannot be read as annotations: {str(error)[:200]}.") from error
    return width, height, dict(boxes)


def _text(element: ElementTree.Element, path: str) -> str:
    text = element.findtext(path)
    if text is None:
        raise ValueError(f"<{path}> is missing")
    return text
