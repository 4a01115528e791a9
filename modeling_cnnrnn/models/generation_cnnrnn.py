"""Generation: how `generate` treats a captioner, where a sentence ends, and how probable it is."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any

import torch
from transformers import GenerationConfig, GenerationMixin, StoppingCriteriaList
from transformers.generation import GenerationMode
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import ModelOutput

from .beam_search_cnnrnn import BeamSearch, DiverseBeamSearch, beam_search
from .constrained_search_cnnrnn import ConstrainedBeamSearch
from .encoder_cnnrnn import CnnRnnEncoderOutput
from .fast_decoding_cnnrnn import Writer, can_decode_fast, sample
from .generation_checks_cnnrnn import check_cache_implementation, check_generation_options, check_prompt
from .plain_decoding_cnnrnn import PlainWriter
from .recurrence_cnnrnn import check_cache
from .training_steps_cnnrnn import is_plain
from .word_rules_cnnrnn import BadEndings, StopStrings, WordConstraints


def sentence_mask(sequences: torch.Tensor, eos_token_id: int | Sequence[int] | torch.Tensor | None) -> torch.Tensor:
    """
    Mark the tokens of each sentence: all up to and including its first end token.

    Args:
        sequences: token ids after the start token, `(N, T)`.
        eos_token_id: the end token, or several of which each ends a sentence; `None` if sentences have no end.

    Returns:
        A boolean mask, `(N, T)`. A sentence without an end token is marked throughout.
    """
    if eos_token_id is None:
        return torch.ones_like(sequences, dtype=torch.bool)
    is_end = torch.isin(sequences, torch.as_tensor(eos_token_id, device=sequences.device)).long()
    return is_end.cumsum(dim=1) - is_end == 0


@dataclass
class SentenceScores(ModelOutput):
    """
    How probable sentences are, token by token.

    Attributes:
        log_probs: log-probability of each token in nats, `(N, T - 1)`; 0 outside `mask`.
        mask: the tokens that count, `(N, T - 1)`: those after the prompt, up to and including the first end token.
        attentions: where the decoder looked to write each token, `(N, T - 1, num_regions)`.
    """

    log_probs: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    attentions: torch.Tensor | None = None


class _GenerationConfig(GenerationConfig):
    """
    The options of a call of `generate`, with `bad_ending_ids` beside those of transformers.

    transformers 5 leaves diverse and constrained beam search to code on the Hub; here both are beam search of this package.
    """

    bad_ending_ids: list[list[int]] | None = None

    def get_generation_mode(self, assistant_model=None):
        mode = super().get_generation_mode(assistant_model)
        is_own = mode in (GenerationMode.GROUP_BEAM_SEARCH, GenerationMode.CONSTRAINED_BEAM_SEARCH)
        return GenerationMode.BEAM_SEARCH if is_own else mode


class CnnRnnGenerationMixin(GenerationMixin):
    """`generate` of a captioner: images or their features in, a recurrent state as the cache, prompts of a tokenizer."""

    encoder_output_class: Any = CnnRnnEncoderOutput

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # a cache of keys and values is not what an RNN remembers: the decoder makes a `CnnRnnCache`

    @wraps(GenerationMixin.generate)
    def generate(self, *args, **kwargs):
        # transformers turns to another class for one of these names before it looks at anything else
        check_cache_implementation(kwargs.get("cache_implementation"))
        return super().generate(*args, **kwargs)

    def _prepare_generation_config(self, generation_config, **kwargs):
        bad_ending_ids = kwargs.pop("bad_ending_ids", None)
        generation_config, model_kwargs = super()._prepare_generation_config(generation_config, **kwargs)
        generation_config.__class__ = _GenerationConfig  # of the copy that belongs to this call
        if bad_ending_ids is not None:
            generation_config.bad_ending_ids = bad_ending_ids
        check_generation_options(generation_config)
        return generation_config, model_kwargs

    def _validate_model_kwargs(self, model_kwargs):
        for name in ("decoder_inputs_embeds", "inputs_embeds"):
            if model_kwargs.get(name) is not None:
                raise ValueError(
                    f"`{name}` is a prompt of vectors, which have no words that a sentence could begin with: pass token "
                    "ids as `decoder_input_ids`."
                )
        if model_kwargs.get("past_key_values") is not None:
            check_cache(model_kwargs["past_key_values"])
        super()._validate_model_kwargs(model_kwargs)

    def _validate_generation_mode(self, generation_mode, generation_config, generation_mode_kwargs):
        super()._validate_generation_mode(generation_mode, generation_config, generation_mode_kwargs)
        if generation_config.num_beams > self.config.vocab_size:
            raise ValueError(
                f"`num_beams` is {generation_config.num_beams} but the vocabulary has {self.config.vocab_size} words: "
                "pass fewer beams."
            )

    def _get_stopping_criteria(self, generation_config, stopping_criteria, tokenizer=None, **kwargs):
        strings = generation_config.stop_strings
        if strings is not None and tokenizer is not None:
            generation_config = copy.copy(generation_config)
            generation_config.stop_strings = None
            own = StopStrings(strings, tokenizer)
            stopping_criteria = StoppingCriteriaList([*(stopping_criteria or ()), own])
        return super()._get_stopping_criteria(generation_config, stopping_criteria, tokenizer=tokenizer, **kwargs)

    def _get_logits_processor(self, generation_config, *args, **kwargs):
        processors = super()._get_logits_processor(generation_config, *args, **kwargs)
        if getattr(generation_config, "bad_ending_ids", None) is not None:
            eos, length = generation_config._eos_token_tensor, generation_config.max_length
            processors.append(BadEndings(generation_config.bad_ending_ids, eos, length))
        return processors

    def _prepare_generated_length(self, generation_config, has_default_max_length, **kwargs):
        # `max_new_tokens` of the caller replaces the `max_length` that is only this model's default, without a warning
        if generation_config.max_new_tokens is not None:
            has_default_max_length |= generation_config.max_length == self.generation_config.max_length
        return super()._prepare_generated_length(generation_config, has_default_max_length, **kwargs)

    def _prepare_model_inputs(self, inputs, bos_token_id, model_kwargs):
        encoder_outputs, image_features = model_kwargs.get("encoder_outputs"), model_kwargs.get("image_features")
        if encoder_outputs is not None:
            # `generate` repeats them for its beams in place: a copy leaves those of the caller as they are
            model_kwargs["encoder_outputs"] = self.encoder_output_class.of(encoder_outputs)
        elif inputs is None and model_kwargs.get("pixel_values") is None:
            if image_features is None:
                raise ValueError("Pass `pixel_values`, `image_features` or `encoder_outputs`: it describes an image.")
            return model_kwargs.pop("image_features"), "image_features", model_kwargs
        return super()._prepare_model_inputs(inputs, bos_token_id, model_kwargs)

    def _prepare_decoder_input_ids_for_generation(
        self, batch_size, model_input_name, model_kwargs, decoder_start_token_id, device=None
    ):
        # the mask that a tokenizer returns belongs to the prompt, which the decoder reads
        attention_mask = model_kwargs.pop("attention_mask", None)
        for name in ("decoder_input_ids", "input_ids"):
            if name in model_kwargs:
                if attention_mask is not None:
                    model_kwargs.setdefault("decoder_attention_mask", attention_mask)
                mask = model_kwargs.get("decoder_attention_mask")
                check_prompt(name, model_kwargs[name], mask, decoder_start_token_id, batch_size)
        return super()._prepare_decoder_input_ids_for_generation(
            batch_size, model_input_name, model_kwargs, decoder_start_token_id, device
        )

    def prepare_inputs_for_generation(self, input_ids, past_key_values=None, attention_mask=None, **kwargs):
        # `attention_mask` is in the signature so that `generate` takes it; it has become the decoder's mask above
        past_length = past_key_values.get_seq_length() if past_key_values is not None else 0
        if past_length >= input_ids.shape[1]:
            raise ValueError(
                f"`past_key_values` has read {past_length} tokens and `decoder_input_ids` holds {input_ids.shape[1]}: pass "
                "the sentence from its start, with a token that the cache has not read."
            )
        kwargs.pop("next_sequence_length", None)
        return super().prepare_inputs_for_generation(
            input_ids[:, past_length:], past_key_values=past_key_values, **kwargs
        )

    def _fast_writer(
        self, input_ids, logits_processor, stopping_criteria, generation_config, kwargs, expand_size=1
    ) -> Writer | None:
        """Make what the loops of this package need; `None` where a call or a model asks for transformers' own."""
        from .modeling_cnnrnn import CnnRnnForConditionalGeneration, CnnRnnModel

        captioner: Any = self
        if not is_plain(captioner, CnnRnnForConditionalGeneration) or not is_plain(captioner.model, CnnRnnModel):
            return None
        if any(callable(getattr(type(self), name, None)) for name in vars(self)):  # a method of this object is replaced
            return None
        decoder, lm_head = captioner.model.decoder, captioner.lm_head
        if not can_decode_fast(decoder, lm_head, logits_processor, stopping_criteria, generation_config, kwargs):
            return None
        encoder_outputs = kwargs["encoder_outputs"]
        return Writer(captioner, input_ids, logits_processor, generation_config, encoder_outputs, expand_size)

    def _sample(self, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs):
        writer = self._fast_writer(input_ids, logits_processor, stopping_criteria, generation_config, kwargs)
        if writer is not None:
            return sample(writer, generation_config)
        return super()._sample(input_ids, logits_processor, stopping_criteria, generation_config, **kwargs)

    def _beam_search(self, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs):
        config, given = generation_config, (input_ids, logits_processor, stopping_criteria, generation_config)
        make_search: Any = BeamSearch
        expand_size, criteria = 1, None
        if config.force_words_ids is not None:
            constraints = WordConstraints(config.force_words_ids, self.config.vocab_size)
            make_search, expand_size = partial(ConstrainedBeamSearch, constraints), constraints.num_states
        elif (config.num_beam_groups or 1) > 1:
            make_search = DiverseBeamSearch
        writer: Any = self._fast_writer(*given, kwargs, expand_size)
        if writer is None:
            if make_search is BeamSearch:
                return self._transformers_beam_search(*given, **kwargs)
            if kwargs.pop("synced_gpus", False):
                raise ValueError(
                    "`synced_gpus` is True: diverse and constrained beam search do not wait for other processes; search on "
                    "one, or without groups and words that must appear."
                )
            kwargs.pop("tokenizer", None)  # of the stop strings, which are among the criteria
            criteria = stopping_criteria
            writer = PlainWriter(self, input_ids, logits_processor, config, kwargs, expand_size)
        search = make_search(config, writer.input_ids, len(input_ids) // config.num_beams, criteria)
        return beam_search(writer, search, config)

    def _transformers_beam_search(self, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs):
        outputs = super()._beam_search(input_ids, logits_processor, stopping_criteria, generation_config, **kwargs)
        sequences = outputs.sequences if isinstance(outputs, ModelOutput) else outputs
        if generation_config._pad_token_tensor is not None:
            # transformers takes 0 for no padding token, and fills up with the end token
            words = sequences[:, input_ids.shape[1] :]
            is_sentence = sentence_mask(words, generation_config._eos_token_tensor)
            words.masked_fill_(~is_sentence, generation_config._pad_token_tensor)
        return outputs

    def score_sentences(
        self,
        sequences: torch.Tensor,
        encoder_outputs: BaseModelOutput | tuple,
        output_attentions: bool = False,
        num_prompt_tokens: int = 0,
    ) -> SentenceScores:
        """
        Compute the log-probability of each token of given sentences in one pass, however they were decoded.

        Args:
            sequences: token ids as `generate` returns them, `(N, T)`, from the start token on. N = B * K, the K sentences
                of one image in a row.
            encoder_outputs: what `get_encoder()` returned for the B images.
            output_attentions: whether to return the attention weights too; `None` for a decoder without attention.
            num_prompt_tokens: number of tokens after the start token that were given and not written.

        Raises:
            ValueError: the number of sentences is no multiple of the number of images.
        """
        num_images = encoder_outputs[0].shape[0]
        if sequences.shape[0] % num_images:
            raise ValueError(
                f"`sequences` holds {sequences.shape[0]} sentences for {num_images} images: pass the same number of "
                "sentences for each image."
            )
        targets = sequences[:, 1:]
        outputs = self(
            decoder_input_ids=sequences[:, :-1].unflatten(0, (num_images, -1)),
            encoder_outputs=encoder_outputs,
            use_cache=False,
            output_attentions=output_attentions,
            return_dict=True,
        )
        logits = outputs.logits.flatten(0, 1)
        log_probs = logits.float().log_softmax(dim=-1).gather(2, targets[..., None]).squeeze(-1)
        mask = torch.zeros_like(targets, dtype=torch.bool)
        mask[:, num_prompt_tokens:] = sentence_mask(targets[:, num_prompt_tokens:], self.generation_config.eos_token_id)
        attentions = outputs.cross_attentions[0][:, 0] if outputs.cross_attentions else None
        return SentenceScores(log_probs.masked_fill(~mask, 0), mask, attentions)


__all__ = ["CnnRnnGenerationMixin", "SentenceScores", "sentence_mask"]
