"""Caption image files: find them, generate sentences batch by batch, write a table."""

import csv
import json
import logging
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..data.batching import pad_regions
from ..data.region_features import check_reader, load_region_features
from ..files import atomic_path, check_file_writable, write_text
from ..models.error_messages_cnnrnn import shown
from ..models.image_files_cnnrnn import CAMERA_RAW_SUFFIXES
from .consensus import rank_by_consensus


logger = logging.getLogger(__name__)

IMAGE_INPUTS = ("pixel_values", "image_features", "image_features_mask")
FORMATS = (".csv", ".jsonl", ".parquet")
# pictures of phones and cameras, of which PIL does not know before it has a plugin, or never
OTHER_SUFFIXES = CAMERA_RAW_SUFFIXES | {".heic", ".heif", ".hif", ".avif", ".jxl"}


@dataclass
class ImageCaptions:
    """
    The sentences about one image.

    Attributes:
        source: the file or URL.
        captions: the sentences, best first; none if the image cannot be read.
        words: the tokens of each sentence after the prompt, with the end token if it was written; if they are asked for.
        word_scores: log-probability of each of `words` by the captioner alone, in nats.
        error: why the image cannot be read.
    """

    source: str
    captions: list[str] = field(default_factory=list)
    words: list[list[str]] = field(default_factory=list)
    word_scores: list[list[float]] = field(default_factory=list)
    error: str | None = None

    @property
    def name(self) -> str:
        """The file or URL as a text that can be written: bytes of a name that are not UTF-8 become `\\xe9`."""
        return os.fsencode(self.source).decode("utf-8", "backslashreplace")

    def rows(self) -> list[dict[str, Any]]:
        """List the rows of a table, one for each sentence, with the sum of the scores of its words as `score`."""
        rows: list[dict[str, Any]] = [{"file_name": self.name, "caption": caption} for caption in self.captions]
        for row, words, scores in zip(rows, self.words, self.word_scores, strict=bool(self.words)):
            row |= {"score": sum(scores), "words": words, "word_scores": scores}
        return rows


def find_images(sources: Sequence[str]) -> list[str]:
    """
    List files and URLs, and the images below each folder, in order; other files of a folder are counted and named.

    Raises:
        ValueError: there is no image in a folder.
        FileNotFoundError: a file does not exist.
    """
    found: list[str] = []
    for source in sources:
        if source.startswith(("http://", "https://")):
            found.append(source)
        elif os.path.isdir(source):
            inside, others = _files_below(source)
            if not inside:
                raise ValueError(
                    f"`images` names the folder {shown(source)}, which has no image in it: pass another folder."
                )
            if others:
                names = ", ".join(shown(os.path.relpath(path, source)) for path in others[:10])
                more = f" and {len(others) - 10} more" if len(others) > 10 else ""
                logger.warning(
                    "Passed over in %s: files that are not called images (%d): %s%s.",
                    shown(source),
                    len(others),
                    names,
                    more,
                )
            found += inside
        elif os.path.exists(source):
            found.append(source)
        else:
            raise FileNotFoundError(
                f"`images` names {shown(source)}, which does not exist: pass a file, a folder or a URL."
            )
    return found


def images_below(folder: str | Path) -> list[str]:
    """List the files of a folder that are called like images, in order, without hidden ones and those in hidden folders."""
    return _files_below(folder)[0]


def _files_below(folder: str | Path) -> tuple[list[str], list[str]]:
    """List the files below a folder that are called like images, and the others; hidden ones are in neither list."""
    endings = {*Image.registered_extensions(), *OTHER_SUFFIXES}
    images: list[Path] = []
    others: list[Path] = []
    for place, folders, names in os.walk(str(folder)):
        folders[:] = [name for name in folders if name[0] != "."]
        for name in names:
            if name[0] != ".":
                (images if Path(name).suffix.lower() in endings else others).append(Path(place, name))
    return list(map(str, sorted(images))), list(map(str, sorted(others)))


