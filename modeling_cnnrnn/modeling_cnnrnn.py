"""
CNN+RNN image captioner: any CNN of transformers sees the image, an LSTM, GRU or plain RNN writes the sentence.

    pixel_values (B, 3, H, W) -> CNN -> image_features (B, R, C) -> projection -> regions (B, R, E)
    decoder_input_ids (N, T) -> embeddings (N, T, E) -> RNN, with attention to the regions or without -> (N, T, D)
    -> lm_head -> logits (N, T, V)

B images, R = H' * W' regions, N = B * K sequences when each image has K captions, image by image.

The decoders are those of Show and Tell (https://arxiv.org/abs/1411.4555), Show, Attend and Tell
(https://arxiv.org/abs/1502.03044) and Deep Visual-Semantic Alignments (https://arxiv.org/abs/1412.2306).
"""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoConfig, AutoModel, GenerationMixin
from transformers.modeling_outputs import (
    BaseModelOutput,
    BaseModelOutputWithPastAndCrossAttentions,
    Seq2SeqLMOutput,
    Seq2SeqModelOutput,
)
from transformers.utils import can_return_tuple

from .configuration_cnnrnn import CnnRnnConfig
from .encoder_cnnrnn import CnnRnnEncoder, CnnRnnPreTrainedModel, align_weights
from .recurrence_cnnrnn import RNN_CLASSES, CnnRnnAttention, CnnRnnCache, StepLinear, cross_entropy_, rnn_step


if TYPE_CHECKING:  # `save_pretrained` copies to the Hub each file that this one imports, and finds them by reading
    from .pipeline_cnnrnn import ImageToTextPipeline  # noqa: F401


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


class CnnRnnModel(CnnRnnPreTrainedModel):
    """The CNN and the RNN, without the vocabulary on top."""

    def __init__(self, config: CnnRnnConfig):
        super().__init__(config)
        self.encoder = CnnRnnEncoder(config)
        self.decoder = CnnRnnDecoder(config)
        self.post_init()

    def get_input_embeddings(self):
        return self.decoder.embed_tokens

    def set_input_embeddings(self, value):
        self.decoder.embed_tokens = value

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        decoder_input_ids: torch.LongTensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        encoder_outputs: BaseModelOutput | tuple | None = None,
        past_key_values: CnnRnnCache | None = None,
        decoder_inputs_embeds: torch.Tensor | None = None,
        image_features: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        lengths: torch.LongTensor | None = None,
        **kwargs,
    ) -> Seq2SeqModelOutput:
        """
        Args:
            pixel_values: `(batch_size, num_channels, height, width)`.
            decoder_input_ids: `(batch_size, T)`, or `(batch_size, K, T)` for K captions of each image.
            decoder_attention_mask: as `decoder_input_ids`, 0 where a token is padding that the state must not read.
            encoder_outputs: what `get_encoder()` returned, in place of `pixel_values`.
            image_features: `(batch_size, num_regions, num_feature_channels)`, what
                `get_encoder().extract_image_features` returned, in place of `pixel_values`.
            lengths: of training captions, `(batch_size * K,)`: what comes after them need not be computed.

        Returns:
            `last_hidden_state` `(batch_size * K, T, hidden_size)`, K captions of the first image first.
        """
        if encoder_outputs is None:
            encoder_outputs = self.encoder(
                pixel_values, image_features, output_hidden_states=output_hidden_states, return_dict=True
            )
        elif not isinstance(encoder_outputs, BaseModelOutput):
            encoder_outputs = BaseModelOutput(*encoder_outputs)
        inputs = decoder_input_ids if decoder_input_ids is not None else decoder_inputs_embeds
        if inputs is not None and inputs.shape[0] != encoder_outputs.last_hidden_state.shape[0]:
            raise ValueError(
                f"{encoder_outputs.last_hidden_state.shape[0]} images were given with {inputs.shape[0]} captions: pass "
                "one caption per image, or `labels` of shape (batch_size, captions_per_image, length)."
            )
        if decoder_input_ids is not None and decoder_input_ids.ndim == 3:
            decoder_input_ids = decoder_input_ids.flatten(0, 1)
            if decoder_attention_mask is not None:
                decoder_attention_mask = decoder_attention_mask.flatten(0, 1)
        decoder_outputs = self.decoder(
            input_ids=decoder_input_ids,
            attention_mask=decoder_attention_mask,
            encoder_hidden_states=encoder_outputs.last_hidden_state,
            past_key_values=past_key_values,
            inputs_embeds=decoder_inputs_embeds,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            lengths=lengths,
            return_dict=True,
        )
        return Seq2SeqModelOutput(
            last_hidden_state=decoder_outputs.last_hidden_state,
            past_key_values=decoder_outputs.past_key_values,
            decoder_hidden_states=decoder_outputs.hidden_states,
            cross_attentions=decoder_outputs.cross_attentions,
            encoder_last_hidden_state=encoder_outputs.last_hidden_state,
            encoder_hidden_states=encoder_outputs.hidden_states,
        )


