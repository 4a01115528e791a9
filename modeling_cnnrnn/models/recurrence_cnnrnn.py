"""The recurrent half of the decoder: the state that it carries, and one step."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable
from transformers.cache_utils import Cache


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


class StepLinear:
    """
    A linear layer that is applied at many steps, and whose weight has its gradient from one matrix product over all of them.

    Left to itself, autograd multiplies at each step a few rows of gradients with a few rows of inputs and adds the result,
    as large as the weight, to the sum so far: half of the time of a training step.

    Args:
        weight: `(out_features, in_features)`.
        bias: `(out_features,)`.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None):
        self.products: list[tuple[torch.Tensor, torch.Tensor]] = []  # inputs and output gradients of the steps
        device_type = weight.device.type
        self.dtype = torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else weight.dtype
        # a compiler sees the whole loop
        self.is_gathered = not torch.compiler.is_compiling() and torch.is_grad_enabled() and weight.requires_grad
        self.weight, self.bias = weight, bias
        if self.is_gathered:
            self.weight, self.bias = _SumOverSteps.apply(self.products, self.dtype, weight, bias)

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.is_gathered:
            return _StepProduct.apply(self.products, inputs.to(self.dtype), self.weight, self.bias)
        return F.linear(inputs, self.weight, self.bias)


class _StepProduct(torch.autograd.Function):
    """One step of a [`StepLinear`]: backward, it notes what the weight's gradient is made of."""

    @staticmethod
    def forward(ctx, products, inputs, weight, bias):
        ctx.products = products
        ctx.save_for_backward(inputs, weight)
        return F.linear(inputs, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        inputs, weight = ctx.saved_tensors
        ctx.products.append((inputs, gradient))
        return None, gradient @ weight, None, None


class _SumOverSteps(torch.autograd.Function):
    """The weight of a [`StepLinear`]: backward, it is reached when all steps are done."""

    @staticmethod
    def forward(ctx, products, dtype, weight, bias):
        ctx.set_materialize_grads(False)
        ctx.products, ctx.has_bias = products, bias is not None
        weight, bias = (None if tensor is None else tensor.to(dtype) for tensor in (weight, bias))
        return weight.view_as(weight), bias.view_as(bias) if bias is not None else None

    @staticmethod
    @once_differentiable
    def backward(ctx, *_):
        if not ctx.products:
            return None, None, None, None
        inputs, gradients = (torch.cat(rows) for rows in zip(*ctx.products, strict=True))
        ctx.products.clear()
        return None, None, gradients.t() @ inputs, gradients.sum(dim=0) if ctx.has_bias else None


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


__all__ = ["RNN_CLASSES", "CnnRnnCache", "StepLinear", "rnn_step"]
