"""What the decoder is made of: the state it carries, one recurrent step, and attention to the image."""

import torch
from torch import nn
from transformers.cache_utils import Cache

from .configuration_cnnrnn import CnnRnnConfig


class CnnRnnCache(Cache):
    """
    What the decoder remembers between two words of generation; travels as `past_key_values`.

    Attributes:
        state: `(h,)`, or `(h, c)` of an LSTM, each `(num_layers, batch_size, hidden_size)`; `None` before the first word.
        keys: the attention's view of the regions, `(batch_size, num_regions, attention_size)`, computed once per image.
    """

    is_compileable = False
    is_croppable = False

    def __init__(self):
        super().__init__(layers=[])
        self.reset()

    def reset(self):
        self.state: tuple[torch.Tensor, ...] | None = None
        self.keys: torch.Tensor | None = None
        self.seq_length = 0

    def update(self, state: tuple[torch.Tensor, ...], num_new_tokens: int):  # type: ignore[override]
        self.state = state
        self.seq_length += num_new_tokens

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.seq_length

    def get_max_length(self, layer_idx: int | None = None) -> int:
        return -1

    def __len__(self) -> int:
        return 0 if self.state is None else self.state[0].shape[0]

    def reorder_cache(self, beam_idx: torch.LongTensor):
        # beams change places only within an image, and the keys belong to the image: only the state moves
        if self.state is not None:
            self.state = tuple(s.index_select(1, beam_idx.to(s.device)) for s in self.state)

    def batch_repeat_interleave(self, repeats: int):
        if self.state is not None:
            self.state = tuple(s.repeat_interleave(repeats, dim=1) for s in self.state)
        if self.keys is not None:
            self.keys = self.keys.repeat_interleave(repeats, dim=0)

    def batch_select_indices(self, indices: torch.Tensor):
        if self.state is not None:
            self.state = tuple(s[:, indices] for s in self.state)
        if self.keys is not None:
            self.keys = self.keys[indices]


class CnnRnnAttention(nn.Module):
    """Soft attention to image regions with the gate beta (Show, Attend and Tell, sections 3.1.2, 4.2 and 4.2.1)."""

    def __init__(self, config: CnnRnnConfig):
        super().__init__()
        self.query = nn.Linear(config.hidden_size, config.attention_size)
        self.key = nn.Linear(config.embedding_size, config.attention_size, bias=False)
        self.score = nn.Linear(config.attention_size, 1, bias=False)
        self.gate = nn.Linear(config.hidden_size, 1)

    def forward(
        self, hidden_state: torch.Tensor, keys: torch.Tensor, regions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            hidden_state: decoder state, `(N, hidden_size)`; the K captions of one image stand together, N = B * K.
            keys: `self.key(regions)`, `(B, num_regions, attention_size)`.
            regions: `(B, num_regions, embedding_size)`.

        Returns:
            The context `(N, embedding_size)` and the attention weights `(N, num_regions)`.
        """
        # the regions of an image serve all its captions without being copied
        query = self.query(hidden_state).unflatten(0, (regions.shape[0], -1))  # (B, K, A)
        scores = self.score(torch.tanh(query[:, :, None] + keys[:, None])).squeeze(-1)  # (B, K, R)
        # the exponentials of bfloat16 and float16 are taken in float32
        dtype = torch.promote_types(scores.dtype, torch.float32)
        weights = scores.softmax(dim=-1, dtype=dtype).to(regions.dtype)
        context = torch.bmm(weights, regions).flatten(0, 1)
        return torch.sigmoid(self.gate(hidden_state)) * context, weights.flatten(0, 1)


RNN_CLASSES = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn_tanh": nn.RNN, "rnn_relu": nn.RNN}


def rnn_step(
    rnn_type: str, inputs: torch.Tensor, hidden: torch.Tensor, state: tuple[torch.Tensor, ...]
) -> tuple[torch.Tensor, ...]:
    """
    One step of `nn.LSTM`, `nn.GRU` or `nn.RNN` from its two matrix products (the equations of torch's documentation).

    The fused modules pack their weights anew at every call, which for a single word costs more than the word.

    Args:
        inputs: `W_ih x + b_ih`, `(batch_size, num_gates * hidden_size)`.
        hidden: `W_hh h + b_hh`, of the same shape.
        state: `(h,)` or `(h, c)`, each `(batch_size, hidden_size)`.

    Returns:
        The new state, as `state`.
    """
    if rnn_type == "lstm":
        in_gate, forget_gate, cell, out_gate = (inputs + hidden).chunk(4, dim=-1)
        cell = torch.sigmoid(forget_gate) * state[1] + torch.sigmoid(in_gate) * torch.tanh(cell)
        return torch.sigmoid(out_gate) * torch.tanh(cell), cell
    if rnn_type == "gru":
        reset_in, update_in, new_in = inputs.chunk(3, dim=-1)
        reset_hidden, update_hidden, new_hidden = hidden.chunk(3, dim=-1)
        new = torch.tanh(new_in + torch.sigmoid(reset_in + reset_hidden) * new_hidden)
        return (torch.lerp(new, state[0], torch.sigmoid(update_in + update_hidden)),)
    activation = torch.tanh if rnn_type == "rnn_tanh" else torch.relu
    return (activation(inputs + hidden),)


__all__ = ["RNN_CLASSES", "CnnRnnAttention", "CnnRnnCache", "rnn_step"]
