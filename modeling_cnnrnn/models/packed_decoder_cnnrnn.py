"""
The step of the decoder inside `generate` on a CPU, from copies of its weights that are laid out for a few rows.

`torch.nn.functional.linear` multiplies 1 to 10 rows two to six times slower than the memory gives the weight. oneDNN is as
fast as the memory with a weight that it has reordered once, in [`PackedLinear`]. The copies are no part of the model: they
lie beside it, go when it goes, and are made again when a weight has changed ([`packed_decoder`]).

Weights are read here without calling their layers. So this serves only layers as this package made them
([`is_packable`]); one that is replaced, wrapped, hooked, quantized or on another device is called by the plain loop.
"""

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules import module as torch_module

from .attention_cnnrnn import CnnRnnAttention
from .decoder_cnnrnn import CnnRnnDecoder
from .recurrence_cnnrnn import CnnRnnGRU, CnnRnnLSTM, CnnRnnRNN
from .training_steps_cnnrnn import is_plain


MAX_TABLE_BYTES = 2**28  # 256 MB: 32,000 words of 512 units in an LSTM
FEW_ROWS = 2

LayerState = tuple[torch.Tensor, ...]  # `(h,)`, or `(h, c)` of an LSTM, each `(N, hidden_size)`


class PackedLinear:
    """
    A linear layer in float32 with a copy of its weight in the order in which the CPU reads it for a few rows.

    Args:
        weight: `(out_features, in_features)`.
        bias: `(out_features,)`.
        is_transposed: whether to transpose the weight instead of leaving the order to oneDNN: faster at one or two rows
            where the CPU has no AVX-512.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, is_transposed: bool):
        self.bias = bias.detach().clone() if bias is not None else weight.new_zeros(len(weight))
        self.is_transposed, weight = is_transposed, weight.detach()
        self.weight = weight.t().contiguous() if is_transposed else torch.ops.mkldnn._reorder_linear_weight(weight)

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.is_transposed:
            return torch.addmm(self.bias, inputs, self.weight)
        return torch.ops.mkldnn._linear_pointwise(inputs, self.weight, self.bias, "none", [], "")


@dataclass
class DecoderImages:
    """
    What the decoder sees of B images at every step; each has N / B sequences in a row.

    Attributes:
        regions: `(B, num_regions, embedding_size)`.
        keys: twice the attention's keys, `(B, num_regions, attention_size)`; `None` without attention.
        inputs: what an image adds to the input product of the first layer, `(N, num_gates * hidden_size)`.
    """

    regions: torch.Tensor
    keys: torch.Tensor | None
    inputs: torch.Tensor | None


class PackedDecoder:
    """
    The decoder and the vocabulary on top, as one step from a word to the logits of the next.

    It computes what [`CnnRnnDecoder`] computes, in fewer products: the query and the gate of the attention read the state
    that the recurrent weight of the last layer reads, and one product serves all three. The attention's tanh(x) is
    2 sigmoid(2x) - 1, where the softmax over regions drops the constant: torch's sigmoid takes a fifth of its tanh.

    Args:
        is_transposed: as in [`PackedLinear`].
    """

    def __init__(self, decoder: CnnRnnDecoder, lm_head: nn.Linear, is_transposed: bool):
        self.decoder, self.layers = decoder, list[Any](decoder.layers)
        self.table: torch.Tensor | None = None
        self.num_rows_read = 0
        attention: Any = decoder.attention
        first, last, size = self.layers[0], self.layers[-1], decoder.config.embedding_size
        self.num_gate_units = len(last.weight_hh_l0)

        def pack(weight, bias):
            return PackedLinear(weight, bias, is_transposed)

        self.vocabulary = pack(lm_head.weight, lm_head.bias)
        self.words = pack(first.weight_ih_l0[:, :size].contiguous(), first.bias_ih_l0)
        self.inputs = [pack(layer.weight_ih_l0, layer.bias_ih_l0) for layer in self.layers[1:]]
        self.hidden = [pack(layer.weight_hh_l0, layer.bias_hh_l0) for layer in self.layers[:-1]]
        hidden = [(last.weight_hh_l0, last.bias_hh_l0)]
        if attention is not None:
            hidden += [
                (2 * attention.query.weight, 2 * attention.query.bias),
                (attention.gate.weight, attention.gate.bias),
            ]
            self.context = pack(first.weight_ih_l0[:, -size:].contiguous(), None)
            self.score = 2 * attention.score.weight.detach()
        weights, biases = zip(*hidden, strict=True)
        self.hidden.append(pack(torch.cat(weights), torch.cat(biases)))

    def see(self, regions: torch.Tensor, keys: torch.Tensor | None, num_sequences: int) -> DecoderImages:
        """
        Compute what does not change from word to word.

        Args:
            regions: `(B, num_regions, embedding_size)`.
            keys: the attention's keys of the regions, `(B, num_regions, attention_size)`.
            num_sequences: N, a multiple of B.
        """
        inputs = None
        if self.decoder.config.image_injection == "bias_every_step":
            size = self.decoder.config.embedding_size
            weight = self.layers[0].weight_ih_l0[:, size : 2 * size]
            inputs = F.linear(regions.mean(dim=1), weight).repeat_interleave(num_sequences // len(regions), dim=0)
        return DecoderImages(regions, 2 * keys if keys is not None else None, inputs)

    def expect_rows(self, num_rows: int):
        """
        Note how many words are about to be read, and multiply the whole vocabulary with the input weight once that pays.

        The table is as much work as half a vocabulary of words read one by one.
        """
        self.num_rows_read += num_rows
        embeddings = self.decoder.embed_tokens.weight
        is_small = len(embeddings) * self.num_gate_units * embeddings.element_size() <= MAX_TABLE_BYTES
        if self.table is None and is_small and self.num_rows_read > len(embeddings) / 2:
            self.table = self.words(embeddings.detach())

    def step(
        self, words: torch.Tensor, state: list[LayerState], images: DecoderImages
    ) -> tuple[torch.Tensor, list[LayerState], torch.Tensor | None]:
        """
        Read one word of each sequence.

        Args:
            words: `(N,)`.
            state: of each layer.

        Returns:
            The logits of the next words `(N, vocab_size)`, the new state, the attention weights `(N, num_regions)`.
        """
        embeddings = self.decoder.embed_tokens.weight
        inputs = self.table[words] if self.table is not None else self.words(F.embedding(words, embeddings))
        if images.inputs is not None:
            inputs = inputs + images.inputs
        hidden, attentions = self.hidden[-1](state[-1][0]), None
        if images.keys is not None:
            context, attentions = self._attend(hidden[:, self.num_gate_units :], images.regions, images.keys)
            inputs = inputs + self.context(context)
            hidden = hidden[:, : self.num_gate_units]
        new_state: list[LayerState] = []
        for index, (layer, layer_state) in enumerate(zip(self.layers, state, strict=True)):
            if index > 0:
                inputs = self.inputs[index - 1](new_state[-1][0])
            is_last = index == len(state) - 1
            product = hidden if is_last else self.hidden[index](layer_state[0])
            new_state.append(layer.cell(inputs, product, layer_state))
        return self.vocabulary(new_state[-1][0]), new_state, attentions

    def _attend(
        self, products: torch.Tensor, regions: torch.Tensor, keys: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Weigh the regions by twice the query `(N, attention_size)` and the gate `(N, 1)` beside it."""
        query = products[:, :-1].unflatten(0, (len(regions), -1))  # (B, K, A)
        scores = F.linear((query[:, :, None] + keys[:, None]).sigmoid_(), self.score).squeeze(-1)  # (B, K, R)
        weights = scores.softmax(dim=-1)
        context = (weights @ regions).flatten(0, 1)
        return torch.sigmoid(products[:, -1:]) * context, weights.flatten(0, 1)


