"""The recurrent layers of the decoder, and the state that they carry from word to word."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.cache_utils import Cache


class CnnRnnCache(Cache):
    """
    The decoder's memory between two words of generation; travels as `past_key_values`.

    Attributes:
        state: `(h,)`, or `(h, c)` of an LSTM, each `(num_layers, batch_size, hidden_size)`; `None` before the first word.
        keys: the attention's keys of the regions, `(batch_size, num_regions, attention_size)`, computed once per image.
        seq_length: number of tokens read so far.
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

    def update(self, state: tuple[torch.Tensor, ...] | None, num_new_tokens: int):  # type: ignore[override]
        self.state = state
        self.seq_length += num_new_tokens

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.seq_length

    def get_max_length(self, layer_idx: int | None = None) -> int:
        return -1

    def __len__(self) -> int:
        return 0 if self.state is None else self.state[0].shape[0]

    def reorder_cache(self, beam_idx: torch.Tensor):
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


def check_cache(cache: Any, num_sequences: int | None = None):
    """
    Check `past_key_values` of a caller.

    Args:
        cache: the cache.
        num_sequences: number of sequences that are read, if it is known.

    Raises:
        ValueError: it is no cache of a recurrent state, or holds the states of another number of sequences.
    """
    # by its name: a repository that is loaded by its own code has its own class of this name
    if not any(kind.__name__ == CnnRnnCache.__name__ for kind in type(cache).__mro__):
        raise ValueError(
            f"`past_key_values` is a {type(cache).__name__}: pass the `CnnRnnCache` that the captioner returned, or none."
        )
    held = cache.state[0].shape[1] if cache.state is not None else num_sequences
    if num_sequences is not None and held != num_sequences:
        raise ValueError(
            f"`past_key_values` holds the states of {held} sequences for {num_sequences}: pass the cache of the same "
            "batch, with `batch_repeat_interleave(num_beams)` for beams."
        )


def needs_steps(inputs: torch.Tensor) -> bool:
    """
    Whether a recurrent layer reads `(N, T, input_size)` step by step, and not in torch's fused kernel.

    The fused kernel packs the weights again at each call, which costs more than a word or two; it knows no bfloat16
    autocast on the CPU, and no compiler sees into it.
    """
    if inputs.shape[1] <= 2 or torch.compiler.is_compiling():
        return True
    return inputs.device.type == "cpu" and torch.is_autocast_enabled("cpu")


class _SteppingLayer(nn.Module):
    """
    A recurrent layer of torch, with its weights, its call and its results, that is also fast at a single step.

    At 512 units, torch's LSTM reads one word in 3.8 ms, because its kernel packs the weights at each call, and this one
    in 0.8 ms.

    Attributes:
        has_kernel: whether torch has a fused kernel for whole sequences.
    """

    has_kernel = True
    weight_ih_l0: torch.Tensor
    weight_hh_l0: torch.Tensor
    bias_ih_l0: torch.Tensor
    bias_hh_l0: torch.Tensor

    def cell(
        self, inputs: torch.Tensor, hidden: torch.Tensor, state: tuple[torch.Tensor, ...]
    ) -> tuple[torch.Tensor, ...]:
        """
        Compute the state after a step from its two matrix products (the equations of torch's documentation).

        Args:
            inputs: `W_ih x + b_ih`, `(N, num_gates * hidden_size)`.
            hidden: `W_hh h + b_hh`, of the same shape.
            state: `(h,)` or `(h, c)`, each `(N, hidden_size)`.

        Returns:
            The new state, as `state`.
        """
        raise NotImplementedError

    def forward(self, input, hx=None, gate_inputs=None):
        """
        Read sequences, as torch's layer does.

        Args:
            input: `(N, T, input_size)`.
            hx: the state before, `h` or `(h, c)`, each `(1, N, hidden_size)`; by default zeros.
            gate_inputs: what is added to `W_ih x + b_ih`, `(N, T, num_gates * hidden_size)`.

        Returns:
            The outputs `(N, T, hidden_size)` and the state after the last step, as `hx`.
        """
        if hx is None:
            return super().forward(input)
        is_pair = isinstance(hx, tuple)
        state: tuple[torch.Tensor, ...] = hx if is_pair else (hx,)
        if self.has_kernel and gate_inputs is None and not needs_steps(input):
            state = tuple(s.to(input.dtype) for s in state)
            return super().forward(input, state if is_pair else state[0])
        outputs = []
        state = tuple(s.squeeze(0) for s in state)
        products = F.linear(input, self.weight_ih_l0, self.bias_ih_l0)
        if gate_inputs is not None:
            products = products + gate_inputs
        for product in products.unbind(1):
            state = self.cell(product, F.linear(state[0], self.weight_hh_l0, self.bias_hh_l0), state)
            outputs.append(state[0])
        state = tuple(s[None] for s in state)
        return torch.stack(outputs, dim=1), state if is_pair else state[0]


