"""
CNN+RNN image captioner: any CNN of transformers encodes the image, an LSTM, GRU or plain RNN writes the sentence.

    pixel_values (B, 3, H, W) -> CNN -> image_features (B, R, C) -> projection -> regions (B, R, E)
    decoder_input_ids (N, T) -> embeddings (N, T, E) -> RNN, with attention to the regions or without -> (N, T, D)
    -> lm_head -> logits (N, T, V)

B images, R = H' * W' regions, N = B * K sequences if each image has K captions, image by image.

The decoders are those of Show and Tell (https://arxiv.org/abs/1411.4555), Show, Attend and Tell
(https://arxiv.org/abs/1502.03044), Deep Visual-Semantic Alignments (https://arxiv.org/abs/1412.2306) and of the other papers of
`ARCHITECTURES`.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_outputs import (
    BaseModelOutput,
    Seq2SeqLMOutput,
    Seq2SeqModelOutput,
)
from transformers.utils import can_return_tuple

from .base_cnnrnn import CnnRnnPreTrainedModel
from .configuration_cnnrnn import DEFAULT_MAX_LENGTH, CnnRnnConfig
from .decoder_cnnrnn import CnnRnnDecoder
from .encoder_cnnrnn import CnnRnnEncoder, CnnRnnEncoderOutput
from .generation_cnnrnn import CnnRnnGenerationMixin
from .loss_cnnrnn import IGNORE_INDEX, cross_entropy_
from .recurrence_cnnrnn import CnnRnnCache
from .training_steps_cnnrnn import is_plain


@dataclass
class CnnRnnModelOutput(Seq2SeqModelOutput):
    """As of any encoder-decoder, and `sentinel_weights` `(N, T)` with adaptive attention, see [`CnnRnnDecoderOutput`]."""

    sentinel_weights: torch.Tensor | None = None


@dataclass
class CnnRnnOutput(Seq2SeqLMOutput):
    """As of any encoder-decoder, and `sentinel_weights` `(N, T)` with adaptive attention, see [`CnnRnnDecoderOutput`]."""

    sentinel_weights: torch.Tensor | None = None


class CnnRnnModel(CnnRnnPreTrainedModel):
    """The CNN and the RNN, without the vocabulary on top."""

    config: CnnRnnConfig

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
        decoder_input_ids: torch.Tensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        encoder_outputs: BaseModelOutput | tuple | None = None,
        past_key_values: CnnRnnCache | None = None,
        decoder_inputs_embeds: torch.Tensor | None = None,
        image_features: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        lengths: torch.Tensor | None = None,
        image_features_mask: torch.Tensor | None = None,
        **kwargs,
    ) -> CnnRnnModelOutput:
        """
        Encode images and read words.

        Args:
            pixel_values: `(batch_size, num_channels, height, width)`.
            decoder_input_ids: `(batch_size, T)`, or `(batch_size, K, T)` for K captions of each image.
            decoder_attention_mask: as `decoder_input_ids`, 0 where a token is padding, which the state skips.
            encoder_outputs: result of `get_encoder()`, in place of `pixel_values`.
            image_features: `(batch_size, num_regions, num_feature_channels)`, from `get_encoder().get_image_features` or a
                detector of regions, in place of `pixel_values`.
            lengths: lengths of training captions, `(batch_size * K,)`. Outputs after the end of a caption may then be 0.
            image_features_mask: `(batch_size, num_regions)`, 0 where a region of `image_features` is padding.

        Returns:
            `last_hidden_state` `(batch_size * K, T, config.output_size)`, K captions of the first image first.
        """
        if encoder_outputs is None:
            encoder_outputs = self.encoder(
                pixel_values,
                image_features,
                output_hidden_states=output_hidden_states,
                image_features_mask=image_features_mask,
                return_dict=True,
            )
        encoded = CnnRnnEncoderOutput.of(encoder_outputs)
        self._check_num_captions(encoded.last_hidden_state, decoder_input_ids, decoder_inputs_embeds)
        if decoder_input_ids is not None and decoder_input_ids.ndim == 3:
            decoder_input_ids = decoder_input_ids.flatten(0, 1)
            if decoder_attention_mask is not None:
                decoder_attention_mask = decoder_attention_mask.flatten(0, 1)
        decoder_outputs = self.decoder(
            input_ids=decoder_input_ids,
            attention_mask=decoder_attention_mask,
            encoder_hidden_states=encoded.last_hidden_state,
            past_key_values=past_key_values,
            inputs_embeds=decoder_inputs_embeds,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            lengths=lengths,
            image_embeds=encoded.pooler_output,
            encoder_attention_mask=encoded.image_features_mask,
            return_dict=True,
        )
        return CnnRnnModelOutput(
            last_hidden_state=decoder_outputs.last_hidden_state,
            past_key_values=decoder_outputs.past_key_values,
            decoder_hidden_states=decoder_outputs.hidden_states,
            cross_attentions=decoder_outputs.cross_attentions,
            encoder_last_hidden_state=encoded.last_hidden_state,
            encoder_hidden_states=encoded.hidden_states,
            sentinel_weights=decoder_outputs.sentinel_weights,
        )

    def _check_num_captions(self, regions, decoder_input_ids, decoder_inputs_embeds):
        inputs = decoder_input_ids if decoder_input_ids is not None else decoder_inputs_embeds
        if inputs is not None and inputs.shape[0] != regions.shape[0]:
            raise ValueError(
                f"{regions.shape[0]} images were given with {inputs.shape[0]} captions: pass one caption per image, or "
                "`labels` of shape (batch_size, captions_per_image, length)."
            )


class CnnRnnForConditionalGeneration(CnnRnnPreTrainedModel, CnnRnnGenerationMixin):
    """
    The captioner: `generate(pixel_values=...)` writes a sentence, `forward(pixel_values, labels=...)` returns the loss.

    ```python
    >>> from PIL import Image
    >>> from modeling_cnnrnn import CnnRnnForConditionalGeneration, CnnRnnProcessor

    >>> model = CnnRnnForConditionalGeneration.from_pretrained("outputs/shapes")
    >>> processor = CnnRnnProcessor.from_pretrained("outputs/shapes")
    >>> inputs = processor(images=Image.open("picture.png"), return_tensors="pt")
    >>> processor.batch_decode(model.generate(**inputs, num_beams=3))
    ```
    """

    config: CnnRnnConfig
    _tied_weights_keys = {"lm_head.weight": "model.decoder.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: CnnRnnConfig):
        super().__init__(config)
        self.model = CnnRnnModel(config)
        self.lm_head = nn.Linear(config.output_size, config.vocab_size)
        self.post_init()
        self.generation_config.max_length = DEFAULT_MAX_LENGTH
        never_written = (config.pad_token_id, config.bos_token_id, config.unk_token_id)
        self.generation_config.suppress_tokens = [token for token in never_written if token is not None] or None

    def save_pretrained(self, save_directory, *args, **kwargs):
        """
        Save as transformers does, and the code: with the processor saved beside it, the folder is a whole repository.

        `AutoModel`, `AutoModelForImageTextToText` and `pipeline("image-to-text")` load it with `trust_remote_code=True`
        where this package is not installed.
        """
        # `super` copies the files that this one imports, in functions too; imported above, it would slow down every start
        from .pipeline_cnnrnn import CUSTOM_PIPELINES

        self.config.auto_map = {
            **(getattr(self.config, "auto_map", None) or {}),
            "AutoModel": "modeling_cnnrnn.CnnRnnModel",
        }
        self.config.custom_pipelines = CUSTOM_PIPELINES
        super().save_pretrained(save_directory, *args, **kwargs)
        config = Path(save_directory, "config.json")
        for path in config.parent.glob("*.safetensors"):  # safetensors 0.8 lets only their owner read them
            if config.exists():
                shutil.copymode(config, path)

    def get_input_embeddings(self):
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value):
        self.model.set_input_embeddings(value)

    def prepare_decoder_input_ids_from_labels(self, labels: torch.Tensor) -> torch.Tensor:
        """Shift labels `(..., T)` to what the decoder reads when it predicts them: one step later, after the start token."""
        decoder_input_ids = labels.new_full(labels.shape, self.config.decoder_start_token_id)  # type: ignore[arg-type]
        decoder_input_ids[..., 1:] = labels[..., :-1]
        is_ignored = decoder_input_ids == IGNORE_INDEX
        return decoder_input_ids.masked_fill(is_ignored, self.config.pad_token_id)  # type: ignore[arg-type]

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        decoder_input_ids: torch.Tensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        encoder_outputs: BaseModelOutput | tuple | None = None,
        past_key_values: CnnRnnCache | None = None,
        decoder_inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        image_features: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        skip_logits: bool | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        scheduled_sampling_probability: float = 0.0,
        caption_weights: torch.Tensor | None = None,
        image_features_mask: torch.Tensor | None = None,
        **kwargs,
    ) -> CnnRnnOutput:
        """
        Score the next words, and compute the loss of captions.

        Args:
            pixel_values: `(batch_size, num_channels, height, width)`.
            decoder_input_ids: `(batch_size, T)` or `(batch_size, K, T)`; made from `labels` if not given.
            labels: token ids with one end token per caption, `(batch_size, T)`, or `(batch_size, K, T)` for K captions
                of each image, which share one pass of the CNN. -100 and padding have no loss.
            encoder_outputs, image_features, image_features_mask: in place of `pixel_values`, see [`CnnRnnModel`].
            skip_logits: with `labels`, whether to leave out the logits, which saves a third of the time and most of the
                memory of a training step. By default they are left out in training mode only.
            num_items_in_batch: number of real tokens by which the loss is divided, if a batch is spread over several
                calls or processes. By default the number in `labels`.
            scheduled_sampling_probability: in training mode, the probability of replacing a word that the decoder reads by
                one sampled from its own prediction (https://arxiv.org/abs/1506.03099).
            caption_weights: `(batch_size,)` or `(batch_size, K)`, factors of the negative log-likelihoods of the captions,
                such as the advantages of sampled captions in self-critical training (https://arxiv.org/abs/1612.00563).
                Label smoothing and the attention term are then left out.

        Returns:
            `loss`: cross-entropy per real token, in nats; in training mode with label smoothing and the doubly stochastic
            attention term, in evaluation mode without, so that its exponential is the perplexity.
            `logits`: `(batch_size, T, vocab_size)` or `(batch_size, K, T, vocab_size)`.

        Raises:
            ValueError: the numbers of captions and images differ, a token is outside the vocabulary, or no label has a loss.
        """
        skip_logits = (self.training and labels is not None) if skip_logits is None else skip_logits
        regularized = self.training and self.config.attention_regularization > 0 and labels is not None
        features = {"image_features": image_features, "image_features_mask": image_features_mask}
        lengths = loss = None
        if labels is not None:
            if self.training and skip_logits and not (output_attentions or output_hidden_states):
                lengths = self._lengths(labels)
            if decoder_input_ids is None and decoder_inputs_embeds is None:
                decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
            probability = scheduled_sampling_probability if self.training else 0.0
            if probability > 0 and decoder_input_ids is not None:
                encoder_outputs = encoder_outputs or self.get_encoder()(pixel_values, **features)
                decoder_input_ids = self._mix_in_own_words(decoder_input_ids, encoder_outputs, probability)
        outputs = self.model(
            pixel_values,
            **features,
            decoder_input_ids=decoder_input_ids,
            decoder_attention_mask=decoder_attention_mask,
            encoder_outputs=encoder_outputs,
            past_key_values=past_key_values,
            decoder_inputs_embeds=decoder_inputs_embeds,
            use_cache=use_cache if labels is None else False,
            output_attentions=output_attentions or regularized,
            output_hidden_states=output_hidden_states,
            lengths=lengths,
            return_dict=True,
        )
        logits = None if skip_logits and labels is not None else self.lm_head(outputs.last_hidden_state)
        if labels is not None:
            maps = outputs.cross_attentions[0][:, 0] if regularized else None
            loss = self._caption_loss(outputs[0], logits, labels, maps, num_items_in_batch, caption_weights)
        if logits is not None and decoder_input_ids is not None and decoder_input_ids.ndim == 3:
            logits = logits.unflatten(0, decoder_input_ids.shape[:2])
        left_out = {"last_hidden_state"}
        if regularized and not output_attentions:  # the loss alone has asked for them
            left_out |= {"cross_attentions", "sentinel_weights"}
        others = {name: value for name, value in outputs.items() if name not in left_out}
        return CnnRnnOutput(loss=loss, logits=logits, **others)

    def _is_token(self, labels: torch.Tensor) -> torch.Tensor:
        """Mark the labels that have a loss."""
        return (labels != IGNORE_INDEX) & (labels != self.config.pad_token_id)

    def _lengths(self, labels: torch.Tensor) -> torch.Tensor:
        """Count the tokens of each caption up to its last one with a loss, and at least 1, `(N,)`."""
        places = torch.arange(1, labels.shape[-1] + 1, device=labels.device)
        return (self._is_token(labels) * places).amax(dim=-1).clamp(min=1).flatten()

    @torch.no_grad()
    def _mix_in_own_words(
        self, decoder_input_ids: torch.Tensor, encoder_outputs: BaseModelOutput | tuple, probability: float
    ) -> torch.Tensor:
        """Replace some words by samples of the model, each given the words before it (scheduled sampling)."""
        mixed = decoder_input_ids.flatten(0, -2).clone()
        is_replaced = torch.rand(mixed.shape, device=mixed.device) < probability
        is_replaced &= mixed != self.config.pad_token_id
        encoded, cache = CnnRnnEncoderOutput.of(encoder_outputs), CnnRnnCache()
        for step in range(1, mixed.shape[1]):
            decoder_outputs = self.model.decoder(
                mixed[:, step - 1 : step],
                encoder_hidden_states=encoded.last_hidden_state,
                image_embeds=encoded.pooler_output,
                encoder_attention_mask=encoded.image_features_mask,
                past_key_values=cache,
                use_cache=True,
            )
            chosen = is_replaced[:, step]
            logits = self.lm_head(decoder_outputs.last_hidden_state[chosen, -1]).float()
            mixed[chosen, step] = logits.softmax(dim=-1).multinomial(1).squeeze(-1)
        return mixed.view_as(decoder_input_ids)

    def _caption_loss(
        self, hidden_states, logits, labels, attentions, num_items_in_batch, caption_weights
    ) -> torch.Tensor:
        """Compute the loss, with logits at real tokens only if `logits` is `None`."""
        labels = labels.reshape(-1, labels.shape[-1])
        is_token = self._is_token(labels)
        targets = labels[is_token]
        if not torch.compiler.is_compiling():
            if targets.numel() == 0 and num_items_in_batch is None:
                raise ValueError("`labels` hold no word to learn: each caption needs at least its end token.")
            self.model.decoder.check_input_ids(targets)  # the last token of a caption is never an input
        token_logits = logits[is_token] if logits is not None else self.lm_head(hidden_states[is_token])
        num_items = num_items_in_batch if num_items_in_batch is not None else targets.numel()
        if isinstance(num_items, torch.Tensor):
            num_items = num_items.to(token_logits.device)
        token_logits = token_logits.to(torch.promote_types(token_logits.dtype, torch.float32))
        smoothing = self.config.label_smoothing if self.training and caption_weights is None else 0.0
        # in place only where nothing else needs the logits; a compiler merges the steps itself
        if logits is None and is_plain(self.lm_head, nn.Linear) and not torch.compiler.is_compiling():
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
            # over a caption the weights of each region should add up to 1; captions count by their words, as above
            looked_at = (attentions.to(loss.dtype) * is_token[..., None]).sum(dim=1)  # (N, num_regions)
            penalty = ((1 - looked_at) ** 2).mean(dim=-1) * is_token.sum(dim=-1)
            loss = loss + self.config.attention_regularization * penalty.sum() / num_items
        return loss


__all__ = ["CnnRnnForConditionalGeneration", "CnnRnnModel"]
