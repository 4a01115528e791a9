"""
The decoder: a recurrent language model that is conditioned on an image.

    decoder_input_ids (N, T) -> embeddings (N, T, E) -> RNN, with attention to the regions or without -> (N, T, D)

It is that of Show and Tell (https://arxiv.org/abs/1411.4555), Show, Attend and Tell (https://arxiv.org/abs/1502.03044) or
Deep Visual-Semantic Alignments (https://arxiv.org/abs/1412.2306), by its configuration.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions
from transformers.utils import can_return_tuple

from .attention_cnnrnn import CnnRnnAttention
from .base_cnnrnn import CnnRnnPreTrainedModel
from .configuration_cnnrnn import CnnRnnConfig
from .recurrence_cnnrnn import RNN_CLASSES, CnnRnnCache, StepLinear, rnn_step


class CnnRnnDecoder(CnnRnnPreTrainedModel):
    """The recurrent language model that is conditioned on an image."""

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
        self.attention = CnnRnnAttention(config) if config.attention_type == "additive" else None

        # the input of a step: the word, the image where it is a bias (W [x; v] = W_x x + W_v v), the context
        input_size = config.embedding_size * (1 + self.has_image_input + (self.attention is not None))
        options = {"nonlinearity": config.rnn_type.removeprefix("rnn_")} if config.rnn_type.startswith("rnn_") else {}
        self.layers = nn.ModuleList(
            RNN_CLASSES[config.rnn_type](
                input_size if layer == 0 else config.hidden_size, config.hidden_size, batch_first=True, **options
            )
            for layer in range(config.num_hidden_layers)
        )
        self.dropout = nn.Dropout(config.dropout)
        self.post_init()

    def get_input_embeddings(self):
        return self.embed_tokens

    def set_input_embeddings(self, value):
        self.embed_tokens = value

    def _first_state(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The state before the first input, `num_states` times `(num_layers, N, hidden_size)`, from images `(N, E)`."""
        num_layers, hidden_size = self.config.num_hidden_layers, self.config.hidden_size
        if self.initial_state is None:
            return (image.new_zeros(num_layers, image.shape[0], hidden_size),) * self.num_states
        state = torch.tanh(self.initial_state(image)).unflatten(1, (self.num_states, num_layers, hidden_size))
        return tuple(s.transpose(0, 1).contiguous() for s in state.unbind(1))

    def _run_fused(self, inputs: torch.Tensor, state: tuple[torch.Tensor, ...]):
        """Read a whole sequence, layer by layer. Returns the outputs of each layer and the last state."""
        outputs, last_states = [], []
        for index, rnn in enumerate(self.layers):
            if index > 0:
                inputs = self.dropout(inputs)
            layer_state = tuple(s[index : index + 1].to(inputs.dtype) for s in state)
            inputs, last = rnn(inputs, layer_state if self.num_states == 2 else layer_state[0])
            outputs.append(inputs)
            last_states.append(last if self.num_states == 2 else (last,))
        return outputs, tuple(torch.cat(s) for s in zip(*last_states, strict=True)), None

    def _run_steps(
        self,
        inputs: torch.Tensor,
        state: tuple[torch.Tensor, ...],
        regions: torch.Tensor,
        keys: torch.Tensor | None,
        mask: torch.Tensor | None,
        lengths: torch.Tensor | None,
    ):
        """
        Read sequences word by word, as attention, masks and generation need it. Returns as `_run_fused`.

        With `lengths` `(N,)`, a sequence takes part in as many steps as it is long, and its outputs after them are 0.
        """
        num_sequences, num_steps = inputs.shape[:2]
        rows, num_rows = None, [num_sequences] * num_steps
        steps = inputs.transpose(0, 1)
        if lengths is not None:  # the longest first, so that those at work are always the first ones
            rows = lengths.argsort(descending=True, stable=True)
            at_work = lengths[rows] > torch.arange(num_steps, device=lengths.device)[:, None]  # (T, N)
            num_rows = [count for count in at_work.sum(dim=1).tolist() if count > 0]
            steps = steps[:, rows][at_work]
            state = tuple(s[:, rows] for s in state)
        first = self.layers[0]
        word_weight, context_weight = first.weight_ih_l0.tensor_split([inputs.shape[-1]], dim=1)
        words = F.linear(steps.reshape(-1, inputs.shape[-1]), word_weight, first.bias_ih_l0)  # of all steps at once
        look, captions_per_image = self.attention, num_sequences // regions.shape[0]
        if look is not None:
            query, gate = (StepLinear(layer.weight, layer.bias) for layer in (look.query, look.gate))
            context_product = StepLinear(context_weight)
        input_products = [StepLinear(rnn.weight_ih_l0, rnn.bias_ih_l0) for rnn in self.layers[1:]]
        hidden_products = [StepLinear(rnn.weight_hh_l0, rnn.bias_hh_l0) for rnn in self.layers]

        layer_states = [tuple(s[index] for s in state) for index in range(len(self.layers))]
        outputs: list[list[torch.Tensor]] = [[] for _ in self.layers]
        attentions = []
        for step, output in enumerate(words.split(num_rows)):
            count = num_rows[step]
            if step > 0 and count < num_rows[step - 1]:
                layer_states = [tuple(s[:count] for s in layer_state) for layer_state in layer_states]
            if look is not None:
                top = layer_states[-1][0]
                context, weights = look(
                    query(top), gate(top), keys, regions, None if rows is None else rows[:count], captions_per_image
                )
                output = output + context_product(context)
                attentions.append(weights)
            for index in range(len(self.layers)):
                previous = layer_states[index]
                if index > 0:
                    output = input_products[index - 1](self.dropout(output))
                new = rnn_step(self.config.rnn_type, output, hidden_products[index](previous[0]), previous)
                if mask is not None:  # padding leaves the state as it is
                    new = tuple(torch.where(mask[:, step, None], n, p) for n, p in zip(new, previous, strict=True))
                layer_states[index] = new
                output = new[0]
                outputs[index].append(output)

        def join(steps: list[torch.Tensor]) -> torch.Tensor:
            if lengths is None:
                return torch.stack(steps, dim=1)
            joined = steps[0].new_zeros(num_steps, num_sequences, steps[0].shape[-1])
            joined[at_work] = torch.cat(steps)
            return joined.transpose(0, 1)[rows.argsort()]

        last_state = tuple(torch.stack(s) for s in zip(*layer_states, strict=True)) if lengths is None else None
        return [join(steps) for steps in outputs], last_state, join(attentions) if attentions else None

    def _needs_steps(self, inputs: torch.Tensor, mask: torch.Tensor | None) -> bool:
        if self.attention is not None or mask is not None or inputs.shape[1] <= 2:
            return True
        # torch's fused LSTM has no bfloat16 autocast on the CPU
        return inputs.device.type == "cpu" and torch.is_autocast_enabled("cpu")

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        past_key_values: CnnRnnCache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        lengths: torch.LongTensor | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """
        Args:
            input_ids: words read so far, `(N, T)`; with `past_key_values`, those that it has not seen.
            attention_mask: `(N, T)` or longer on the left, 0 where a token is padding and is to be skipped. Padding at
                the end of training captions needs none: an RNN does not look ahead.
            encoder_hidden_states: regions of B images, `(B, num_regions, embedding_size)`, N = B * K.
            inputs_embeds: in place of `input_ids`, `(N, T, embedding_size)`.
            lengths: of training captions, `(N,)`: what comes after them need not be computed, and may be 0.

        Returns:
            `last_hidden_state` `(N, T, hidden_size)`; `cross_attentions`, one `(N, 1, T, num_regions)`.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Pass either `decoder_input_ids` or `decoder_inputs_embeds`, and not both.")
        if encoder_hidden_states is None:
            raise ValueError("The decoder needs `encoder_hidden_states`: it describes an image.")
        use_cache = use_cache if use_cache is not None else self.config.use_cache
        output_attentions = output_attentions if output_attentions is not None else self.config.output_attentions
        output_hidden_states = (
            output_hidden_states if output_hidden_states is not None else self.config.output_hidden_states
        )
        cache = past_key_values if past_key_values is not None else CnnRnnCache()
        if inputs_embeds is None:
            if cache.state is None:  # what generation feeds later comes from the model itself
                self._check_input_ids(input_ids)
            inputs_embeds = self.embed_tokens(input_ids)
        inputs = self.embedding_dropout(inputs_embeds)

        num_sequences, num_tokens = inputs.shape[:2]
        captions_per_image, remainder = divmod(num_sequences, encoder_hidden_states.shape[0])
        if remainder or not captions_per_image:
            raise ValueError(
                f"`decoder_input_ids` holds {num_sequences} sequences for {encoder_hidden_states.shape[0]} images: pass "
                "the same number of sequences for each image."
            )
        mask = None
        if attention_mask is not None and not attention_mask.all():
            mask = attention_mask[:, -num_tokens:].bool()

        state = cache.state
        if state is None or self.has_image_input:
            image = encoder_hidden_states.mean(dim=1).repeat_interleave(captions_per_image, dim=0)
        starts_with_image = state is None and self.config.image_injection == "first_token"
        if self.has_image_input:
            image_inputs = image[:, None].expand(-1, num_tokens, -1)
            if self.config.image_injection == "bias_first_step":
                is_word = mask if mask is not None else inputs.new_ones(1, num_tokens, dtype=torch.bool)
                num_words = cache.seq_length + is_word.cumsum(dim=1)  # padding before the first word is no step
                image_inputs = image_inputs * (num_words == 1)[..., None].to(image.dtype)
            inputs = torch.cat([inputs, image_inputs], dim=-1)
        if state is None:
            state = self._first_state(image)
        if starts_with_image:
            inputs = torch.cat([image[:, None], inputs], dim=1)
            if mask is not None:
                mask = F.pad(mask, (1, 0), value=True)
            if lengths is not None:
                lengths = lengths + 1

        if self._needs_steps(inputs, mask):
            keys = cache.keys
            if self.attention is not None and keys is None:
                keys = cache.keys = self.attention.key(encoder_hidden_states)
            outputs, state, attentions = self._run_steps(inputs, state, encoder_hidden_states, keys, mask, lengths)
        else:
            outputs, state, attentions = self._run_fused(inputs, state)
        cache.update(state, num_tokens)
        if starts_with_image:  # what is said of the image alone predicts no word
            outputs = [output[:, 1:] for output in outputs]
            attentions = attentions[:, 1:] if attentions is not None else None

        return BaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=self.dropout(outputs[-1]),
            past_key_values=cache if use_cache else None,
            hidden_states=(inputs_embeds, *outputs) if output_hidden_states else None,
            cross_attentions=(attentions[:, None],) if output_attentions and attentions is not None else None,
        )

    def _check_input_ids(self, input_ids: torch.LongTensor):
        if torch.compiler.is_compiling() or input_ids.numel() == 0:
            return
        low, high = input_ids.aminmax()
        if low < 0 or high >= self.embed_tokens.num_embeddings:
            raise ValueError(
                f"`decoder_input_ids` or `labels` hold token {int(low if low < 0 else high)}, outside the vocabulary of "
                f"{self.embed_tokens.num_embeddings}: use the tokenizer that the model was trained with."
            )


__all__ = ["CnnRnnDecoder"]
