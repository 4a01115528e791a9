"""Attention of the decoder to the regions of the image."""

import torch
from torch import nn

from .configuration_cnnrnn import CnnRnnConfig


class CnnRnnAttention(nn.Module):
    """Soft attention to image regions with the gate beta (Show, Attend and Tell, sections 3.1.2, 4.2 and 4.2.1)."""

    def __init__(self, config: CnnRnnConfig):
        super().__init__()
        self.query = nn.Linear(config.hidden_size, config.attention_size)
        self.key = nn.Linear(config.embedding_size, config.attention_size, bias=False)
        self.score = nn.Linear(config.attention_size, 1, bias=False)
        self.gate = nn.Linear(config.hidden_size, 1)

    def forward(
        self,
        query: torch.Tensor,
        gate: torch.Tensor,
        keys: torch.Tensor,
        regions: torch.Tensor,
        rows: torch.Tensor | None = None,
        captions_per_image: int = 1,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            query: `self.query(hidden_state)`, `(N, attention_size)`; the K captions of one image stand together,
                N = B * K.
            gate: `self.gate(hidden_state)`, `(N, 1)`.
            keys: `self.key(regions)`, `(B, num_regions, attention_size)`.
            regions: `(B, num_regions, embedding_size)`.
            rows: which of the B * K captions `query` and `gate` belong to, `(N,)`, where they are not all of them.
            captions_per_image: K, needed with `rows`.

        Returns:
            The context `(N, embedding_size)` and the attention weights `(N, num_regions)`.
        """
        num_images = regions.shape[0]
        # the largest tensor of a step, (N, R, A), is made once and changed in place
        if rows is None:
            compared = (query.unflatten(0, (num_images, -1))[:, :, None] + keys[:, None]).flatten(0, 1)
        else:
            compared = keys.index_select(0, rows.div(captions_per_image, rounding_mode="floor")).add_(query[:, None])
        scores = self.score(compared.tanh_()).squeeze(-1)  # (N, R)
        # the exponentials of bfloat16 and float16 are taken in float32
        dtype = torch.promote_types(scores.dtype, torch.float32)
        weights = scores.softmax(dim=-1, dtype=dtype).to(regions.dtype)
        # the regions of an image serve all its captions without being copied
        if rows is None:
            context = torch.bmm(weights.unflatten(0, (num_images, -1)), regions).flatten(0, 1)
        else:
            all_weights = weights.new_zeros(num_images * captions_per_image, weights.shape[1])
            all_weights = all_weights.index_copy(0, rows, weights)
            context = torch.bmm(all_weights.unflatten(0, (num_images, -1)), regions).flatten(0, 1)[rows]
        return torch.sigmoid(gate) * context, weights


__all__ = ["CnnRnnAttention"]
