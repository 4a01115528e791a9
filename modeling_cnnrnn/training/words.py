"""A second, easier question about an image that teaches a CNN from scratch to see before the RNN can speak."""

import torch
import torch.nn.functional as F
from torch import nn

from ..configuration_cnnrnn import CnnRnnConfig
from .batching import IGNORED


class WordsInImage(nn.Module):
    """
    Which words do the captions of an image use? Asked of its regions, one of which must show each word.

    The multiple instance learning of "From captions to visual concepts and back" (Fang et al.,
    https://arxiv.org/abs/1411.4952, section 3), here with the maximum over regions, as a loss beside that of the captions:
    its gradient goes straight to the CNN, where that of the captions comes through an RNN that has yet to learn to listen.
    The module is of use in training only and is no part of the captioner.
    """

    def __init__(self, config: CnnRnnConfig):
        super().__init__()
        self.scores = nn.Linear(config.embedding_size, config.vocab_size)
        nn.init.constant_(self.scores.bias, -3.0)  # most words are in few captions
        special = (config.pad_token_id, config.bos_token_id, config.eos_token_id, config.unk_token_id)
        # special tokens are in every caption or in none
        self.words = [token for token in range(config.vocab_size) if token not in special]

    def forward(self, regions: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """
        Args:
            regions: embedded regions, `encoder_last_hidden_state` of the captioner, `(B, num_regions, embedding_size)`.
            labels: token ids of the captions, `(B, K, T)`.

        Returns:
            Binary cross-entropy, summed over the vocabulary and averaged over the images, in nats.
        """
        tokens = labels.flatten(1).masked_fill(labels.flatten(1) == IGNORED, 0)
        scores = self.scores(regions).amax(dim=1).float()
        targets = torch.zeros_like(scores).scatter_(1, tokens, 1.0)
        loss = F.binary_cross_entropy_with_logits(scores[:, self.words], targets[:, self.words], reduction="sum")
        return loss / len(labels)
