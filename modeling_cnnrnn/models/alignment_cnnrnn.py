"""
From scores of words and regions to snippets: neighbouring words that belong to one region.

A chain over the words gains the score of each word with its region, and a constant where a word has the region of the word
before it (Deep Visual-Semantic Alignments, https://arxiv.org/abs/1412.2306).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from .image_loading_cnnrnn import load_image
from .image_view_cnnrnn import find_view
from .region_encoder_cnnrnn import CnnRnnRegionOutput


class AlignedSnippet(NamedTuple):
    """
    Words of a sentence that belong to one region.

    Attributes:
        box: the region, left, top, right, bottom in pixels of the upright picture.
        text: the words, as they stand in the sentence.
        score: mean score of the words with the region, in the unit of the model's scores.
    """

    box: tuple[float, float, float, float]
    text: str
    score: float


def decode_chain(scores: torch.Tensor, smoothness: float, mask: torch.Tensor | None = None) -> torch.Tensor:
    """
    Find the regions a_1 ... a_T of the words of each sentence that maximise

        sum_t scores[t, a_t] + smoothness * sum_t [a_t = a_t+1]

    exactly. All changes of region cost the same, so the best way to come from another region is the same for all regions, and
    a step takes O(R) where Viterbi's algorithm for any costs takes O(R^2).

    Args:
        scores: `(N, T, R)`; -inf rules a region out.
        smoothness: beta, in the unit of the scores. 0 leaves each word to its best region.
        mask: where there is a word, `(N, T)`; words come first.

    Returns:
        The region of each word, `(N, T)`; after the last word, its region.
    """
    total, stays, origins = scores[:, 0], [], []
    for t in range(1, scores.shape[1]):
        best, origin = total.max(dim=1, keepdim=True)
        stay = total + smoothness >= best
        best_before = torch.where(stay, total + smoothness, best)
        if mask is not None:
            is_word = mask[:, t, None]
            total = torch.where(is_word, best_before + scores[:, t], total)  # its best region stays the best, and stays
        else:
            total = best_before + scores[:, t]
        stays.append(stay)
        origins.append(origin)
    region = total.argmax(dim=1, keepdim=True)
    path = [region]
    for stay, origin in zip(reversed(stays), reversed(origins), strict=True):
        region = torch.where(stay.gather(1, region), region, origin)
        path.append(region)
    return torch.cat(path[::-1], dim=1)


class CnnRnnAlignmentMixin:
    """Give the words of sentences to the regions of pictures, in a model with `similarity`."""

    @torch.no_grad()
    def align_words(
        self,
        image_output: CnnRnnRegionOutput,
        text_output: Any,
        smoothness: float | None = None,
        cells_only: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Give each word of N sentences to a region of its picture.

        Args:
            image_output: of `get_image_features`, N pictures, one for each sentence.
            text_output: of `get_text_features`.
            smoothness: gain of neighbouring words that share a region, in the unit of the scores; that of the configuration by
                default.
            cells_only: whether no word may belong to the whole picture, which is otherwise one of the regions.

        Returns:
            The region of each token, `(N, T)`, -1 where it is no word, and its score with it, `(N, T)`, 0 where it is no word.

        Raises:
            ValueError: the numbers of pictures and sentences differ, `smoothness` is negative, or there is no region but the
                whole picture.
        """
        config = self.config  # type: ignore[attr-defined]
        smoothness = config.smoothness if smoothness is None else smoothness
        if not smoothness >= 0:
            raise ValueError(f"`smoothness` is {smoothness}: pass 0 or more.")
        regions, words, mask = image_output.last_hidden_state, text_output.last_hidden_state, text_output.word_mask
        if len(regions) != len(words):
            raise ValueError(
                f"{len(words)} sentences were given with {len(regions)} pictures: pass one picture for each."
            )
        scores = (words @ regions.transpose(1, 2)).float()
        if image_output.region_mask is not None:
            scores = scores.masked_fill(~image_output.region_mask[:, None], -torch.inf)
        if cells_only and config.add_whole_image:
            if scores.shape[2] == 1:
                raise ValueError("`cells_only` is True, but the whole picture is the only region: pass False.")
            scores[..., -1] = -torch.inf
        # words move to the front, in their order, and back at the end
        order = (~mask).int().argsort(dim=1, stable=True)
        ordered = scores.gather(1, order[..., None].expand_as(scores))
        chosen = decode_chain(ordered, smoothness, mask.gather(1, order)).gather(1, order.argsort(dim=1))
        gained = scores.gather(2, chosen[..., None]).squeeze(2)
        return chosen.masked_fill(~mask, -1), gained.masked_fill(~mask, 0.0)

    def align(
        self,
        image: Any,
        sentence: str,
        processor: Any,
        boxes: Sequence[Sequence[float]] | None = None,
        smoothness: float | None = None,
        cells_only: bool = False,
    ) -> list[AlignedSnippet]:
        """
        Divide a sentence into snippets, and say to which region of a picture each belongs.

        Args:
            image: the picture, as the processor takes it.
            sentence: a sentence.
            processor: the processor of the model.
            boxes: regions, left, top, right, bottom in pixels of the upright picture, such as [`detect_boxes`] finds; by default
                the cells of the CNN.
            smoothness, cells_only: as for [`~CnnRnnAlignmentMixin.align_words`].

        Returns:
            `[(box, text, score)]`, in the order of the sentence.

        Raises:
            ValueError: the sentence has no word that the vocabulary knows, a box is outside the picture or has no area, or as
                [`~CnnRnnAlignmentMixin.align_words`].
            OSError: the picture cannot be read.
        """
        return self.align_sentences(image, [sentence], processor, boxes, smoothness, cells_only)[0]

    @torch.no_grad()
    def align_sentences(
        self,
        image: Any,
        sentences: Sequence[str],
        processor: Any,
        boxes: Sequence[Sequence[float]] | None = None,
        smoothness: float | None = None,
        cells_only: bool = False,
    ) -> list[list[AlignedSnippet]]:
        """Align several sentences with one picture, which the CNN sees once; as [`~CnnRnnAlignmentMixin.align`] does one."""
        picture = load_image(image)
        view = find_view(processor, picture)
        parts = None if boxes is None else [torch.from_numpy(view.to_parts(boxes))]
        pixel_values = processor(images=picture, return_tensors="pt")["pixel_values"]
        options = {"add_special_tokens": False, "split_special_tokens": True, "return_offsets_mapping": True}
        words = processor.tokenizer(list(sentences), padding=True, padding_side="right", **options)
        device = self.device  # type: ignore[attr-defined]
        input_ids, attention_mask = (
            torch.tensor(words[name], device=device) for name in ("input_ids", "attention_mask")
        )
        for sentence, mask in zip(sentences, words["attention_mask"], strict=True):
            if not any(mask):
                raise ValueError(f"`sentence` is {sentence!r}, which has no word: pass one that has.")
        image_output = self.get_image_features(  # type: ignore[attr-defined]
            pixel_values.to(device), boxes=parts, output_boxes=True, return_dict=True
        )
        text_output = self.get_text_features(  # type: ignore[attr-defined]
            input_ids, attention_mask, return_dict=True
        )
        region_mask = image_output.region_mask
        each = CnnRnnRegionOutput(
            last_hidden_state=image_output.last_hidden_state.expand(len(sentences), -1, -1),
            region_mask=None if region_mask is None else region_mask.expand(len(sentences), -1),
        )
        regions, scores = self.align_words(each, text_output, smoothness, cells_only)
        aligned = []
        for row, (sentence, offsets) in enumerate(zip(sentences, words["offset_mapping"], strict=True)):
            snippets = []
            for start, end in group_words(regions[row].tolist()):
                box = view.to_pixels(image_output.boxes[0, regions[row, start]].tolist())
                text = sentence[offsets[start][0] : offsets[end - 1][1]]
                snippets.append(AlignedSnippet(box, text, scores[row, start:end].mean().item()))
            aligned.append(snippets)
        return aligned


def group_words(regions: Sequence[int]) -> list[tuple[int, int]]:
    """Find the runs `[start, end)` of words of one region; tokens of region -1 are no words, and in no run."""
    runs: list[tuple[int, int]] = []
    for place, region in enumerate(regions):
        if region == -1:
            continue
        if runs and runs[-1][1] == place and regions[place - 1] == region:
            runs[-1] = runs[-1][0], place + 1
        else:
            runs.append((place, place + 1))
    return runs


__all__ = ["AlignedSnippet", "CnnRnnAlignmentMixin", "decode_chain", "group_words"]