@torch.inference_mode()
def caption_images(
    model: Any,
    processor: Any,
    sources: Sequence[str],
    batch_size: int = 16,
    prompt: str | None = None,
    num_captions: int | None = None,
    by_consensus: bool = False,
    region_features: str | Path | None = None,
    with_words: bool = False,
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
        num_captions: sentences of each image that are kept, by default all that are generated.
        by_consensus: whether they are ranked by how close each is to the others, see [`rank_by_consensus`].
        region_features: where the features of the images lie, by their names, for a captioner that reads regions of a
            detector; see [`~modeling_cnnrnn.data.region_features.load_region_features`]. The images are not opened then.
        with_words: whether to return the words of each sentence with their log-probabilities.
        generate_kwargs: arguments of `generate`, such as `num_beams`.

    Returns:
        An iterator with one item for each source; an image that cannot be read or processed has an error in place of
        sentences.

    Raises:
        ValueError: `batch_size` is less than 1, or the captioner reads something else.
    """
    if batch_size < 1:
        raise ValueError(f"`batch_size` is {batch_size}: pass 1 or more.")
    regions = None if region_features is None else load_region_features(region_features, sources)
    check_reader(getattr(model.config, "feature_size", None), region_features, regions)
    prompts = dict(processor(text=[prompt], return_tensors="pt")) if prompt else {}
    for start in range(0, len(sources), batch_size):
        batch = [ImageCaptions(source) for source in sources[start : start + batch_size]]
        # a processor that does not crop leaves images of different sizes, which are no batch; regions are padded
        groups: dict[Any, list[tuple[ImageCaptions, torch.Tensor]]] = defaultdict(list)
        for row, item in enumerate(batch, start):
            try:
                values = (
                    _read_image(processor, item.source) if regions is None else torch.from_numpy(regions[row].copy())
                )
                groups[values.shape if regions is None else None].append((item, values))
            except (OSError, ValueError) as error:
                item.error = " ".join(str(error).split())
        for group in groups.values():
            items, images = zip(*group, strict=True)
            inputs = {"pixel_values": torch.cat(images)} if regions is None else pad_regions(images)
            inputs |= {name: tensor.expand(len(group), -1) for name, tensor in prompts.items()}
            _caption_batch(model, processor, items, inputs, by_consensus, with_words, generate_kwargs)
            for item in items if num_captions is not None else ():
                for sentences in (item.captions, item.words, item.word_scores):
                    del sentences[num_captions:]
        yield from batch


def _read_image(processor: Any, source: str) -> torch.Tensor:
    return processor(images=processor.load_image(source), return_tensors="pt")["pixel_values"]


def _caption_batch(
    model: Any,
    processor: Any,
    items: Sequence[ImageCaptions],
    inputs: dict[str, torch.Tensor],
    by_consensus: bool,
    with_words: bool,
    generate_kwargs: Mapping[str, Any],
) -> None:
    """Write the sentences of each item from the inputs of the model."""
    inputs = {
        name: tensor.to(model.device, model.dtype if tensor.is_floating_point() else None)
        for name, tensor in inputs.items()
    }
    images = {name: inputs.pop(name) for name in IMAGE_INPUTS if name in inputs}
    encoder_outputs = model.get_encoder()(**images)
    sequences = model.generate(encoder_outputs=encoder_outputs, **inputs, **generate_kwargs)
    each = len(sequences) // len(items)
    texts = processor.batch_decode(sequences, skip_special_tokens=True)
    by_image = [texts[first : first + each] for first in range(0, len(texts), each)]
    orders = rank_by_consensus(by_image) if by_consensus else [[*range(each)] for _ in items]
    for item, captions, order in zip(items, by_image, orders, strict=True):
        item.captions = [captions[place] for place in order]
    if with_words:
        num_given = inputs["input_ids"].shape[1] - 1 if "input_ids" in inputs else 0  # without the start token
        scores = model.score_sentences(sequences, encoder_outputs, num_prompt_tokens=num_given)
        for index, (item, order) in enumerate(zip(items, orders, strict=True)):
            for place in [index * each + place for place in order]:
                is_written = scores.mask[place]
                ids = sequences[place, 1:][is_written].tolist()
                item.words.append(processor.tokenizer.convert_ids_to_tokens(ids))
                item.word_scores.append(scores.log_probs[place][is_written].tolist())


def write_table(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """
    Write rows whole or not at all, as CSV (lists in it as JSON), JSONL or Parquet, by the ending of `path`.

    Raises:
        ValueError: the ending is another one.
    """
    path = check_table(path)
    if path.suffix == ".jsonl":
        write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    elif path.suffix == ".csv":
        with atomic_path(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
            table = csv.DictWriter(file, list(rows[0]) if rows else [], lineterminator="\n")
            table.writeheader()
            table.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
    else:
        import pyarrow
        import pyarrow.parquet

        with atomic_path(path) as partial:
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), partial)


def _cell(value: Any) -> Any:
    """A list in a cell of CSV is JSON."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list) else value


def check_table(path: str | Path) -> Path:
    """
    Check before the work that a table can be written.

    Raises:
        ValueError: the ending of the path is none of a table's.
        OSError: the file cannot be written.
        ImportError: Parquet needs a library that is not installed.
    """
    if Path(path).suffix not in FORMATS:
        raise ValueError(f"`output` is {shown(path)}: pass a file that ends in {', '.join(FORMATS)}.")
    if Path(path).suffix == ".parquet":
        import pyarrow  # noqa: F401
    check_file_writable(path)
    return Path(path)
