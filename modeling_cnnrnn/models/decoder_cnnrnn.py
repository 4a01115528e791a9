"""
The decoder: a recurrent language model that is conditioned on an image.

    decoder_input_ids (N, T) -> embeddings (N, T, E) -> RNN, with attention to the regions or without -> (N, T, D)

By its configuration it is the decoder of Show and Tell (https://arxiv.org/abs/1411.4555), of Show, Attend and Tell
(https://arxiv.org/abs/1502.03044) or of Deep Visual-Semantic Alignments (https://arxiv.org/abs/1412.2306).
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions
from transformers.utils import can_return_tuple

from .attention_cnnrnn import ATTENTIONS
from .base_cnnrnn import CnnRnnPreTrainedModel
from .configuration_cnnrnn import CnnRnnConfig
from .recurrence_cnnrnn import CnnRnnCache, check_cache, make_recurrent_layer, needs_steps
from .training_steps_cnnrnn import can_gather, run_training_steps


State = tuple[torch.Tensor, ...]  # `(h,)`, or `(h, c)` of an LSTM, each `(num_layers, N, hidden_size)`


class CnnRnnDecoder(CnnRnnPreTrainedModel):
    """A recurrent language model that is conditioned on an image."""

    main_input_name = "input_ids"

    def __init__(self, config: CnnRnnConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.embedding_size, config.pad_token_id)
        self.embedding_dropout = nn.Dropout(config.embedding_dropout)
        self.num_states = 2 if config.rnn_type == "lstm" else 1
        self.has_image_input = config.image_injection in ("bias_first_step", "bias_every_step")
        self.initial_state = None
        if config.image_injection == "initial_state":
            self.initial_state = nn.Linear(
                config.embedding_size, self.num_states * config.num_hidden_layers * config.hidden_size
            )
        self.attention = ATTENTIONS[config.attention_type](config) if config.attention_type in ATTENTIONS else None

        # the input of a step: the word, the image where it is a bias (W [x; v] = W_x x + W_v v), the context
        input_size = config.embedding_size * (1 + self.has_image_input + (self.attention is not None))
        self.layers = nn.ModuleList(
            make_recurrent_layer(config.rnn_type, config.hidden_size if layer else input_size, config.hidden_size)
            for layer in range(config.num_hidden_layers)
        )
        self.dropout = nn.Dropout(config.dropout)
        self.post_init()

    def get_input_embeddings(self):
        return self.embed_tokens

    def set_input_embeddings(self, value):
        self.embed_tokens = value

    def _first_state(self, image: torch.Tensor) -> State:
        """Make the state before the first input from images `(N, E)`."""
        num_layers, hidden_size = self.config.num_hidden_layers, self.config.hidden_size
        if self.initial_state is None:
            return (image.new_zeros(num_layers, image.shape[0], hidden_size),) * self.num_states
        state = torch.tanh(self.initial_state(image)).unflatten(1, (self.num_states, num_layers, hidden_size))
        return tuple(s.transpose(0, 1).contiguous() for s in state.unbind(1))

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
        for index, (rnn, state) in enumerate(zip(self.layers, states, strict=True)):
            if index > 0:
                inputs = self.dropout(inputs)
            inputs, new_state = rnn(inputs, state if self.num_states == 2 else state[0])
            outputs.append(inputs)
            new_states.append(new_state if self.num_states == 2 else (new_state,))
        return outputs, new_states

    def _run_steps(
        self,
        inputs: torch.Tensor,
        states: list[State],
        regions: torch.Tensor,
        keys: torch.Tensor | None,
        mask: torch.Tensor | None,
    ) -> tuple[list[torch.Tensor], list[State], torch.Tensor | None]:
        """Read word by word, as attention and masks need it. Returns as `_run_layers`, and the attention weights."""
        steps, attentions = [], []
        for index, step_inputs in enumerate(inputs.unbind(1)):
            if self.attention is not None:
                context, weights = self.attention(states[-1][0][0], regions, keys)
                step_inputs = torch.cat([step_inputs, context], dim=-1)
                attentions.append(weights)
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
        return outputs, states, torch.stack(attentions, dim=1) if attentions else None

    def _run(
        self,
        inputs: torch.Tensor,
        state: State,
        regions: torch.Tensor,
        keys: torch.Tensor | None,
        mask: torch.Tensor | None,
        lengths: torch.Tensor | None,
    ) -> tuple[list[torch.Tensor], State | None, torch.Tensor | None]:
        """Read sequences in the cheapest way. Returns the outputs of each layer, the last state, the attention weights."""
        has_steps = self.attention is not None or mask is not None
        has_short_way = self.training and mask is None and (has_steps or needs_steps(inputs))
        if lengths is not None and has_short_way and can_gather(self.layers, self.attention):
            outputs, attentions = run_training_steps(self, inputs, state, regions, keys, lengths)
            return outputs, None, attentions
        states = [tuple(s[index : index + 1] for s in state) for index in range(len(self.layers))]
        attentions = None
        if has_steps:
            outputs, states, attentions = self._run_steps(inputs, states, regions, keys, mask)
        else:
            outputs, states = self._run_layers(inputs, states)
        return outputs, tuple(torch.cat(s) for s in zip(*states, strict=True)), attentions

    def _add_image(
        self,
        inputs: torch.Tensor,
        regions: torch.Tensor,
        cache: CnnRnnCache,
        mask: torch.Tensor | None,
        lengths: torch.Tensor | None,
    ) -> tuple[torch.Tensor, State, torch.Tensor | None, torch.Tensor | None]:
        """
        Let the image, the mean of its regions, enter as `config.image_injection` says.

        Returns:
            The inputs, with the image before or beside the words; the state before them; mask and lengths of the inputs.
        """
        num_sequences, num_tokens = inputs.shape[:2]
        state = cache.state
        if state is not None and not self.has_image_input:
            return inputs, state, mask, lengths
        image = regions.mean(dim=1).repeat_interleave(num_sequences // regions.shape[0], dim=0)
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
        **kwargs,
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """
        Read words and compute the states from which the next words are predicted.

        Args:
            input_ids: words read so far, `(N, T)`; with `past_key_values`, those that it has not seen.
            attention_mask: `(N, T)` or longer on the left, 0 where a token is padding, which the state skips. Padding at
                the end of training captions needs no mask: an RNN does not look ahead.
            encoder_hidden_states: regions of B images, `(B, num_regions, embedding_size)`, N = B * K.
            inputs_embeds: in place of `input_ids`, `(N, T, embedding_size)`.
            lengths: lengths of training captions, `(N,)`. Outputs after the end of a caption may then be 0.

        Returns:
            `last_hidden_state` `(N, T, hidden_size)`; `cross_attentions`, one `(N, 1, T, num_regions)`.
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
        num_tokens = inputs_embeds.shape[1]
        mask = None
        if attention_mask is not None and not attention_mask.all():
            mask = attention_mask[:, -num_tokens:].bool()
        inputs, state, mask, lengths = self._add_image(
            self.embedding_dropout(inputs_embeds), regions, cache, mask, lengths
        )
        if self.attention is not None and cache.keys is None:
            cache.keys = self.attention.key(regions)
        outputs, new_state, attentions = self._run(inputs, state, regions, cache.keys, mask, lengths)
        cache.update(new_state, num_tokens)
        if inputs.shape[1] > num_tokens:  # the image was the first token: no word is predicted from it alone
            outputs = [output[:, 1:] for output in outputs]
            attentions = attentions[:, 1:] if attentions is not None else None
        return BaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=self.dropout(outputs[-1]),
            past_key_values=cache if use_cache else None,
            hidden_states=(inputs_embeds, *outputs) if output_hidden_states else None,
            cross_attentions=(attentions[:, None],) if output_attentions and attentions is not None else None,
        )


__all__ = ["CnnRnnDecoder"]
