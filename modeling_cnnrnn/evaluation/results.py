"""Score an evaluation and write its files: scores with their protocol, COCO files, captions of each image, pictures, a page."""

import json
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..data.batching import CaptionDataset, load_stored_image
from ..data.shapes.language import checker, hallucination_scores
from ..files import whole_folder, write_json, write_text
from ..metrics import CaptionScores, set_diversity
from ..models.image_view_cnnrnn import find_view
from .captions import CaptionEvaluation, GeneratedCaption, score_captions
from .figures import save_attention_figure
from .gallery import GalleryRow, write_gallery


logger = logging.getLogger(__name__)

NUM_PICTURES = 3  # of the best, of the middle, of the worst, and of the wrong ones where that is known
ATTENTION_FIGURE = "attention.png"
PICTURE_SIZE = 256


@dataclass
class ScoredCaptions:
    """
    Captions of a dataset, generated in one way, with their scores.

    Attributes:
        captions: one caption of each readable image.
        scores: the scores over all images, and in `per_image` those of each.
        references: the reference captions of each row of the dataset.
        right: which captions are true, where that can be checked.
        content: what `eval_results.json` says: scores, speed, and what could not be computed.
    """

    captions: list[GeneratedCaption]
    scores: CaptionScores
    references: Sequence[Sequence[str]]
    right: list[bool] | None = None
    content: dict[str, Any] = field(default_factory=dict)


def score_evaluation(
    evaluation: CaptionEvaluation,
    references: Sequence[Sequence[str]],
    metrics: Iterable[str] = ("bleu", "rouge", "cider"),
    scenes: Sequence[str] | None = None,
) -> list[ScoredCaptions]:
    """
    Score the captions of each way to generate.

    Args:
        references: the reference captions of each row of the dataset.
        metrics: names of the metrics, as in [`~modeling_cnnrnn.metrics.caption_metrics`].
        scenes: what each picture of `shapes` shows, see [`~modeling_cnnrnn.data.shapes.scenes_of`]: for accuracy and CHAIR.
    """
    metrics = list(metrics)
    scored = []
    for captions, seconds in zip(evaluation.captions, evaluation.seconds, strict=True):
        scores, right = score_captions(captions, references, metrics, checker(scenes) if scenes else None)
        content: dict[str, Any] = dict(scores) | {
            "seconds": seconds,
            "images_per_second": len(captions) / seconds,
            "not_computed": scores.not_computed,
        }
        if captions and captions[0].all_captions:
            content |= set_diversity([caption.all_captions for caption in captions])
        if scenes is not None:
            texts = [caption.caption for caption in captions]
            content |= hallucination_scores(texts, [scenes[caption.row] for caption in captions])
        scored.append(ScoredCaptions(captions, scores, references, right, content))
    return scored


def write_evaluation(
    output_dir: str | Path,
    dataset: CaptionDataset,
    evaluation: CaptionEvaluation,
    scored: Mapping[int, ScoredCaptions],
    protocol: Mapping[str, Any],
    gallery_size: int = 200,
    title: str = "Captions",
) -> list[Path]:
    """
    Write all files of an evaluation, each whole or not at all.

    `eval_results.json` has the scores of each beam size and the protocol. The other files are about the last beam size:
    `captions_results.json` and `captions_references.json` in COCO's format, `per_image.jsonl`, `pictures/` with a few
    images for the model card, and `gallery.html`.

    Args:
        output_dir: the folder, which is made.
        scored: the scored captions of each beam size.
        protocol: how the numbers came about; image and reference counts are added.
        gallery_size: pictures on the page; 0 writes no page.
        title: heading of the page.

    Returns:
        The files.
    """
    output_dir = Path(output_dir)
    last = list(scored.values())[-1]
    results: dict[str, Any] = {}
    if evaluation.loss is not None:
        results = {"loss": evaluation.loss, "perplexity": math.exp(evaluation.loss)}
    results |= {f"beam {num_beams}": captions.content for num_beams, captions in scored.items()}
    broken = [dataset.image_ids[row] for row in evaluation.broken]
    if broken:
        logger.warning("%d images could not be read and were left out: %s", len(broken), ", ".join(broken))
    counts = {
        "num_images": len(last.captions),
        "num_references": sum(len(last.references[caption.row]) for caption in last.captions),
        "broken_images": broken,
        "tokenizer_of_the_metrics": "PTB, as coco-caption; characters where a script has no spaces",
    }
    write_json(output_dir / "eval_results.json", {"results": results, "protocol": {**protocol, **counts}})
    write_coco_files(output_dir, last.captions, last.references, dataset.image_ids)
    pictures = write_pictures(output_dir / "pictures", dataset, last)
    write_per_image(output_dir / "per_image.jsonl", dataset.image_ids, last, pictures)
    names = ["eval_results.json", "captions_results.json", "captions_references.json", "per_image.jsonl"]
    if gallery_size > 0:
        write_page(output_dir / "gallery.html", dataset, last, gallery_size, title)
        names.append("gallery.html")
    return [output_dir / name for name in names]


