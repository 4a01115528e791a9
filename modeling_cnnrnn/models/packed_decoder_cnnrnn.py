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

from .attention_cnnrnn import ATTENTIONS, weigh_with_sentinel
from .decoder_cnnrnn import CnnRnnDecoder, CnnRnnDeepOutput, Seen
from .recurrence_cnnrnn import RECURRENT_CLASSES
from .training_steps_cnnrnn import is_plain


LayerState = tuple[torch.Tensor, ...]  # `(h,)`, or `(h, c)` of an LSTM, each `(N, hidden_size)`


class PackedLinear:
    """
    A linear layer in float32 with a copy of its weight in the order in which the CPU reads it for a few rows.

    Args:
        weight: `(out_features, in_features)`.
        bias: `(out_features,)`.
        is_transposed: whether to transpose the weight instead of leaving the order to oneDNN: faster at one row.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, is_transposed: bool):
        self.bias = bias.detach().clone() if bias is not None else weight.new_zeros(len(weight))
        self.is_transposed, weight = is_transposed, weight.detach()
        self.weight = weight.t().contiguous() if is_transposed else torch.ops.mkldnn._reorder_linear_weight(weight)

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.is_transposed:
            return torch.addmm(self.bias, inputs, self.weight)
        return torch.ops.mkldnn._linear_pointwise(inputs, self.weight, self.bias, "none", [], "")


class WordProducts:
    """
    The products of words with the input weight, each kept from the first time that its word is read.

    A product serves as long as the embedding of its word is the one that it was made of.

    Args:
        num_words, embedding_size: numbers of embeddings, and of values of each.
        linear: multiplies with the input weight.
    """

    def __init__(self, num_words: int, embedding_size: int, linear: PackedLinear):
        self.linear = linear
        with torch.inference_mode(False):  # tensors that are made in this mode cannot be written into outside
            # the system gives memory to the rows that are written
            self.products = torch.empty(num_words, len(linear.bias))
            self.embeddings = torch.empty(num_words, embedding_size)
            self.is_known = torch.zeros(num_words, dtype=torch.bool)

    def __call__(self, words: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
        """Return the products of words `(N,)`, with embeddings `(N, embedding_size)`: `(N, units)`."""
        is_kept = self.is_known[words] & (self.embeddings.index_select(0, words) == embeddings).all(dim=-1)
        if not is_kept.all():
            new, new_embeddings = words[~is_kept], embeddings[~is_kept]
            self.products[new] = self.linear(new_embeddings)
            self.embeddings[new] = new_embeddings
            self.is_known[new] = True
        return self.products.index_select(0, words)


@dataclass
class DecoderImages:
    """
    What the decoder sees of B images at every step; each has N / B sequences in a row.

    Attributes:
        regions: `(B, num_regions, region_size)`.
        keys: the attention's keys, `(B, num_regions, attention_size)`, twice where tanh follows; `None` without attention.
        mask: `(B, num_regions)`, `False` where a region is padding; `None` if none is.
        inputs: what an image adds to the product of the words, `(N, units)`.
    """

    regions: torch.Tensor
    keys: torch.Tensor | None
    mask: torch.Tensor | None
    inputs: torch.Tensor | None


class PackedDecoder:
    """
    The decoder and the vocabulary on top, as one step from a word to the logits of the next.

    It computes what [`CnnRnnDecoder`] computes, in fewer products: what reads the same state as a recurrent weight, such as
    the query and the gate of the attention, is one product with it. The attention's tanh(x) is 2 sigmoid(2x) - 1, where
    the softmax over regions drops the constant: torch's sigmoid takes a fifth of its tanh.

    Args:
        is_transposed: as in [`PackedLinear`].
    """

    def __init__(self, decoder: CnnRnnDecoder, lm_head: nn.Linear, is_transposed: bool):
        self.decoder, self.layers, self.is_transposed = decoder, list[Any](decoder.layers), is_transposed
        attention = decoder.attention
        self.place = attention.place if attention is not None else None
        self.is_tanh = getattr(attention, "activation", "tanh") == "tanh"
        self.factor = 2 if self.is_tanh else 1
        self.num_gate_units = len(self.layers[-1].weight_hh_l0)
        self.vocabulary = self._pack(lm_head)
        words = self._input_weight(slice(0, decoder.config.embedding_size))
        biases = [self.layers[0].bias_ih_l0, *([attention.sentinel_input.bias] if self.place == "output" else [])]
        linear = PackedLinear(words, torch.cat(biases), is_transposed)
        self.words = WordProducts(len(decoder.embed_tokens.weight), decoder.config.embedding_size, linear)
        # the product of the layer below; with attention between them, `_pack_attention` makes it
        self.inputs = [PackedLinear(rnn.weight_ih_l0, rnn.bias_ih_l0, is_transposed) for rnn in self.layers[1:]]
        self.hidden = [PackedLinear(rnn.weight_hh_l0, rnn.bias_hh_l0, is_transposed) for rnn in self.layers]
        if attention is not None:
            self._pack_attention(attention)
        self.deep_output: list[PackedLinear] = []
        if decoder.deep_output is not None:
            parts = (decoder.deep_output.hidden, decoder.deep_output.context)
            self.deep_output = [self._pack(part) for part in parts if part is not None]

    def _pack(self, *layers: Any, factors: tuple[int, ...] = ()) -> PackedLinear:
        """Pack linear layers that read the same as one, each times a factor."""
        pairs = list(zip(layers, factors or (1,) * len(layers), strict=True))
        biases = [
            factor * (layer.bias if layer.bias is not None else layer.weight.new_zeros(len(layer.weight)))
            for layer, factor in pairs
        ]
        weight = torch.cat([factor * layer.weight for layer, factor in pairs])
        return PackedLinear(weight, torch.cat(biases), self.is_transposed)

    def _input_weight(self, columns: slice) -> torch.Tensor:
        """The weight of some of the inputs of the first layer, and of the sentinel that reads them too."""
        weights = [self.layers[0].weight_ih_l0[:, columns]]
        if self.place == "output":
            weights.append(self.decoder.attention.sentinel_input.weight[:, columns])
        return torch.cat(weights)

    def _pack_attention(self, attention: Any):
        first, last = self.layers[0], self.layers[-1]
        recurrent = [(last.weight_hh_l0, last.bias_hh_l0)]  # what reads the state of the last layer
        query = (self.factor * attention.query.weight, self.factor * attention.query.bias)
        self.score = self.factor * attention.score.weight.detach()
        if self.place in ("input", "cell"):
            recurrent.append(query)
            if attention.gate is not None:
                recurrent.append((attention.gate.weight, attention.gate.bias))
            if self.place == "cell":
                self.context = self._pack(attention.context)
            else:
                weight = first.weight_ih_l0[:, -attention.key.in_features :].contiguous()
                self.context = PackedLinear(weight, None, self.is_transposed)
        elif self.place == "between":
            size = last.hidden_size
            recurrent.append((first.weight_ih_l0[:, -size:], first.weight_ih_l0.new_zeros(len(first.weight_ih_l0))))
            weight = torch.cat([query[0], last.weight_ih_l0[:, :size]])
            self.inputs = [PackedLinear(weight, torch.cat([query[1], last.bias_ih_l0]), self.is_transposed)]
            self.context = PackedLinear(last.weight_ih_l0[:, size:].contiguous(), None, self.is_transposed)
        else:
            recurrent.append((attention.sentinel_hidden.weight, last.weight_hh_l0.new_zeros(last.hidden_size)))
            self.query = self._pack(attention.query, factors=(2,))
            self.sentinel_key = self._pack(attention.sentinel_key, factors=(2,))
            self.adaptive_layers = [
                self._pack(layer) if layer is not None else None
                for layer in (attention.sentinel_layer, attention.hidden_layer, attention.output_layer)
            ]
        weights, biases = zip(*recurrent, strict=True)
        self.hidden[-1] = PackedLinear(torch.cat(weights), torch.cat(biases), self.is_transposed)

    def see(self, seen: Seen, image: torch.Tensor | None, num_sequences: int) -> DecoderImages:
        """
        Compute what does not change from word to word.

        Args:
            seen: regions, keys and mask of B images.
            image: the images as a whole, `(B, region_size)`, if every step reads them.
            num_sequences: N, a multiple of B.
        """
        inputs = None
        if image is not None:
            size = self.decoder.config.embedding_size
            weight = self._input_weight(slice(size, size + image.shape[1]))
            inputs = F.linear(image, weight).repeat_interleave(num_sequences // len(image), dim=0)
        keys = self.factor * seen.keys if seen.keys is not None else None
        return DecoderImages(seen.regions, keys, seen.mask, inputs)

    def _embed(self, words: torch.Tensor) -> torch.Tensor:
        embeddings = F.embedding(words, self.decoder.embed_tokens.weight)
        return embeddings.relu() if self.decoder.config.embedding_activation == "relu" else embeddings

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
        embeddings = self._embed(words)
        inputs = self.words(words, embeddings)
        if images.inputs is not None:
            inputs = inputs + images.inputs
        hidden, context, weights = self.hidden[-1](state[-1][0]), None, None
        hidden, more = hidden[:, : self.num_gate_units], hidden[:, self.num_gate_units :]
        if self.place in ("input", "cell"):
            context, weights = self._attend(more, images)
            product = self.context(context)
            if self.place == "cell":
                size = self.layers[0].hidden_size
                inputs[:, 2 * size : -size] += product
            else:
                inputs = inputs + product
        elif self.place == "between":
            inputs = inputs + more
        elif self.place == "output":
            inputs, sentinel_inputs = inputs[:, : self.num_gate_units], inputs[:, self.num_gate_units :]
        new_state: list[LayerState] = []
        for index, (layer, layer_state) in enumerate(zip(self.layers, state, strict=True)):
            if index > 0:
                inputs = self.inputs[index - 1](new_state[-1][0])
                if self.place == "between":
                    num_units = inputs.shape[1] - self.num_gate_units
                    context, weights = self._attend(inputs[:, :num_units], images)
                    inputs = inputs[:, num_units:] + self.context(context)
            is_last = index == len(state) - 1
            product = hidden if is_last else self.hidden[index](layer_state[0])
            new_state.append(layer.cell(inputs, product, layer_state))
        output = new_state[-1][0]
        if self.place == "output":
            output, weights = self._look_and_remember(sentinel_inputs + more, new_state[-1], images)
        if self.deep_output:
            output = embeddings + self.deep_output[0](output)
            if context is not None:
                output = output + self.deep_output[1](context)
            output = output.tanh() if self.decoder.config.deep_output == "tanh" else output
        return self.vocabulary(output), new_state, weights

    def _scores(self, query: torch.Tensor, images: DecoderImages) -> torch.Tensor:
        """Score the regions by a query `(N, attention_size)`, twice where tanh follows: `(B, K, num_regions)`."""
        assert images.keys is not None
        compared = query.unflatten(0, (len(images.regions), -1))[:, :, None] + images.keys[:, None]
        return F.linear(compared.sigmoid_() if self.is_tanh else compared.relu_(), self.score).squeeze(-1)

    def _attend(self, products: torch.Tensor, images: DecoderImages) -> tuple[torch.Tensor, torch.Tensor]:
        """Weigh the regions by the query `(N, attention_size)` and the gate beside it."""
        num_units = self.score.shape[1]
        scores = self._scores(products[:, :num_units], images)
        if images.mask is not None:
            scores.masked_fill_(~images.mask[:, None], -torch.inf)
        weights = scores.softmax(dim=-1)
        context = (weights @ images.regions).flatten(0, 1)
        if products.shape[1] > num_units:
            context = torch.sigmoid(products[:, num_units:]) * context
        return context, weights.flatten(0, 1)

    def _look_and_remember(
        self, gate: torch.Tensor, state: LayerState, images: DecoderImages
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Attend adaptively, with the product of the sentinel's gate `(N, hidden_size)`."""
        hidden, memory = state
        sentinel = torch.sigmoid(gate) * torch.tanh(memory)
        sentinel_layer, hidden_layer, output_layer = self.adaptive_layers
        if sentinel_layer is not None and hidden_layer is not None:
            sentinel, hidden = sentinel_layer(sentinel).relu_(), hidden_layer(hidden).tanh_()
        query = self.query(hidden)
        sentinel_score = F.linear((query + self.sentinel_key(sentinel)).sigmoid_(), self.score)
        scores = self._scores(query, images)
        context, weights = weigh_with_sentinel(scores, sentinel_score, images.regions, sentinel, images.mask)
        output = context + hidden
        return output_layer(output).tanh_() if output_layer is not None else output, weights


