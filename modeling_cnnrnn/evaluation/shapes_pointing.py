"""Measure whether words point at the object that they name, in the drawn pictures of `shapes`."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from ..data.batching import CaptionDataset
from ..data.shapes import Box
from ..data.shapes.language import named_things
from ..metrics.pointing import pointing_hits
from ..models.modeling_alignment_cnnrnn import CnnRnnForImageTextRetrieval


CAPTIONS_OF_AN_IMAGE = 2
SHIFTS = np.arange(-1.5, 1.51, 0.5)  # in cells


@dataclass
class PointedWord:
    """
    A word that names an object, and the cell that it fits best.

    Attributes:
        slot: what the word says of the object: "size", "texture", "pattern", "color" or "kind".
        center: where the cell looks, x and y in parts of the picture.
        middle: the middle of its place in the grid of cells, in the same unit.
        cell: width and height of a cell, in the same unit.
        boxes: the objects that the word may mean, `(num_boxes, 4)`.
    """

    slot: str
    center: np.ndarray
    middle: np.ndarray
    cell: np.ndarray
    boxes: np.ndarray


@torch.inference_mode()
def point_words(
    model: CnnRnnForImageTextRetrieval,
    dataset: CaptionDataset,
    captions: Sequence[Sequence[str]],
    boxes: Sequence[Sequence[tuple[str, Box]]],
) -> list[PointedWord]:
    """
    Find the best cell of each word that names an object; the whole image is no cell.

    Args:
        model: an alignment whose cells form a square.
        dataset: pictures of `shapes`.
        captions: those of each row of `dataset`; the first two are read.
        boxes: the objects of each row, as [`~modeling_cnnrnn.data.shapes.boxes_of`] returns them.
    """
    was_training = model.training
    model.eval()
    pointed: list[PointedWord] = []
    for row, sentences in enumerate(captions):
        pixel_values = dataset[row]["pixel_values"][None].to(model.device)
        images = model.get_image_features(pixel_values, output_boxes=True)
        num_cells = images.last_hidden_state.shape[1] - int(model.config.add_whole_image)
        side = round(num_cells**0.5)
        cells = images.last_hidden_state[0, :num_cells]
        assert images.centers is not None  # asked for above
        centers = images.centers[0, :num_cells].cpu().numpy()
        chosen = list(sentences[:CAPTIONS_OF_AN_IMAGE])
        ids = [torch.tensor(ids) for ids in dataset.processor.encode_captions(chosen)]
        padded = pad_sequence(ids, batch_first=True, padding_value=model.config.pad_token_id or 0)
        words = model.get_text_features(padded.to(model.device))
        for sentence, vectors, mask in zip(chosen, words.last_hidden_state, words.word_mask, strict=True):
            best = (vectors[mask] @ cells.T).argmax(dim=1).tolist()
            for (_, slot, name), cell in zip(named_things(sentence), best, strict=True):
                if slot is None:
                    continue
                middle = (np.array([cell % side, cell // side]) + 0.5) / side
                meant = np.array([box for other, box in boxes[row] if other == name])
                pointed.append(PointedWord(slot, centers[cell], middle, np.full(2, 1 / side), meant))
    model.train(was_training)
    return pointed


def pointing_scores(pointed: Sequence[PointedWord]) -> dict[str, float]:
    """
    Compute the shares of words whose cell looks into a box of the object that they name.

    Returns:
        "pointing", of all words; "pointing_color", "pointing_kind", ..., of those that say this of it;
        "pointing_middle", with the middle of a cell's place in the grid for where it looks; "pointing_shifted", after the
        one shift for all words, in halves of a cell, that makes the share largest, and that shift, "shift_x" and
        "shift_y"; "pointing_chance", of cells at random.
    """
    centers, middles = np.stack([word.center for word in pointed]), np.stack([word.middle for word in pointed])
    boxes, cell = [word.boxes for word in pointed], pointed[0].cell
    hits = pointing_hits(centers, boxes)
    scores = {"pointing": float(hits.mean())}
    for slot in sorted({word.slot for word in pointed}):
        scores[f"pointing_{slot}"] = float(hits[[word.slot == slot for word in pointed]].mean())
    scores["pointing_middle"] = float(pointing_hits(middles, boxes).mean())
    shifted = {
        shift: float(pointing_hits(centers + cell * shift, boxes).mean())
        for shift in itertools.product(SHIFTS, repeat=2)
    }
    best = max(shifted, key=lambda shift: (shifted[shift], -abs(shift[0]) - abs(shift[1])))
    scores |= {"pointing_shifted": shifted[best], "shift_x": float(best[0]), "shift_y": float(best[1])}
    areas = [(its[:, 2:] - its[:, :2]).prod(axis=1).sum() for its in boxes]
    return scores | {"pointing_chance": float(np.mean(areas))}
