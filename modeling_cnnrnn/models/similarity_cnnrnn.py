"""
Scores of images and sentences, made of scores of regions and words.

One matrix product compares all regions of all images with all words of all sentences, in parts of limited size.
"""

from collections.abc import Iterator

import torch
from torch.nn.functional import normalize
from torch.utils.checkpoint import checkpoint


MAX_PRODUCTS = 2**24  # of regions and words that are in memory at once: 64 MiB in float32


def score_words(
    regions: torch.Tensor,
    words: torch.Tensor,
    region_mask: torch.Tensor | None = None,
    attention_sharpness: float | None = None,
) -> torch.Tensor:
    """
    Score how well words fit images.

    Args:
        regions: `(B, R, E)`.
        words: `(W, E)`.
        region_mask: `(B, R)`, where there is a region.
        attention_sharpness: if given, a word is compared with the mixture of regions that it attends to (SCAN,
            https://arxiv.org/abs/1803.08024, equations 7 and 8), and else with the best region.

    Returns:
        `(B, W)`.
    """
    products = (regions.flatten(0, 1) @ words.T).unflatten(0, regions.shape[:2])  # (B, R, W)
    missing = None if region_mask is None else ~region_mask[..., None]
    if missing is not None:
        products = products.masked_fill(missing, -torch.inf)  # 0 would win over negative scores
    if attention_sharpness is None:
        return _in_full(_MaxOverRegions.apply(products))
    weights = (attention_sharpness * products).softmax(dim=1)
    if missing is not None:
        products = products.masked_fill(missing, 0.0)  # their weight is 0
    # the mixture sum_r a_r v_r is not made: its product with the word is sum_r a_r (v_r w), its length (a' V V' a)^1/2
    lengths = _in_full((weights * ((regions @ regions.transpose(1, 2)) @ weights)).sum(dim=1))
    return _in_full((weights * products).sum(dim=1)) / lengths.clamp(min=1e-12).sqrt()


def _in_full(scores: torch.Tensor) -> torch.Tensor:
    """Sum over words, and divide by temperatures, in float32 at least."""
    return scores.to(torch.promote_types(scores.dtype, torch.float32))


class _MaxOverRegions(torch.autograd.Function):
    """Compute `products.amax(dim=1)`; the backward pass reads `products` once, where torch's reads it four times."""

    @staticmethod
    def forward(ctx, products: torch.Tensor) -> torch.Tensor:
        best = products.amax(dim=1)
        ctx.save_for_backward(products, best)
        return best

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        products, best = ctx.saved_tensors
        is_best = products == best.unsqueeze(1)
        share = gradient / is_best.sum(dim=1)  # equal regions share it
        return torch.where(is_best, share.unsqueeze(1), 0)


def score_sentences(
    regions: torch.Tensor,
    words: torch.Tensor,
    word_mask: torch.Tensor,
    region_mask: torch.Tensor | None = None,
    attention_sharpness: float | None = None,
    word_reduction: str = "mean",
    max_products: int = MAX_PRODUCTS,
) -> torch.Tensor:
    """
    Score images and sentences: the sum or the mean of the scores of the words (equation 8).

    Args:
        regions: `(B, R, E)`.
        words: `(N, T, E)`.
        word_mask: `(N, T)`, where there is a word; each sentence has one.
        region_mask, attention_sharpness: as for [`score_words`].
        word_reduction: `"sum"` or `"mean"`.
        max_products: number of products of regions and words that are in memory at once. Where gradients are needed, each
            part is computed again in the backward pass if there is more than one.

    Returns:
        `(B, N)`, in float32.
    """

    def score(regions, words, word_mask, region_mask):
        fit = score_words(regions, words[word_mask], region_mask, attention_sharpness)
        sentences = word_mask.nonzero()[:, 0]
        total = fit.new_zeros(len(regions), len(words)).index_add(1, sentences, fit)
        return total / word_mask.sum(dim=1) if word_reduction == "mean" else total

    images, sentences = _parts(regions.shape[:2], word_mask, max_products)
    if len(images) == len(sentences) == 1:
        return score(regions, words, word_mask, region_mask)
    rows = []
    for chosen in images:
        mask = None if region_mask is None else region_mask[chosen]
        scores = [
            checkpoint(score, regions[chosen], words[part], word_mask[part], mask, use_reentrant=False)
            for part in sentences
        ]
        rows.append(torch.cat(scores, dim=1))
    return torch.cat(rows)


def _parts(num_regions: torch.Size, word_mask: torch.Tensor, max_products: int) -> tuple[list[slice], list[slice]]:
    """Divide images and sentences so that the products of each part fit; one image and one sentence are the least."""
    num_images, per_image = num_regions
    length = word_mask.shape[1]
    sentences = min(len(word_mask), max(max_products // (per_image * length), 1))
    images = min(num_images, max(max_products // (per_image * length * sentences), 1))
    return list(_slices(num_images, images)), list(_slices(len(word_mask), sentences))


def _slices(total: int, size: int) -> Iterator[slice]:
    for start in range(0, total, size):
        yield slice(start, start + size)


def score_pooled(images: torch.Tensor, sentences: torch.Tensor) -> torch.Tensor:
    """Compute the cosines of images `(B, E)` and sentences `(N, E)`, `(B, N)`."""
    return _in_full(normalize(images, dim=-1) @ normalize(sentences, dim=-1).T)


__all__ = ["MAX_PRODUCTS", "score_pooled", "score_sentences", "score_words"]