class CnnRnnForConditionalGeneration(CnnRnnPreTrainedModel, GenerationMixin):
    """
    The captioner: `generate(pixel_values=...)` writes, `forward(pixel_values, labels=...)` learns.

    ```python
    >>> from PIL import Image
    >>> from modeling_cnnrnn import CnnRnnForConditionalGeneration, CnnRnnProcessor

    >>> model = CnnRnnForConditionalGeneration.from_pretrained("outputs/shapes")
    >>> processor = CnnRnnProcessor.from_pretrained("outputs/shapes")
    >>> inputs = processor(images=Image.open("picture.png"), return_tensors="pt")
    >>> processor.batch_decode(model.generate(**inputs, num_beams=3))
    ```
    """

    _tied_weights_keys = {"lm_head.weight": "model.decoder.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: CnnRnnConfig):
        super().__init__(config)
        self.model = CnnRnnModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)
        # the name of the class selects a loss that shifts the labels, which are shifted already
        self.loss_type = "ForMaskedLM"
        self.post_init()
        self.generation_config.max_length = 32
        never_written = (config.pad_token_id, config.bos_token_id, config.unk_token_id)
        self.generation_config.suppress_tokens = [token for token in never_written if token is not None] or None

    @classmethod
    def from_encoder_pretrained(
        cls, pretrained_model_name_or_path: str, tokenizer=None, encoder_kwargs: dict | None = None, **decoder_kwargs
    ) -> "CnnRnnForConditionalGeneration":
        """
        A captioner with a trained CNN and an untrained decoder: where a training on ImageNet weights begins.

        Args:
            pretrained_model_name_or_path: any CNN checkpoint, by its name on the Hub or its folder.
            tokenizer: sets the size of the vocabulary and the ids of the special tokens.
            encoder_kwargs: passed on to `AutoModel.from_pretrained` (`revision`, `trust_remote_code`, ...).
            decoder_kwargs: fields of [`CnnRnnConfig`].

        Raises:
            ValueError: the checkpoint is not a CNN.
        """
        encoder_kwargs = {"dtype": torch.float32, **(encoder_kwargs or {})}
        loading_kwargs = {key: value for key, value in encoder_kwargs.items() if key != "dtype"}
        encoder_config = AutoConfig.from_pretrained(pretrained_model_name_or_path, **loading_kwargs)
        if tokenizer is None:
            model = cls(CnnRnnConfig(encoder=encoder_config, **decoder_kwargs))
        else:
            model = cls(CnnRnnConfig.from_tokenizer(tokenizer, encoder=encoder_config, **decoder_kwargs))
        encoder = model.model.encoder
        encoder.cnn = AutoModel.from_pretrained(pretrained_model_name_or_path, **encoder_kwargs)
        align_weights(encoder.cnn)
        encoder.train(model.training)
        model.config.encoder.dtype = None  # the captioner has one dtype, its own
        return model.eval()

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # a cache of keys and values is not what an RNN remembers: the decoder makes a `CnnRnnCache`

    def get_input_embeddings(self):
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value):
        self.model.set_input_embeddings(value)

    def prepare_decoder_input_ids_from_labels(self, labels: torch.Tensor) -> torch.LongTensor:
        """What the decoder reads to write `labels`, `(..., T)`: the same, one step later, after the start token."""
        decoder_input_ids = labels.new_full(labels.shape, self.config.decoder_start_token_id)
        decoder_input_ids[..., 1:] = labels[..., :-1]
        return decoder_input_ids.masked_fill(decoder_input_ids == -100, self.config.pad_token_id)

    def _validate_generation_mode(self, generation_mode, generation_config, generation_mode_kwargs):
        super()._validate_generation_mode(generation_mode, generation_config, generation_mode_kwargs)
        if generation_config.num_beams > self.config.vocab_size:
            raise ValueError(
                f"`num_beams` is {generation_config.num_beams} but the vocabulary has {self.config.vocab_size} words: "
                "pass fewer beams."
            )

    def _prepare_generated_length(self, generation_config, has_default_max_length, **kwargs):
        # `max_new_tokens` of the caller replaces the `max_length` that is only this model's default, without a warning
        if generation_config.max_new_tokens is not None:
            has_default_max_length |= generation_config.max_length == self.generation_config.max_length
        return super()._prepare_generated_length(generation_config, has_default_max_length, **kwargs)

    def _prepare_model_inputs(self, inputs, bos_token_id, model_kwargs):
        encoder_outputs, image_features = model_kwargs.get("encoder_outputs"), model_kwargs.get("image_features")
        if encoder_outputs is not None:
            # `generate` repeats them for its beams in place: those of the caller stay as they are
            is_tuple = isinstance(encoder_outputs, (tuple, list))
            model_kwargs["encoder_outputs"] = (
                BaseModelOutput(*encoder_outputs) if is_tuple else BaseModelOutput(**encoder_outputs)
            )
        elif inputs is None and model_kwargs.get("pixel_values") is None:
            if image_features is None:
                raise ValueError("Pass `pixel_values`, `image_features` or `encoder_outputs`: it describes an image.")
            return model_kwargs.pop("image_features"), "image_features", model_kwargs
        return super()._prepare_model_inputs(inputs, bos_token_id, model_kwargs)

    def _prepare_decoder_input_ids_for_generation(self, *args, **kwargs):
        # the mask that a tokenizer returns belongs to the prompt, which the decoder reads
        model_kwargs = kwargs["model_kwargs"] if "model_kwargs" in kwargs else args[2]
        attention_mask = model_kwargs.pop("attention_mask", None)
        if attention_mask is not None and ("input_ids" in model_kwargs or "decoder_input_ids" in model_kwargs):
            model_kwargs.setdefault("decoder_attention_mask", attention_mask)
        return super()._prepare_decoder_input_ids_for_generation(*args, **kwargs)

    def prepare_inputs_for_generation(self, input_ids, past_key_values=None, attention_mask=None, **kwargs):
        # `attention_mask` is in the signature so that `generate` takes it; it has become the decoder's mask above
        past_length = past_key_values.get_seq_length() if past_key_values is not None else 0
        kwargs.pop("next_sequence_length", None)
        return super().prepare_inputs_for_generation(
            input_ids[:, past_length:], past_key_values=past_key_values, **kwargs
        )

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        decoder_input_ids: torch.LongTensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        encoder_outputs: BaseModelOutput | tuple | None = None,
        past_key_values: CnnRnnCache | None = None,
        decoder_inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        image_features: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        skip_logits: bool | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        scheduled_sampling_probability: float = 0.0,
        caption_weights: torch.Tensor | None = None,
        **kwargs,
    ) -> Seq2SeqLMOutput:
        """
        Args:
            pixel_values: `(batch_size, num_channels, height, width)`.
            decoder_input_ids: `(batch_size, T)` or `(batch_size, K, T)`; made from `labels` if not given.
            labels: token ids with one end token per caption, `(batch_size, T)`, or `(batch_size, K, T)` for K captions
                of each image, which share one pass of the CNN. -100 and padding are not learned.
            encoder_outputs, image_features: in place of `pixel_values`, see [`CnnRnnModel`].
            skip_logits: with `labels`, whether to leave the logits out, which saves a third of the time and most of the
                memory of a training step. By default they are left out in training mode only.
            num_items_in_batch: number of real tokens that the loss is divided by, where a batch is spread over several
                calls or processes. By default those in `labels`.
            scheduled_sampling_probability: in training mode, the probability with which a word that the decoder reads is
                one of its own, drawn from what it predicted there (https://arxiv.org/abs/1506.03099).
            caption_weights: `(batch_size,)` or `(batch_size, K)`, what the negative log-likelihood of each caption is
                multiplied with: the advantage of a sampled caption in self-critical training
                (https://arxiv.org/abs/1612.00563). The loss then is that alone, without the terms of training below.

        Returns:
            `loss`: cross-entropy per real token, in nats. In training mode with label smoothing and the doubly stochastic
            attention term; in evaluation mode without, so that its exponential is the perplexity.
            `logits`: `(batch_size, T, vocab_size)` or `(batch_size, K, T, vocab_size)`.

        Raises:
            ValueError: another number of captions than images, tokens outside the vocabulary, labels without a word.
        """
        if skip_logits is None:
            skip_logits = self.training and labels is not None
        regularized = self.training and self.config.attention_regularization > 0 and labels is not None
        lengths = None
        if labels is not None:
            use_cache = False
            if skip_logits and not (output_attentions or output_hidden_states or torch.compiler.is_compiling()):
                places = torch.arange(1, labels.shape[-1] + 1, device=labels.device)
                lengths = (self._is_token(labels) * places).amax(dim=-1).clamp(min=1).flatten()
            if decoder_input_ids is None and decoder_inputs_embeds is None:
                decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
            if self.training and scheduled_sampling_probability > 0:
                if encoder_outputs is None:
                    encoder_outputs = self.get_encoder()(pixel_values, image_features, return_dict=True)
                decoder_input_ids = self._mix_in_own_words(
                    decoder_input_ids, encoder_outputs[0], scheduled_sampling_probability
                )
        outputs = self.model(
            pixel_values,
            decoder_input_ids=decoder_input_ids,
            decoder_attention_mask=decoder_attention_mask,
            encoder_outputs=encoder_outputs,
            past_key_values=past_key_values,
            decoder_inputs_embeds=decoder_inputs_embeds,
            image_features=image_features,
            use_cache=use_cache,
            output_attentions=output_attentions or regularized,
            output_hidden_states=output_hidden_states,
            lengths=lengths,
            return_dict=True,
        )
        hidden_states = outputs.last_hidden_state
        logits = None if skip_logits and labels is not None else self.lm_head(hidden_states)
        loss = None
        if labels is not None:
            attentions = outputs.cross_attentions[0][:, 0] if regularized else None
            loss = self._caption_loss(hidden_states, logits, labels, attentions, num_items_in_batch, caption_weights)
        if logits is not None and decoder_input_ids is not None and decoder_input_ids.ndim == 3:
            logits = logits.unflatten(0, decoder_input_ids.shape[:2])
        return Seq2SeqLMOutput(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            decoder_hidden_states=outputs.decoder_hidden_states,
            cross_attentions=outputs.cross_attentions if output_attentions or not regularized else None,
            encoder_last_hidden_state=outputs.encoder_last_hidden_state,
            encoder_hidden_states=outputs.encoder_hidden_states,
        )

    def _is_token(self, labels: torch.Tensor) -> torch.Tensor:
        """Where `labels` hold something to learn."""
        return (labels != -100) & (labels != self.config.pad_token_id)

    @torch.no_grad()
    def _mix_in_own_words(
        self, decoder_input_ids: torch.LongTensor, regions: torch.Tensor, probability: float
    ) -> torch.LongTensor:
        """Scheduled sampling: put words of the model in the place of some, each drawn after those before it."""
        mixed = decoder_input_ids.flatten(0, -2).clone()
        is_replaced = torch.rand(mixed.shape, device=mixed.device) < probability
        is_replaced &= mixed != self.config.pad_token_id
        cache = CnnRnnCache()
        for step in range(1, mixed.shape[1]):
            decoder_outputs = self.model.decoder(
                mixed[:, step - 1 : step], encoder_hidden_states=regions, past_key_values=cache, use_cache=True
            )
            chosen = is_replaced[:, step]
            logits = self.lm_head(decoder_outputs.last_hidden_state[chosen, -1]).float()
            mixed[chosen, step] = logits.softmax(dim=-1).multinomial(1).squeeze(-1)
        return mixed.view_as(decoder_input_ids)

    def _caption_loss(
        self, hidden_states, logits, labels, attentions, num_items_in_batch, caption_weights
    ) -> torch.Tensor:
        """Cross-entropy at real tokens, the only places where the vocabulary is computed if `logits` is `None`."""
        labels = labels.reshape(-1, labels.shape[-1])
        is_token = self._is_token(labels)
        targets = labels[is_token]
        if not torch.compiler.is_compiling():
            if targets.numel() == 0 and num_items_in_batch is None:
                raise ValueError("`labels` hold no word to learn: each caption needs at least its end token.")
            self.model.decoder._check_input_ids(targets)  # the last token of a caption is never an input
        token_logits = logits[is_token] if logits is not None else self.lm_head(hidden_states[is_token])
        num_items = num_items_in_batch if num_items_in_batch is not None else targets.numel()
        if isinstance(num_items, torch.Tensor):
            num_items = num_items.to(token_logits.device)
        token_logits = token_logits.to(torch.promote_types(token_logits.dtype, torch.float32))
        smoothing = self.config.label_smoothing if self.training and caption_weights is None else 0.0
        if logits is None and not torch.compiler.is_compiling():  # a compiler merges the steps itself
            losses = cross_entropy_(token_logits, targets, smoothing)
        else:
            losses = F.cross_entropy(token_logits, targets, reduction="none", label_smoothing=smoothing)
        if caption_weights is not None:
            if caption_weights.numel() != len(labels):
                raise ValueError(
                    f"`caption_weights` has shape {tuple(caption_weights.shape)} for {len(labels)} captions in `labels`: "
                    "pass one weight per caption."
                )
            return losses @ caption_weights.flatten()[:, None].expand_as(labels)[is_token].to(losses.dtype) / num_items
        loss = losses.sum() / num_items
        if attentions is not None:
            # over its caption each region is to be looked at once in all; captions count by their words, as above
            looked_at = (attentions.to(loss.dtype) * is_token[..., None]).sum(dim=1)  # (N, num_regions)
            penalty = ((1 - looked_at) ** 2).mean(dim=-1) * is_token.sum(dim=-1)
            loss = loss + self.config.attention_regularization * penalty.sum() / num_items
        return loss


__all__ = ["CnnRnnForConditionalGeneration", "CnnRnnModel", "CnnRnnPreTrainedModel"]