def write_coco_files(
    output_dir: Path,
    captions: Sequence[GeneratedCaption],
    references: Sequence[Sequence[str]],
    image_ids: Sequence[str],
) -> None:
    """Write `captions_results.json` and `captions_references.json`, which `cnnrnn score` and coco-caption read."""
    ids = {caption.row: coco_id(image_ids[caption.row]) for caption in captions}
    results = [{"image_id": ids[caption.row], "caption": caption.caption} for caption in captions]
    texts = [(row, text) for row in ids for text in references[row]]
    annotations = [{"id": number, "image_id": ids[row], "caption": text} for number, (row, text) in enumerate(texts)]
    write_json(output_dir / "captions_results.json", results)
    write_json(
        output_dir / "captions_references.json",
        {"images": [{"id": image_id} for image_id in ids.values()], "annotations": annotations},
    )


def write_pictures(folder: Path, dataset: CaptionDataset, scored: ScoredCaptions) -> dict[int, str]:
    """Write the images that [`choose_pictures`] names; returns their file names, by their place in the captions."""
    wrong = [index for index, right in enumerate(scored.right or ()) if not right]
    wrong.sort(key=lambda index: -scored.captions[index].log_probability)
    scores: Any = scored.scores.per_image.get("CIDEr", [])
    pictures = choose_pictures(scores, wrong)
    with whole_folder(folder) as partial:
        for index, name in pictures.items():
            image = load_stored_image(dataset.images[scored.captions[index].row]["image"])
            image.thumbnail((PICTURE_SIZE, PICTURE_SIZE))
            image.save(partial / name)
        _draw_attention(partial / ATTENTION_FIGURE, dataset, scored, pictures)
    return pictures


def _draw_attention(path: Path, dataset: CaptionDataset, scored: ScoredCaptions, pictures: Mapping[int, str]) -> None:
    """Show where the model looks while it writes the best captions, if it has attention maps."""
    best = [scored.captions[index] for index, name in pictures.items() if name.startswith("best")]
    if best and all(caption.attention is not None and caption.caption for caption in best):
        images = [load_stored_image(dataset.images[caption.row]["image"]) for caption in best]
        words = [caption.words[: len(caption.caption.split())] for caption in best]
        maps = [_maps_over(image, caption, dataset) for image, caption in zip(images, best, strict=True)]
        save_attention_figure(path, images, words, [np.asarray(of_words) for of_words in maps])


def _maps_over(image: Image.Image, caption: GeneratedCaption, dataset: CaptionDataset) -> np.ndarray | None:
    """Lay the attention maps of a caption on its picture, of which the processor may crop a part away."""
    return None if caption.attention is None else caption.attention_over(find_view(dataset.processor, image))


def write_per_image(
    path: Path, image_ids: Sequence[str], scored: ScoredCaptions, pictures: Mapping[int, str] | None = None
) -> None:
    """Write a JSON line for each image: caption, log-probability, references, its own scores."""
    lines = []
    for index, caption in enumerate(scored.captions):
        row: dict[str, Any] = {"image_id": coco_id(image_ids[caption.row]), "caption": caption.caption}
        row |= {"log_probability": caption.log_probability, "references": scored.references[caption.row]}
        row |= {name: float(values[index]) for name, values in scored.scores.per_image.items()}
        if scored.right is not None:
            row["is_correct"] = scored.right[index]
        if pictures is not None and index in pictures:
            row["picture"] = f"pictures/{pictures[index]}"
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    write_text(path, "".join(lines))


def write_page(path: Path, dataset: CaptionDataset, scored: ScoredCaptions, size: int, title: str) -> None:
    """Write the first captions as a page of pictures, see [`~modeling_cnnrnn.evaluation.gallery.write_gallery`]."""
    images = (load_stored_image(dataset.images[caption.row]["image"]) for caption in scored.captions[:size])
    rows = (
        GalleryRow(
            image,
            caption.caption,
            scored.references[caption.row],
            [math.log(max(p, 1e-12)) for p in caption.word_probabilities],
            scored.right[index] if scored.right is not None else None,
            _maps_over(image, caption, dataset),
            dataset.image_ids[caption.row],
            caption.words,
        )
        for index, (image, caption) in enumerate(zip(images, scored.captions[:size], strict=True))
    )
    summary = {name: f"{value:.4f}" for name, value in scored.scores.items() if value is not None}
    write_gallery(path, rows, title, summary)


def coco_id(image_id: str) -> int | str:
    """Return an image's id as COCO writes it: a number if it is one."""
    return int(image_id) if image_id.isdecimal() else image_id


def choose_pictures(scores: Sequence[float], wrong: Sequence[int] = ()) -> dict[int, str]:
    """
    Choose a few images, and the names of their files.

    Args:
        scores: the score of each image.
        wrong: the places of images with a wrong caption, most probable caption first.

    Returns:
        From places in `scores` to file names: the best, the middle and the worst images, and the first of `wrong`.
    """
    order = sorted(range(len(scores)), key=lambda index: -scores[index])
    count = min(NUM_PICTURES, len(order) // 3)
    middle = (len(order) - count) // 2
    groups = {
        "best": order[:count],
        "middle": order[middle : middle + count],
        "worst": order[len(order) - count :][::-1],
    }
    chosen = {index: f"{name}-{place}.png" for name, group in groups.items() for place, index in enumerate(group, 1)}
    others = [index for index in wrong if index not in chosen][:NUM_PICTURES]
    return chosen | {index: f"wrong-{place}.png" for place, index in enumerate(others, 1)}
