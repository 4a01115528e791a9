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
        self, hidden_state: torch.Tensor, regions: torch.Tensor, keys: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Weigh the regions by what the decoder is about to say.

        Args:
            hidden_state: state of the decoder's last layer, `(N, hidden_size)`. N = B * K, the K captions of one image
                in a row: they share its regions and keys.
            regions: `(B, num_regions, embedding_size)`.
            keys: `self.key(regions)`, `(B, num_regions, attention_size)`, the same at every step.

        Returns:
            The context `(N, embedding_size)` and the attention weights `(N, num_regions)`.
        """
        query = self.query(hidden_state).unflatten(0, (regions.shape[0], -1))  # (B, K, A)
        # `tanh_` in place: (B, K, R, A) is by far the largest tensor of a step
        scores = self.score((query[:, :, None] + keys[:, None]).tanh_()).squeeze(-1)  # (B, K, R)
        weights = region_weights(scores, regions.dtype)
        context = (weights @ regions).flatten(0, 1)
        return torch.sigmoid(self.gate(hidden_state)) * context, weights.flatten(0, 1)


def region_weights(scores: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Compute the softmax over regions, the last dimension; in float32 where `scores` are bfloat16 or float16."""
    return scores.softmax(dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(dtype)


# Values of `config.attention_type` but "none". Each class has a layer `key`, which is applied once per image, and
# `forward(hidden_state, regions, keys)`, which is called once per word.
ATTENTIONS = {"additive": CnnRnnAttention}

__all__ = ["ATTENTIONS", "CnnRnnAttention", "region_weights"]