class CnnRnnLSTM(_SteppingLayer, nn.LSTM):  # type: ignore[misc]
    """Long short-term memory (Hochreiter and Schmidhuber, 1997), one layer, batch first."""

    def cell(self, inputs, hidden, state):
        in_gate, forget_gate, cell, out_gate = (inputs + hidden).chunk(4, dim=-1)
        cell = torch.sigmoid(forget_gate) * state[1] + torch.sigmoid(in_gate) * torch.tanh(cell)
        return torch.sigmoid(out_gate) * torch.tanh(cell), cell


class CnnRnnGRU(_SteppingLayer, nn.GRU):  # type: ignore[misc]
    """Gated recurrent unit (https://arxiv.org/abs/1406.1078), one layer, batch first."""

    def cell(self, inputs, hidden, state):
        reset_in, update_in, new_in = inputs.chunk(3, dim=-1)
        reset_hidden, update_hidden, new_hidden = hidden.chunk(3, dim=-1)
        new = torch.tanh(new_in + torch.sigmoid(reset_in + reset_hidden) * new_hidden)
        return (torch.lerp(new, state[0], torch.sigmoid(update_in + update_hidden)),)


class CnnRnnRNN(_SteppingLayer, nn.RNN):  # type: ignore[misc]
    """Plain recurrent layer with tanh or ReLU, batch first."""

    def cell(self, inputs, hidden, state):
        activation = torch.tanh if self.nonlinearity == "tanh" else torch.relu
        return (activation(inputs + hidden),)


class CnnRnnLSTMVariant(_SteppingLayer):
    """
    An LSTM for which torch has no kernel, one layer, batch first; its weights are named as torch's.

    The rows of its weights are those of the input gate, the forget gate, the candidates and the output gate.

    Attributes:
        num_gates: number of blocks of `hidden_size` rows.
    """

    has_kernel = False
    num_gates = 4

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__()
        self.input_size, self.hidden_size = input_size, hidden_size
        self.weight_ih_l0 = nn.Parameter(torch.empty(self.num_gates * hidden_size, input_size))
        self.weight_hh_l0 = nn.Parameter(torch.empty(self.num_gates * hidden_size, hidden_size))
        self.bias_ih_l0 = nn.Parameter(torch.empty(self.num_gates * hidden_size))
        self.bias_hh_l0 = nn.Parameter(torch.empty(self.num_gates * hidden_size))
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -(hidden_size**-0.5), hidden_size**-0.5)

    def forward(self, input, hx=None, gate_inputs=None):
        if hx is None:
            hx = (input.new_zeros(1, len(input), self.hidden_size),) * 2
        return super().forward(input, hx, gate_inputs)


class CnnRnnMaxoutLSTM(CnnRnnLSTMVariant):
    """LSTM with the maximum of two candidates (FC and Att2in, https://arxiv.org/abs/1612.00563, section 2)."""

    num_gates = 5

    def cell(self, inputs, hidden, state):
        in_gate, forget_gate, first, second, out_gate = (inputs + hidden).chunk(5, dim=-1)
        cell = torch.sigmoid(forget_gate) * state[1] + torch.sigmoid(in_gate) * torch.maximum(first, second)
        return torch.sigmoid(out_gate) * torch.tanh(cell), cell


class CnnRnnLinearOutputLSTM(CnnRnnLSTMVariant):
    """LSTM without the tanh of its output, m_t = o_t c_t (Show and Tell, https://arxiv.org/abs/1411.4555, equation 8)."""

    def cell(self, inputs, hidden, state):
        in_gate, forget_gate, cell, out_gate = (inputs + hidden).chunk(4, dim=-1)
        cell = torch.sigmoid(forget_gate) * state[1] + torch.sigmoid(in_gate) * torch.tanh(cell)
        return torch.sigmoid(out_gate) * cell, cell


RECURRENT_CLASSES = (CnnRnnLSTM, CnnRnnGRU, CnnRnnRNN, CnnRnnMaxoutLSTM, CnnRnnLinearOutputLSTM)


def make_recurrent_layer(rnn_type: str, input_size: int, hidden_size: int) -> nn.Module:
    """
    Make a recurrent layer.

    Args:
        rnn_type: `"lstm"`, `"gru"`, `"rnn_tanh"`, `"rnn_relu"`, `"lstm_maxout"` or `"lstm_linear_output"`, as in the
            configuration.
    """
    if rnn_type.startswith("rnn_"):
        return CnnRnnRNN(input_size, hidden_size, batch_first=True, nonlinearity=rnn_type.removeprefix("rnn_"))
    if rnn_type.startswith("lstm_"):
        return {"maxout": CnnRnnMaxoutLSTM, "linear_output": CnnRnnLinearOutputLSTM}[rnn_type.removeprefix("lstm_")](
            input_size, hidden_size
        )
    return {"lstm": CnnRnnLSTM, "gru": CnnRnnGRU}[rnn_type](input_size, hidden_size, batch_first=True)


__all__ = [
    "RECURRENT_CLASSES",
    "CnnRnnCache",
    "CnnRnnGRU",
    "CnnRnnLSTM",
    "CnnRnnLSTMVariant",
    "CnnRnnLinearOutputLSTM",
    "CnnRnnMaxoutLSTM",
    "CnnRnnRNN",
    "check_cache",
    "make_recurrent_layer",
    "needs_steps",
]
