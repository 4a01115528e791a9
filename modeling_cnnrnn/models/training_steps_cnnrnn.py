"""
Faster steps of the decoder in training. `CnnRnnDecoder._run_steps` is the loop to read, and computes the same.

- The gradient of a weight is one matrix product over all steps ([`StepLinear`]). Autograd alone multiplies a few rows at
  each step and adds the result, as large as the weight, to the sum so far: half of the time of a training step.
- A finished caption takes part in no further step.
- The words of all steps are multiplied with their part of the input weights at once.

Weights are read here without calling their layers. So this serves only layers as this package made them
([`can_gather`]); one that is replaced, wrapped or hooked is called in the plain loop.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.modules import module as torch_module

from .attention_cnnrnn import CnnRnnAttention, region_weights
from .recurrence_cnnrnn import CnnRnnGRU, CnnRnnLSTM, CnnRnnRNN


def is_plain(module: nn.Module, *classes: type[nn.Module]) -> bool:
    """Whether calling a module is the forward pass of one of these classes and nothing else: no subclass, no hook."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return type(module) in classes and "forward" not in vars(module) and not any(hooks)


def can_gather(layers: nn.ModuleList, attention: nn.Module | None) -> bool:
    """Whether these layers may be run by [`run_training_steps`]: gradients are wanted, and nobody watches or wraps them."""
    if not torch.is_grad_enabled() or torch.compiler.is_compiling() or torch_module._has_any_global_hook():
        return False
    if attention is not None:
        linear_layers = attention.children()
        if not is_plain(attention, *ATTENTION_STEPS) or not all(is_plain(layer, nn.Linear) for layer in linear_layers):
            return False
    return all(is_plain(layer, CnnRnnLSTM, CnnRnnGRU, CnnRnnRNN) for layer in layers)


class StepLinear:
    """
    Apply a linear layer at many steps; the gradient of its weight is one matrix product over all of them.

    Args:
        weight: `(out_features, in_features)`.
        bias: `(out_features,)`.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None):
        self.products: list[tuple[torch.Tensor, torch.Tensor]] = []  # inputs and output gradients of the steps
        device_type = weight.device.type
        self.dtype = torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else weight.dtype
        self.weight, self.bias = weight, bias
        self.is_gathered = torch.is_grad_enabled() and weight.requires_grad
        if self.is_gathered:
            self.weight, self.bias = _SumOverSteps.apply(self.products, self.dtype, weight, bias)

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.is_gathered:
            return _StepProduct.apply(self.products, inputs.to(self.dtype), self.weight, self.bias)
        return F.linear(inputs, self.weight, self.bias)


class _StepProduct(torch.autograd.Function):
    """Multiply at one step of a [`StepLinear`]; the backward pass notes the factors of the weight's gradient."""

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
    """Pass the weight of a [`StepLinear`] on; its backward pass runs after those of all steps, and multiplies once."""

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


