"""
The decoder: a recurrent language model that is conditioned on an image.

    decoder_input_ids (N, T) -> embeddings (N, T, E) -> RNN, with attention to the regions or without -> (N, T, D)

By its configuration it is the decoder of one of the papers of `ARCHITECTURES`: Show and Tell
(https://arxiv.org/abs/1411.4555), Show, Attend and Tell (https://arxiv.org/abs/1502.03044), Deep Visual-Semantic Alignments
(https://arxiv.org/abs/1412.2306), Up-Down (https://arxiv.org/abs/1707.07998), ...
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions
from transformers.utils import can_return_tuple

from .attention_cnnrnn import ATTENTIONS
from .base_cnnrnn import CnnRnnPreTrainedModel
from .configuration_cnnrnn import CnnRnnConfig
from .encoder_cnnrnn import mean_region
from .recurrence_cnnrnn import CnnRnnCache, check_cache, make_recurrent_layer, needs_steps
from .training_steps_cnnrnn import can_gather, run_training_steps


State = tuple[torch.Tensor, ...]  # `(h,)`, or `(h, c)` of an LSTM, each `(num_layers, N, hidden_size)`


class Seen(NamedTuple):
    """
    What attention sees of B images, at every step the same.

    Attributes:
        regions: `(B, num_regions, region_size)`.
        keys: of the regions, `(B, num_regions, attention_size)`; `None` without attention.
        mask: `(B, num_regions)`, `False` where a region is padding; `None` if none is.
    """

    regions: torch.Tensor
    keys: torch.Tensor | None
    mask: torch.Tensor | None


@dataclass
class CnnRnnDecoderOutput(BaseModelOutputWithPastAndCrossAttentions):
    """
    What the decoder returns.

    Attributes:
        sentinel_weights: with adaptive attention, the weight of the visual sentinel at each word, `(N, T)`: how little the
            decoder looked. The weights of the regions in `cross_attentions` are the rest up to 1.
    """

    sentinel_weights: torch.Tensor | None = None


class CnnRnnDeepOutput(nn.Module):
    """
    The output layer of Show, Attend and Tell: `E y_{t-1} + L_h h_t + L_z z_t`, or its tanh in the authors' code.

    `L_o` is the layer over the vocabulary.
    """

    def __init__(self, config: CnnRnnConfig):
        super().__init__()
        has_attention = config.attention_type != "none"
        self.hidden = nn.Linear(config.hidden_size, config.embedding_size)
        region_size = config.region_size or config.embedding_size
        self.context = nn.Linear(region_size, config.embedding_size, bias=False) if has_attention else None
        self.is_squashed = config.deep_output == "tanh"

    def forward(self, words: torch.Tensor, hidden: torch.Tensor, context: torch.Tensor | None) -> torch.Tensor:
        """
        Combine the last words, the states after them and what was seen.

        Args:
            words: `(N, T, embedding_size)`.
            hidden: `(N, T, hidden_size)`.
            context: `(N, T, region_size)`.
        """
        output = words + self.hidden(hidden)
        if self.context is not None:
            output = output + self.context(context)
        return torch.tanh(output) if self.is_squashed else output


class CnnRnnDecoder(CnnRnnPreTrainedModel):
    """A recurrent language model that is conditioned on an image."""

    main_input_name = "input_ids"

    def __init__(self, config: CnnRnnConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.embedding_size, config.pad_token_id)
        self.embedding_dropout = nn.Dropout(config.embedding_dropout)
        self.num_states = 2 if config.rnn_type.startswith("lstm") else 1
        self.has_image_input = config.has_image_input
        region_size = config.region_size or config.embedding_size
        self.initial_state = None
        if config.image_injection == "initial_state":
            self.initial_state = nn.Linear(region_size, self.num_states * config.num_hidden_layers * config.hidden_size)
        self.attention: Any = None
        if config.attention_type in ATTENTIONS:
            self.attention = ATTENTIONS[config.attention_type](config)
        place = self.attention.place if self.attention is not None else None

        # the input of a step: the word, the image where it is a bias (W [x; v] = W_x x + W_v v), the context or, where the
        # last layer reads that, the state of the last layer
        input_sizes = [config.embedding_size + region_size * (self.has_image_input + (place == "input"))]
        input_sizes += [config.hidden_size] * (config.num_hidden_layers - 1)
        if place == "between":
            input_sizes = [input_sizes[0] + config.hidden_size, config.hidden_size + region_size]
        self.layers = nn.ModuleList(
            make_recurrent_layer(config.rnn_type, input_size, config.hidden_size) for input_size in input_sizes
        )
        self.deep_output = CnnRnnDeepOutput(config) if config.deep_output != "none" else None
        self.dropout = nn.Dropout(config.dropout)
        self.post_init()

    def get_input_embeddings(self):
        return self.embed_tokens

    def set_input_embeddings(self, value):
        self.embed_tokens = value

    def _first_state(self, image: torch.Tensor) -> State:
        """Make the state before the first input from images `(N, region_size)`."""
        num_layers, hidden_size = self.config.num_hidden_layers, self.config.hidden_size
        if self.initial_state is None:
            return (image.new_zeros(num_layers, image.shape[0], hidden_size),) * self.num_states
        state = self.initial_state(image)
        if self.config.initial_state_activation == "tanh":
            state = torch.tanh(state)
        state = state.unflatten(1, (self.num_states, num_layers, hidden_size))
        return tuple(s.transpose(0, 1).contiguous() for s in state.unbind(1))

    def _run_layer(
        self, index: int, inputs: torch.Tensor, state: State, gate_inputs: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, State]:
        """
        Call a recurrent layer.

        Args:
            inputs: `(N, T, input_size)`.
            state: `(h,)` or `(h, c)` of this layer, each `(1, N, hidden_size)`.
            gate_inputs: what attention adds to the gates, `(N, T, num_gates * hidden_size)`.

        Returns:
            The outputs `(N, T, hidden_size)`, and the state after them.
        """
        more = () if gate_inputs is None else (gate_inputs,)
        outputs, new_state = self.layers[index](inputs, state if self.num_states == 2 else state[0], *more)
        return outputs, new_state if self.num_states == 2 else (new_state,)

    def _run_layers(self, inputs: torch.Tensor, states: list[State]) -> tuple[list[torch.Tensor], list[State]]:
        """
        Call the recurrent layers, one on top of the other.

        Args:
            inputs: `(N, T, input_size)`.
            states: the state of each layer, `(h,)` or `(h, c)`, each `(1, N, hidden_size)`.

        Returns:
            The outputs of each layer, `(N, T, hidden_size)`, and its state after them.
        """
        outputs, new_states = [], []
        for index, state in enumerate(states):
            if index > 0:
                inputs = self.dropout(inputs)
            inputs, new_state = self._run_layer(index, inputs, state)
            outputs.append(inputs)
            new_states.append(new_state)
        return outputs, new_states

    def _run_step(
        self, inputs: torch.Tensor, states: list[State], seen: Seen
    ) -> tuple[list[torch.Tensor], list[State], torch.Tensor, torch.Tensor]:
        """
        Read one word with attention, as its place says.

        Args:
            inputs: `(N, input_size)`.
            states: as in `_run_layers`.

        Returns:
            As `_run_layers`; what attention has made, `(N, size)`, and its weights `(N, num_regions)`.
        """
        place, last = self.attention.place, states[-1][0][0]
        if place == "between":
            first, first_state = self._run_layer(0, torch.cat([inputs, last], dim=-1)[:, None], states[0])
            context, weights = self.attention(first[:, 0], *seen)
            second, second_state = self._run_layer(1, torch.cat([first[:, 0], context], dim=-1)[:, None], states[1])
            return [first, second], [first_state, second_state], context, weights
        if place == "output":
            outputs, states = self._run_layers(inputs[:, None], states)
            output, weights = self.attention(inputs, last, (outputs[-1][:, 0], states[-1][1][0]), *seen)
            return outputs, states, output, weights
        context, weights = self.attention(last, *seen)
        if place == "input":
            outputs, states = self._run_layers(torch.cat([inputs, context], dim=-1)[:, None], states)
            return outputs, states, context, weights
        size = self.config.hidden_size  # the rows of an LSTM's gates: input, forget, candidates, output
        gate_inputs = F.pad(self.attention.context(context), (2 * size, size))
        first, first_state = self._run_layer(0, inputs[:, None], states[0], gate_inputs[:, None])
        outputs, new_states = [first], [first_state]
        for index, state in enumerate(states[1:], start=1):
            output, new_state = self._run_layer(index, self.dropout(outputs[-1]), state)
            outputs.append(output)
            new_states.append(new_state)
        return outputs, new_states, context, weights

    def _run_steps(
        self, inputs: torch.Tensor, states: list[State], seen: Seen, mask: torch.Tensor | None
    ) -> tuple[list[torch.Tensor], list[State], torch.Tensor | None, torch.Tensor | None]:
        """Read word by word, as attention and masks need it. Returns as `_run_step`, for `(N, T)` words."""
        steps, contexts, attentions = [], [], []
        for index, step_inputs in enumerate(inputs.unbind(1)):
            if self.attention is not None:
                outputs, new_states, context, weights = self._run_step(step_inputs, states, seen)
                contexts.append(context)
                attentions.append(weights)
            else:
                outputs, new_states = self._run_layers(step_inputs[:, None], states)
            if mask is not None:  # padding leaves the state as it is
                is_word = mask[:, index, None]
                new_states = [
                    tuple(torch.where(is_word, n, s) for n, s in zip(new, state, strict=True))
                    for new, state in zip(new_states, states, strict=True)
                ]
            states = new_states
            steps.append(outputs)
        outputs = [torch.cat(layer, dim=1) for layer in zip(*steps, strict=True)]
        if not attentions:
            return outputs, states, None, None
        return outputs, states, torch.stack(contexts, dim=1), torch.stack(attentions, dim=1)

    def _run(
        self,
        inputs: torch.Tensor,
        state: State,
        seen: Seen,
        mask: torch.Tensor | None,
        lengths: torch.Tensor | None,
    ) -> tuple[list[torch.Tensor], State | None, torch.Tensor | None, torch.Tensor | None]:
        """Read sequences in the cheapest way. Returns as `_run_steps`, and the states of all layers in one."""
        has_steps = self.attention is not None or mask is not None
        has_kernel = all(getattr(layer, "has_kernel", True) for layer in self.layers)
        has_short_way = self.training and mask is None and (has_steps or not has_kernel or needs_steps(inputs))
        if lengths is not None and has_short_way and can_gather(self.layers, self.attention):
            outputs, contexts, attentions = run_training_steps(self, inputs, state, seen, lengths)
            return outputs, None, contexts, attentions
        states = [tuple(s[index : index + 1] for s in state) for index in range(len(self.layers))]
        contexts = attentions = None
        if has_steps:
            outputs, states, contexts, attentions = self._run_steps(inputs, states, seen, mask)
        else:
            outputs, states = self._run_layers(inputs, states)
        return outputs, tuple(torch.cat(s) for s in zip(*states, strict=True)), contexts, attentions

    def _add_image(
        self,
        inputs: torch.Tensor,
        image: torch.Tensor,
        cache: CnnRnnCache,
        mask: torch.Tensor | None,
        lengths: torch.Tensor | None,
    ) -> tuple[torch.Tensor, State, torch.Tensor | None, torch.Tensor | None]:
        """
        Let the images `(B, region_size)` enter as `config.image_injection` says.

        Returns:
            The inputs, with the image before or beside the words; the state before them; mask and lengths of the inputs.
        """
        num_sequences, num_tokens = inputs.shape[:2]
        state = cache.state
        image = image.repeat_interleave(num_sequences // image.shape[0], dim=0)
        if self.has_image_input:
            image_inputs = image[:, None].expand(-1, num_tokens, -1)
            if self.config.image_injection == "bias_first_step":
                is_word = mask if mask is not None else inputs.new_ones(1, num_tokens, dtype=torch.bool)
                num_words = cache.seq_length + is_word.cumsum(dim=1)  # padding before the first word is no step
                image_inputs = image_inputs * (num_words == 1)[..., None].to(image.dtype)
            inputs = torch.cat([inputs, image_inputs], dim=-1)
        if state is None:
            state = self._first_state(image)
            if self.config.image_injection == "first_token":
                inputs = torch.cat([image[:, None], inputs], dim=1)
                mask = F.pad(mask, (1, 0), value=True) if mask is not None else None
                lengths = lengths + 1 if lengths is not None else None
        return inputs, state, mask, lengths

    def image_of(
        self, regions: torch.Tensor, image_embeds: torch.Tensor | None, region_mask: torch.Tensor | None
    ) -> torch.Tensor:
        """
        Return the images as a whole, `(B, region_size)`: by `config.image_projection` as given, else the mean of the regions.

        Raises:
            ValueError: they should be given, and are not.
        """
        if not self.config.image_projection:
            return mean_region(regions, region_mask)
        if image_embeds is None:
            raise ValueError(
                "`encoder_outputs` has no `pooler_output`, the image as a whole: pass all that `get_encoder()` returned."
            )
        return image_embeds

    def _read_words(
        self,
        input_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor | None,
        regions: torch.Tensor,
        cache: CnnRnnCache,
    ) -> torch.Tensor:
        """Check the inputs of a forward pass and return the embeddings of its words, `(N, T, embedding_size)`."""
        given = input_ids if input_ids is not None else inputs_embeds
        check_cache(cache, given.shape[0] if given is not None else None)
        if input_ids is not None and inputs_embeds is None:
            if cache.state is None:  # generation later feeds tokens of the model itself
                self.check_input_ids(input_ids)
            inputs_embeds = self.embed_tokens(input_ids)
        elif inputs_embeds is None or input_ids is not None:
            raise ValueError("Pass either `decoder_input_ids` or `decoder_inputs_embeds`, and not both.")
        num_sequences, num_images = inputs_embeds.shape[0], regions.shape[0]
        if num_sequences < num_images or num_sequences % num_images:
            raise ValueError(
                f"`decoder_input_ids` holds {num_sequences} sequences for {num_images} images: pass the same number of "
                "sequences for each image."
            )
        return inputs_embeds

    def check_input_ids(self, input_ids: torch.Tensor):
        """Raise a `ValueError` if a token is outside the vocabulary."""
        if torch.compiler.is_compiling() or input_ids.numel() == 0:
            return
        low, high = input_ids.aminmax()
        if low < 0 or high >= self.config.vocab_size:
            raise ValueError(
                f"`decoder_input_ids` or `labels` hold token {int(low if low < 0 else high)}, outside the vocabulary of "
                f"{self.config.vocab_size}: use the tokenizer that the model was trained with."
            )

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        past_key_values: CnnRnnCache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        lengths: torch.Tensor | None = None,
        image_embeds: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        **kwargs,
    ) -> CnnRnnDecoderOutput:
        """
        Read words and compute the states from which the next words are predicted.

        Args:
            input_ids: words read so far, `(N, T)`; with `past_key_values`, those that it has not seen.
            attention_mask: `(N, T)` or longer on the left, 0 where a token is padding, which the state skips. Padding at
                the end of training captions needs no mask: an RNN does not look ahead.
            encoder_hidden_states: regions of B images, `(B, num_regions, region_size)`, N = B * K.
            inputs_embeds: in place of `input_ids`, `(N, T, embedding_size)`.
            lengths: lengths of training captions, `(N,)`. Outputs after the end of a caption may then be 0.
            image_embeds: the images as a whole, `(B, region_size)`, with `config.image_projection`.
            encoder_attention_mask: `(B, num_regions)`, `False` where a region is padding.

        Returns:
            `last_hidden_state` `(N, T, config.output_size)`; `cross_attentions`, one `(N, 1, T, num_regions)`.
        """
        use_cache = use_cache if use_cache is not None else self.config.use_cache
        output_attentions = output_attentions if output_attentions is not None else self.config.output_attentions
        output_hidden_states = (
            output_hidden_states if output_hidden_states is not None else self.config.output_hidden_states
        )
        if encoder_hidden_states is None:
            raise ValueError("The decoder needs `encoder_hidden_states`: it describes an image.")
        regions, cache = encoder_hidden_states, past_key_values if past_key_values is not None else CnnRnnCache()
        inputs_embeds = self._read_words(input_ids, inputs_embeds, regions, cache)
        if self.config.embedding_activation == "relu":
            inputs_embeds = torch.relu(inputs_embeds)
        num_tokens = inputs_embeds.shape[1]
        mask = None
        if attention_mask is not None and not attention_mask.all():
            mask = attention_mask[:, -num_tokens:].bool()
        state, inputs = cache.state, self.embedding_dropout(inputs_embeds)
        if state is None or self.has_image_input:
            image = self.image_of(regions, image_embeds, encoder_attention_mask)
            inputs, state, mask, lengths = self._add_image(inputs, image, cache, mask, lengths)
        if self.attention is not None and cache.keys is None:
            cache.keys = self.attention.key(regions)
        seen = Seen(regions, cache.keys, encoder_attention_mask)
        outputs, new_state, contexts, attentions = self._run(inputs, state, seen, mask, lengths)
        cache.update(new_state, num_tokens)
        if inputs.shape[1] > num_tokens:  # the image was the first token: no word is predicted from it alone
            outputs = [output[:, 1:] for output in outputs]
            contexts = contexts[:, 1:] if contexts is not None else None
            attentions = attentions[:, 1:] if attentions is not None else None
        read: Any = outputs[-1]
        if self.attention is not None and self.attention.place == "output":
            read = contexts
        if self.deep_output is not None:
            read = self.deep_output(inputs_embeds, self.dropout(read), contexts)
        sentinel_weights = None
        if output_attentions and attentions is not None and self.config.attention_type.startswith("adaptive"):
            sentinel_weights = 1 - attentions.sum(dim=-1)
        return CnnRnnDecoderOutput(
            last_hidden_state=self.dropout(read),
            past_key_values=cache if use_cache else None,
            hidden_states=(inputs_embeds, *outputs) if output_hidden_states else None,
            cross_attentions=(attentions[:, None],) if output_attentions and attentions is not None else None,
            sentinel_weights=sentinel_weights,
        )


__all__ = ["CnnRnnDecoder", "CnnRnnDecoderOutput", "Seen"]
