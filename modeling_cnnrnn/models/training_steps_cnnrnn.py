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

from .attention_cnnrnn import (
    CnnRnnAdaptiveAttention,
    CnnRnnAttention,
    CnnRnnCellAttention,
    CnnRnnTopDownAttention,
    activate_,
    region_weights,
)
from .recurrence_cnnrnn import RECURRENT_CLASSES


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
    return all(is_plain(layer, *RECURRENT_CLASSES) for layer in layers)


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


def _step_linear(layer: nn.Linear | None) -> Any:
    return StepLinear(layer.weight, layer.bias) if layer is not None else None


class _AttentionSteps:
    """
    Run a [`CnnRnnAttention`] for those captions that have not ended.

    Args:
        seen: regions, keys and mask, as in the attention's forward pass.
        rows: the order in which the N captions end, the last one first, `(N,)`.
    """

    def __init__(self, attention: Any, seen: Any, rows: torch.Tensor):
        self.query, self.gate = _step_linear(attention.query), _step_linear(getattr(attention, "gate", None))
        self.score, self.activation = attention.score, getattr(attention, "activation", "tanh")
        self.regions, self.keys, self.mask = seen
        self.rows, self.images = rows, rows.div(len(rows) // len(seen.regions), rounding_mode="floor")

    def __call__(self, hidden_state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Attend with the states of the first captions in `rows`, `(count, hidden_size)`."""
        scores, mask = self._compare(self.query(hidden_state))
        weights = self._softmax(scores, mask)
        context = self._average(weights)
        if self.gate is not None:
            context = torch.sigmoid(self.gate(hidden_state)) * context
        return context, weights

    def _compare(self, query: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Score the regions, `(count, R)`, and take the masks of their images."""
        images = self.images[: len(query)]
        # the largest tensor of a step, (count, R, A), is made once and changed in place
        compared = self.keys.index_select(0, images).add_(query[:, None])
        scores = self.score(activate_(compared, self.activation)).squeeze(-1)
        return scores, None if self.mask is None else self.mask.index_select(0, images)

    def _softmax(self, scores: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        return region_weights(scores[:, None], self.regions.dtype, mask).squeeze(1)

    def _average(self, weights: torch.Tensor) -> torch.Tensor:
        """Average the regions; those of an image serve all its captions without being copied."""
        rows = self.rows[: len(weights)]
        all_weights = weights.new_zeros(len(self.rows), weights.shape[1]).index_copy(0, rows, weights)
        return torch.bmm(all_weights.unflatten(0, (len(self.regions), -1)), self.regions).flatten(0, 1)[rows]


class _AdaptiveAttentionSteps(_AttentionSteps):
    """Run [`CnnRnnAdaptiveAttention`] for those captions that have not ended."""

    def __init__(self, attention: Any, seen: Any, rows: torch.Tensor):
        super().__init__(attention, seen, rows)
        self.sentinel_hidden, self.sentinel_key = map(_step_linear, (attention.sentinel_hidden, attention.sentinel_key))
        layers = (attention.sentinel_layer, attention.hidden_layer, attention.output_layer)
        self.sentinel_layer, self.hidden_layer, self.output_layer = map(_step_linear, layers)

    def __call__(  # type: ignore[override]
        self, inputs: torch.Tensor, previous: torch.Tensor, state: tuple[torch.Tensor, ...]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Look and remember, for the first captions in `rows`.

        Args:
            inputs: `sentinel_input(x)`, `(count, hidden_size)`.
            previous, state: as in the attention's forward pass.
        """
        hidden, memory = state
        sentinel = torch.sigmoid(inputs + self.sentinel_hidden(previous)) * torch.tanh(memory)
        if self.sentinel_layer is not None:
            sentinel, hidden = torch.relu(self.sentinel_layer(sentinel)), torch.tanh(self.hidden_layer(hidden))
        query = self.query(hidden)
        scores, mask = self._compare(query)
        scores = torch.cat([scores, self.score(torch.tanh(query + self.sentinel_key(sentinel)))], dim=1)
        all_weights = self._softmax(scores, F.pad(mask, (0, 1), value=True) if mask is not None else None)
        weights, sentinel_weight = all_weights.split([scores.shape[1] - 1, 1], dim=1)
        output = self._average(weights) + sentinel_weight * sentinel + hidden
        return torch.tanh(self.output_layer(output)) if self.output_layer is not None else output, weights


ATTENTION_STEPS: dict[type[nn.Module], type[_AttentionSteps]] = {
    CnnRnnAttention: _AttentionSteps,
    CnnRnnCellAttention: _AttentionSteps,
    CnnRnnTopDownAttention: _AttentionSteps,
    CnnRnnAdaptiveAttention: _AdaptiveAttentionSteps,
}


class _Steps:
    """
    The decoder's layers and its attention, as one step from a word to the states after it.

    Args:
        decoder: the [`CnnRnnDecoder`] whose layers are run.
        seen: what attention sees.
        rows: the order in which the N captions end, the last one first, `(N,)`.
        num_inputs: size of what the steps read, but for what attention adds.
    """

    def __init__(self, decoder: Any, seen: Any, rows: torch.Tensor, num_inputs: int):
        self.layers, self.dropout, self.attention = decoder.layers, decoder.dropout, decoder.attention
        self.place = self.attention.place if self.attention is not None else None
        first = self.layers[0]
        # of the rest of the first layer's input: the context, or the state of the last layer
        self.word_weight, rest_weight = first.weight_ih_l0.tensor_split([num_inputs], dim=1)
        self.first_product: Any = StepLinear(rest_weight) if self.place in ("input", "between") else None
        if self.place == "cell":
            self.first_product = _step_linear(self.attention.context)
        self.input_products = [StepLinear(rnn.weight_ih_l0, rnn.bias_ih_l0) for rnn in self.layers[1:]]
        self.hidden_products = [StepLinear(rnn.weight_hh_l0, rnn.bias_hh_l0) for rnn in self.layers]
        self.attend: Any = None
        if self.attention is not None:
            self.attend = ATTENTION_STEPS[type(self.attention)](self.attention, seen, rows)

    def read_words(self, inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Multiply what all steps read, `(num_words, num_inputs)`, at once."""
        products = F.linear(inputs, self.word_weight, self.layers[0].bias_ih_l0)
        return (products, self.attention.sentinel_input(inputs)) if self.place == "output" else (products,)

    def __call__(
        self, words: tuple[torch.Tensor, ...], states: list[tuple[torch.Tensor, ...]]
    ) -> tuple[list[tuple[torch.Tensor, ...]], torch.Tensor | None, torch.Tensor | None]:
        """Read a word of each caption. Returns the states after it, what attention has made, and its weights."""
        output, context, weights, new_states = words[0], None, None, []
        if self.place in ("input", "cell"):
            context, weights = self.attend(states[-1][0])
            product = self.first_product(context)
            if self.place == "cell":
                size = self.layers[0].hidden_size
                product = F.pad(product, (2 * size, size))
            output = output + product
        elif self.place == "between":
            output = output + self.first_product(states[-1][0])
        for index, (rnn, state) in enumerate(zip(self.layers, states, strict=True)):
            if index > 0 and self.place == "between":
                context, weights = self.attend(output)
                output = self.input_products[0](torch.cat([output, context], dim=-1))
            elif index > 0:
                output = self.input_products[index - 1](self.dropout(output))
            new_states.append(rnn.cell(output, self.hidden_products[index](state[0]), state))
            output = new_states[-1][0]
        if self.place == "output":
            context, weights = self.attend(words[1], states[-1][0], new_states[-1])
        return new_states, context, weights


def run_training_steps(
    decoder: Any,
    inputs: torch.Tensor,
    state: tuple[torch.Tensor, ...],
    seen: Any,
    lengths: torch.Tensor,
) -> tuple[list[torch.Tensor], torch.Tensor | None, torch.Tensor | None]:
    """
    Read captions word by word, each for as many steps as it is long.

    Args:
        decoder: the [`CnnRnnDecoder`] whose layers are run.
        inputs: what the steps read, but for what attention adds, `(N, T, num_inputs)`.
        state: the state before the first step, `(h,)` or `(h, c)`, each `(num_layers, N, hidden_size)`.
        seen: regions, keys and mask of the images, as in the decoder.
        lengths: of the captions, `(N,)`.

    Returns:
        The outputs of each layer `(N, T, hidden_size)`, what attention has made `(N, T, size)` and its weights
        `(N, T, num_regions)`, 0 after a caption.
    """
    num_sequences, num_steps = inputs.shape[:2]
    rows = lengths.argsort(descending=True, stable=True)  # the longest first: those at work are always the first ones
    at_work = lengths[rows] > torch.arange(num_steps, device=lengths.device)[:, None]  # (T, N)
    counts = [count for count in at_work.sum(dim=1).tolist() if count > 0]
    run_step = _Steps(decoder, seen, rows, inputs.shape[-1])
    words = run_step.read_words(inputs.transpose(0, 1)[:, rows][at_work])
    layer_states = [tuple(s[index, rows] for s in state) for index in range(len(decoder.layers))]
    outputs: list[list[torch.Tensor]] = [[] for _ in decoder.layers]
    contexts: list[Any] = []
    attentions: list[torch.Tensor] = []
    for count, *step_words in zip(counts, *(products.split(counts) for products in words), strict=True):
        if count < len(layer_states[0][0]):
            layer_states = [tuple(s[:count] for s in layer_state) for layer_state in layer_states]
        layer_states, context, weights = run_step(tuple(step_words), layer_states)
        for layer, layer_state in zip(outputs, layer_states, strict=True):
            layer.append(layer_state[0])
        if weights is not None:
            contexts.append(context)
            attentions.append(weights)

    def join(steps: list[torch.Tensor]) -> torch.Tensor:
        joined = steps[0].new_zeros(num_steps, num_sequences, steps[0].shape[-1])
        joined[at_work] = torch.cat(steps)
        return joined.transpose(0, 1)[rows.argsort()]

    needs_context = run_step.place == "output" or decoder.deep_output is not None
    return (
        [join(steps) for steps in outputs],
        join(contexts) if contexts and needs_context else None,
        join(attentions) if attentions else None,
    )


__all__ = ["StepLinear", "can_gather", "is_plain", "run_training_steps"]