class _AdditiveAttentionSteps:
    """
    Run [`CnnRnnAttention`] for those captions that have not ended.

    Args:
        regions, keys: as in the attention's forward pass.
        rows: the order in which the N captions end, the last one first, `(N,)`.
    """

    def __init__(self, attention: CnnRnnAttention, regions: torch.Tensor, keys: torch.Tensor, rows: torch.Tensor):
        self.query, self.gate = (StepLinear(layer.weight, layer.bias) for layer in (attention.query, attention.gate))
        self.score = attention.score
        self.regions, self.keys, self.rows = regions, keys, rows
        self.images = rows.div(len(rows) // len(regions), rounding_mode="floor")

    def __call__(self, hidden_state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Attend with the states of the first captions in `rows`, `(count, hidden_size)`."""
        count = len(hidden_state)
        # the largest tensor of a step, (count, R, A), is made once and changed in place
        compared = self.keys.index_select(0, self.images[:count]).add_(self.query(hidden_state)[:, None])
        scores = self.score(compared.tanh_()).squeeze(-1)  # (count, R)
        weights = region_weights(scores, self.regions.dtype)
        # the regions of an image serve all its captions without being copied
        all_weights = weights.new_zeros(len(self.rows), weights.shape[1])
        all_weights = all_weights.index_copy(0, self.rows[:count], weights).unflatten(0, (len(self.regions), -1))
        context = torch.bmm(all_weights, self.regions).flatten(0, 1)[self.rows[:count]]
        return torch.sigmoid(self.gate(hidden_state)) * context, weights


ATTENTION_STEPS = {CnnRnnAttention: _AdditiveAttentionSteps}


def run_training_steps(
    decoder: Any,
    inputs: torch.Tensor,
    state: tuple[torch.Tensor, ...],
    regions: torch.Tensor,
    keys: torch.Tensor | None,
    lengths: torch.Tensor,
) -> tuple[list[torch.Tensor], torch.Tensor | None]:
    """
    Read captions word by word, each for as many steps as it is long.

    Args:
        decoder: the [`CnnRnnDecoder`] whose layers are run.
        inputs: what the steps read, but for the context of attention, `(N, T, input_size)`.
        state: the state before the first step, `(h,)` or `(h, c)`, each `(num_layers, N, hidden_size)`.
        regions: `(B, num_regions, embedding_size)`, N = B * K.
        keys: of the regions, `(B, num_regions, attention_size)`.
        lengths: of the captions, `(N,)`.

    Returns:
        The outputs of each layer `(N, T, hidden_size)` and the attention weights `(N, T, num_regions)`, 0 after a caption.
    """
    num_sequences, num_steps = inputs.shape[:2]
    rows = lengths.argsort(descending=True, stable=True)  # the longest first: those at work are always the first ones
    at_work = lengths[rows] > torch.arange(num_steps, device=lengths.device)[:, None]  # (T, N)
    counts = [count for count in at_work.sum(dim=1).tolist() if count > 0]

    first, attend = decoder.layers[0], None
    word_weight, context_weight = first.weight_ih_l0.tensor_split([inputs.shape[-1]], dim=1)
    words = F.linear(inputs.transpose(0, 1)[:, rows][at_work], word_weight, first.bias_ih_l0)  # of all steps at once
    if keys is not None:
        attend = ATTENTION_STEPS[type(decoder.attention)](decoder.attention, regions, keys, rows)
        context_product = StepLinear(context_weight)
    input_products = [StepLinear(rnn.weight_ih_l0, rnn.bias_ih_l0) for rnn in decoder.layers[1:]]
    hidden_products = [StepLinear(rnn.weight_hh_l0, rnn.bias_hh_l0) for rnn in decoder.layers]

    layer_states = [tuple(s[index, rows] for s in state) for index in range(len(decoder.layers))]
    outputs: list[list[torch.Tensor]] = [[] for _ in decoder.layers]
    attentions = []
    for count, output in zip(counts, words.split(counts), strict=True):
        if count < len(layer_states[0][0]):
            layer_states = [tuple(s[:count] for s in layer_state) for layer_state in layer_states]
        if attend is not None:
            context, weights = attend(layer_states[-1][0])
            output = output + context_product(context)
            attentions.append(weights)
        for index, rnn in enumerate(decoder.layers):
            if index > 0:
                output = input_products[index - 1](decoder.dropout(output))
            previous = layer_states[index]
            layer_states[index] = rnn.cell(output, hidden_products[index](previous[0]), previous)
            output = layer_states[index][0]
            outputs[index].append(output)

    def join(steps: list[torch.Tensor]) -> torch.Tensor:
        joined = steps[0].new_zeros(num_steps, num_sequences, steps[0].shape[-1])
        joined[at_work] = torch.cat(steps)
        return joined.transpose(0, 1)[rows.argsort()]

    return [join(steps) for steps in outputs], join(attentions) if attentions else None


__all__ = ["StepLinear", "can_gather", "is_plain", "run_training_steps"]