def is_packable(decoder: nn.Module, lm_head: nn.Module) -> bool:
    """Whether [`PackedDecoder`] computes what these modules compute, and faster: float32 on a CPU, nobody watches."""
    if not torch.backends.mkldnn.is_available() or not torch.backends.mkldnn.enabled:
        return False
    is_watched = torch_module._has_any_global_hook() or torch._C._len_torch_dispatch_stack() > 0
    if torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu") or torch.is_grad_enabled() or is_watched:
        return False
    attention: Any = decoder.attention
    if not is_plain(decoder, CnnRnnDecoder) or not (attention is None or is_plain(attention, *ATTENTIONS.values())):
        return False
    deep_output: Any = decoder.deep_output
    if deep_output is not None and not is_plain(deep_output, CnnRnnDeepOutput):
        return False
    modules = [lm_head, *(module for module in decoder.modules() if not any(True for _ in module.children()))]
    classes = (nn.Linear, nn.Embedding, nn.Dropout, *RECURRENT_CLASSES)
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
    is_transposed = num_rows == 1
    embeddings = decoder.embed_tokens.weight  # `WordProducts` compares the values
    weights = [weight for weight in decoder.parameters() if weight is not embeddings]
    marks = [tuple(embeddings.shape), *fingerprint([*weights, *lm_head.parameters()])]
    packed = _PACKED.setdefault(captioner, {})
    if is_transposed not in packed or packed[is_transposed][0] != marks:
        packed[is_transposed] = (marks, PackedDecoder(decoder, lm_head, is_transposed))
    return packed[is_transposed][1]


__all__ = ["DecoderImages", "LayerState", "PackedDecoder", "is_packable", "packed_decoder"]
