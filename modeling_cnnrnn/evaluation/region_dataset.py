"""
Make a dataset of regions and the words that belong to them, to train a captioner of regions on.

An alignment model says which words of a caption belong to which box. Each box becomes a picture of its own, with its snippets
as captions (section 3.2 of https://arxiv.org/abs/1412.2306), in the layout of `imagefolder`.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ..files import whole_folder, write_text
from .region_captions import Box


Snippet = tuple[Box, str, float]  # a box, the words that belong to it, and their score


@dataclass
class RegionCounts:
    """How many regions and snippets were written, and how many snippets and pictures were left out."""

    num_regions: int = 0
    num_snippets: int = 0
    num_left_out: int = 0
    num_pictures_left_out: int = 0


def known_sentences(tokenizer: Any, sentences: Iterable[str]) -> list[str]:
    """Leave out the sentences of which no word is in the vocabulary: they cannot be aligned."""
    options = {"add_special_tokens": False, "split_special_tokens": True}
    unknown = tokenizer.unk_token_id
    return [text for text in sentences if any(index != unknown for index in tokenizer(text, **options)["input_ids"])]


def write_region_dataset(
    folder: Path | str,
    pictures: Iterable[tuple[str, Image.Image, Sequence[Snippet]]],
    min_score: float = float("-inf"),
    min_words: int = 1,
    margin: float = 0.0,
) -> RegionCounts:
    """
    Write the regions of pictures, whole or not at all.

    The folder holds `00000000.jpg`, ... and `metadata.jsonl` with `file_name`, `captions`, `source`, `box` and `score`, which
    `load_caption_dataset` reads. Regions of one picture are no captions of one image, so that the picture's id is `source`.

    Args:
        folder: the folder, such as `regions/train`.
        pictures: name, picture and aligned snippets of each.
        min_score: snippets of a lower score are left out.
        min_words: snippets of fewer words are left out.
        margin: what is added to each side of a box, as a share of its width or height, where the picture has it.

    Raises:
        ValueError: no snippet is left.
    """
    counts = RegionCounts()
    lines = []
    with whole_folder(folder) as partial:
        for source, picture, snippets in pictures:
            good = [s for s in snippets if s[2] >= min_score and len(s[1].split()) >= min_words]
            counts.num_left_out += len(snippets) - len(good)
            counts.num_pictures_left_out += not good
            by_box: dict[Box, list[Snippet]] = defaultdict(list)
            for snippet in good:
                by_box[snippet[0]].append(snippet)
            for box, its_snippets in by_box.items():
                name = f"{counts.num_regions:08d}.jpg"
                wider = _widened(box, margin, picture.size)
                picture.crop(wider).save(partial / name, quality=95, subsampling=0)
                captions = list(dict.fromkeys(text for _, text, _ in its_snippets))
                line = {"file_name": name, "captions": captions, "source": source, "box": wider}
                lines.append(line | {"score": max(score for _, _, score in its_snippets)})
                counts.num_regions += 1
                counts.num_snippets += len(captions)
        if not lines:
            raise ValueError(
                f"No snippet has {min_words} words and a score of {min_score:g}: pass a lower `min_score` or `min_words`."
            )
        write_text(partial / "metadata.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return counts


def _widened(box: Box, margin: float, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Add the margin, inside the picture, in whole pixels."""
    left, top, right, bottom = box
    width, height = margin * (right - left), margin * (bottom - top)
    left, top = max(0, int(left - width)), max(0, int(top - height))
    return (
        left,
        top,
        min(size[0], max(left + 1, round(right + width))),
        min(size[1], max(top + 1, round(bottom + height))),
    )
