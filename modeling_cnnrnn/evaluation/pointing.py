"""Measure whether the phrases of sentences point at the things they name, where their boxes are given."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from ..data.phrase_boxes import GroundedImage, Phrase
from ..metrics.pointing import overlap_hits, pointing_hits
from ..models.image_loading_cnnrnn import load_image
from ..models.image_view_cnnrnn import find_view


@torch.inference_mode()
def evaluate_pointing(
    model: Any, processor: Any, images: Iterable[tuple[Any, GroundedImage]], threshold: float = 0.5
) -> dict[str, Any]:
    """
    Point at what each phrase names: where the cell looks that fits its words best, on average.

    Args:
        model: a [`CnnRnnForImageTextRetrieval`]. The whole picture as a region points at nothing, and is left out.
        processor: its processor.
        images: each picture, as [`load_image`] takes it, with its phrases and boxes.
        threshold: least intersection over union of the accuracy by overlap.

    Returns:
        `pointing_game`, the share of phrases whose point is in a box of theirs, and `accuracy_by_overlap`, the share of those
        whose cell overlaps their box. They are two measures and not comparable; cells are small, so the second is low.
        `pointing_game_by_kind`, the first for each kind of thing. `num_phrases` counted, which all have a box, `num_unknown`
        among them of which no word is known, which are missed, and `num_without_box`, which are not counted.

    Raises:
        ValueError: no phrase has a box, or a picture has another size than its boxes say.
        OSError: a picture cannot be read.
    """
    points, predicted, references, kinds = [], [], [], []
    num_unknown = num_without_box = 0
    for picture, grounded in images:
        picture = load_image(picture)
        if picture.size != (grounded.width, grounded.height):
            raise ValueError(
                f"The picture {grounded.image_id} has {picture.width} x {picture.height} pixels and its boxes are of one of "
                f"{grounded.width} x {grounded.height}: pass the picture that was annotated."
            )
        view = find_view(processor, picture)
        pixel_values = processor(images=picture, return_tensors="pt")["pixel_values"].to(model.device)
        regions = model.get_image_features(pixel_values, output_boxes=True, return_dict=True)
        num_cells = regions.last_hidden_state.shape[1] - model.config.add_whole_image
        for sentence in grounded.sentences:
            named = [phrase for phrase in sentence.phrases if grounded.boxes.get(phrase.entity)]
            num_without_box += len(sentence.phrases) - len(named)
            scores = _score_phrases(model, processor, sentence.text, named, regions.last_hidden_state[0, :num_cells])
            for phrase, its_scores in zip(named, scores, strict=True):
                references.append(np.array(grounded.boxes[phrase.entity]))
                kinds.append(phrase.kinds)
                if its_scores is None:
                    num_unknown += 1
                    points.append((np.nan, np.nan))
                    predicted.append((np.nan,) * 4)
                    continue
                best = int(its_scores.argmax())
                points.append(view.to_pixels([*regions.centers[0, best].tolist()] * 2)[:2])
                predicted.append(view.to_pixels(regions.boxes[0, best].tolist()))
    if not references:
        raise ValueError("No phrase has a box: pass images with boxes of what their phrases name.")
    hits = pointing_hits(np.array(points), references)
    by_kind = defaultdict(list)
    for hit, its_kinds in zip(hits.tolist(), kinds, strict=True):
        for kind in its_kinds:
            by_kind[kind].append(hit)
    return {
        "pointing_game": float(hits.mean()),
        "accuracy_by_overlap": float(overlap_hits(np.array(predicted), references, threshold).mean()),
        "pointing_game_by_kind": {kind: float(np.mean(values)) for kind, values in sorted(by_kind.items())},
        "num_phrases": len(references),
        "num_unknown": num_unknown,
        "num_without_box": num_without_box,
    }


def _score_phrases(
    model: Any, processor: Any, text: str, phrases: list[Phrase], cells: torch.Tensor
) -> list[torch.Tensor | None]:
    """Average the scores of the words of each phrase with each cell, `(num_cells,)`; `None` if none of its words is known."""
    tokens = processor.tokenizer(text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True)
    ids, places = tokens["input_ids"], tokens["offset_mapping"]
    unknown = processor.tokenizer.unk_token_id
    if not set(ids) - {unknown}:
        return [None] * len(phrases)
    words = model.get_text_features(torch.tensor([ids], device=cells.device), return_dict=True).last_hidden_state[0]
    scores: list[torch.Tensor | None] = []
    for phrase in phrases:
        known = [
            place
            for place, (start, end) in enumerate(places)
            if start < phrase.end and end > phrase.start and ids[place] != unknown
        ]
        scores.append((words[known] @ cells.T).mean(dim=0) if known else None)
    return scores