def is_packable(decoder: nn.Module, lm_head: nn.Module) -> bool:
    """Whether [`PackedDecoder`] computes what these modules compute, and faster: float32 on a CPU, nobody watches."""
    if not torch.backends.mkldnn.is_available() or not torch.backends.mkldnn.enabled:
        return False
    is_watched = torch_module._has_any_global_hook() or torch._C._len_torch_dispatch_stack() > 0
    if torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu") or torch.is_grad_enabled() or is_watched:
        return False
    attention: Any = decoder.attention
    if not is_plain(decoder, CnnRnnDecoder) or not (attention is None or is_plain(attention, CnnRnnAttention)):
        return False
    modules = [lm_head, *(module for module in decoder.modules() if not any(True for _ in module.children()))]
    classes = (nn.Linear, nn.Embedding, nn.Dropout, CnnRnnLSTM, CnnRnnGRU, CnnRnnRNN)
    if decoder.training or any(module.training or not is_plain(module, *classes) for module in modules):
        return False
    weights = [weight for module in modules for weight in module.parameters(recurse=False)]
    plain_types = (nn.Parameter, torch.Tensor)
    return all(type(w) in plain_types and w.dtype == torch.float32 and w.device.type == "cpu" for w in weights)


def fingerprint(weights: list[torch.Tensor]) -> list[tuple]:
    """
    Note what weights are, to see later whether one has changed.

    The sums over their bits, which take as long as reading them once, see what torch's counter of in-place changes does
    not: a change through `weight.data`, which has a counter of its own.
    """
    marks: list[tuple] = []
    for weight in weights:
        values = weight.detach()
        is_even = values.is_contiguous() and values.shape[-1] % 2 == 0 and values.storage_offset() % 2 == 0
        bits = values.view(torch.int64) if is_even else values.view(torch.int32).long()
        sums = bits.sum(dim=-1) if bits.ndim > 1 else bits
        places = torch.arange(1, sums.numel() + 1, device=sums.device)
        version = 0 if weight.is_inference() else weight._version
        marks.append((version, tuple(weight.shape), int((sums * places).sum())))
    return marks


_PACKED: WeakKeyDictionary[nn.Module, dict[bool, tuple[list[tuple], PackedDecoder]]] = WeakKeyDictionary()


def packed_decoder(captioner: Any, num_rows: int) -> PackedDecoder:
    """
    Return the packed weights of a captioner, from an earlier call if no weight has changed since.

    Args:
        num_rows: number of rows that are multiplied with them.
    """
    decoder, lm_head = captioner.model.decoder, captioner.lm_head
    is_transposed = num_rows <= FEW_ROWS and torch.backends.cpu.get_cpu_capability() != "AVX512"
    marks = fingerprint([*decoder.parameters(), *lm_head.parameters()])
    packed = _PACKED.setdefault(captioner, {})
    if is_transposed not in packed or packed[is_transposed][0] != marks:
        packed[is_transposed] = (marks, PackedDecoder(decoder, lm_head, is_transposed))
    return packed[is_transposed][1]


__all__ = ["DecoderImages", "LayerState", "PackedDecoder", "is_packable", "packed_decoder"]
