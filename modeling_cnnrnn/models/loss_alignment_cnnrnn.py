"""Losses that rank the sentences of an image above those of other images, and the other way round."""

import torch
from torch.nn.functional import softplus


def contrastive_loss(
    scores: torch.Tensor,
    labels: torch.Tensor,
    image_ids: torch.Tensor | None = None,
    kind: str = "info_nce",
    margin: float = 1.0,
) -> torch.Tensor:
    """
    Compute a ranking loss in both directions, the mean over sentences.

    Args:
        scores: of images and sentences, `(B, N)`; for `"info_nce"`, divided by the temperature.
        labels: the image of each sentence, an index from 0 to B - 1, `(N,)`.
        image_ids: numbers of the images, `(B,)`: rows with the same number are one image, whose sentences are not each
            other's negatives. By default all images differ.
        kind: with k the image of a sentence l, and others its negatives:
            - `"info_nce"`: cross-entropy of l among the sentences of other images, plus that of k among other images (CLIP,
              https://arxiv.org/abs/2103.00020), divided by 2;
            - `"sum_hinge"`: `sum_m max(0, S_km - S_kl + margin) + sum_j max(0, S_jl - S_kl + margin)` (Deep
              Visual-Semantic Alignments, equation 9; the sum there includes l and k themselves, which adds a constant);
            - `"max_hinge"`: the maximum of each sum in its place, the hardest negatives (https://arxiv.org/abs/1707.05612).
        margin: of the hinges.

    Raises:
        ValueError: the batch has one image alone, so that there are no negatives, or labels do not fit the scores.
    """
    num_images, num_sentences = scores.shape
    if labels.shape != (num_sentences,) or (image_ids is not None and image_ids.shape != (num_images,)):
        raise ValueError(
            f"`labels` has shape {tuple(labels.shape)} for {num_sentences} sentences, and `image_ids` "
            f"{None if image_ids is None else tuple(image_ids.shape)} for {num_images} images: pass one number for each."
        )
    if not torch.compiler.is_compiling() and not 0 <= int(labels.min()) <= int(labels.max()) < num_images:
        raise ValueError(
            f"`labels` holds {int(labels.max())} with {num_images} images: pass the index of the image of each sentence."
        )
    ids = torch.arange(num_images, device=scores.device) if image_ids is None else image_ids
    is_own = ids[:, None] == ids[labels]  # (B, N)
    if not torch.compiler.is_compiling() and is_own.all():
        raise ValueError(
            f"The batch holds one image alone ({num_sentences} sentences), so there are no negatives to rank it above: pass "
            "the sentences of two images or more."
        )
    own = scores[labels, torch.arange(num_sentences, device=scores.device)]
    if kind == "info_nce":
        # the lowest number in place of -inf: where there are no negatives, the loss and its gradient are 0
        negatives = scores.masked_fill(is_own, torch.finfo(scores.dtype).min)
        over_sentences = softplus(negatives.logsumexp(dim=1)[labels] - own)
        over_images = softplus(negatives.logsumexp(dim=0) - own)
        return (over_sentences.mean() + over_images.mean()) / 2
    over_sentences = (scores[labels] - own[:, None] + margin).relu().masked_fill(is_own[labels], 0.0)  # (N, N)
    over_images = (scores - own + margin).relu().masked_fill(is_own, 0.0)  # (B, N)
    if kind == "max_hinge":
        return (over_sentences.amax(dim=1) + over_images.amax(dim=0)).mean()
    return (over_sentences.sum(dim=1) + over_images.sum(dim=0)).mean()


__all__ = ["contrastive_loss"]
