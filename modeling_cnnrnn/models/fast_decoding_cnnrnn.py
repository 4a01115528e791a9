"""
Greedy search, sampling and the sentences of a beam search on packed weights, with the results of transformers' loops.

[`can_decode_fast`] says where they serve: where a call asks for nothing but what is common. Everything else is left to
transformers' loops.
"""

from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig
from transformers.generation import logits_process
from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria, StoppingCriteriaList
from transformers.generation.utils import GenerateEncoderDecoderOutput

from .decoder_cnnrnn import Seen
from .encoder_cnnrnn import CnnRnnEncoderOutput
from .packed_decoder_cnnrnn import DecoderImages, LayerState, PackedDecoder, is_packable, packed_decoder
from .plain_decoding_cnnrnn import Record, Recorder
from .recurrence_cnnrnn import CnnRnnCache
from .word_rules_cnnrnn import BadEndings


# what computes from the words so far and the scores alone, with no memory
PURE_PROCESSORS = (
    BadEndings,
    logits_process.EpsilonLogitsWarper,
    logits_process.EtaLogitsWarper,
    logits_process.ExponentialDecayLengthPenalty,
    logits_process.ForcedBOSTokenLogitsProcessor,
    logits_process.ForcedEOSTokenLogitsProcessor,
    logits_process.InfNanRemoveLogitsProcessor,
    logits_process.LogitNormalization,
    logits_process.MinLengthLogitsProcessor,
    logits_process.MinNewTokensLengthLogitsProcessor,
    logits_process.MinPLogitsWarper,
    logits_process.NoBadWordsLogitsProcessor,
    logits_process.NoRepeatNGramLogitsProcessor,
    logits_process.RepetitionPenaltyLogitsProcessor,
    logits_process.SequenceBiasLogitsProcessor,
    logits_process.SuppressTokensAtBeginLogitsProcessor,
    logits_process.SuppressTokensLogitsProcessor,
    logits_process.TemperatureLogitsWarper,
    logits_process.TopKLogitsWarper,
    logits_process.TopPLogitsWarper,
    logits_process.TypicalLogitsWarper,
)


def can_decode_fast(
    decoder: nn.Module,
    lm_head: nn.Module,
    processors: list,
    criteria: StoppingCriteriaList,
    config: GenerationConfig,
    model_kwargs: dict,
) -> bool:
    """Whether a call of `generate` asks for nothing but what the loops of this module do, of layers that they know."""
    known = {"encoder_outputs", "use_cache", "decoder_attention_mask", "output_attentions", "output_hidden_states"}
    known |= {"image_features_mask"}  # which the encoder has read
    given = {name for name, value in model_kwargs.items() if value is not None and value is not False}
    if given - known or not model_kwargs.get("use_cache") or config.output_hidden_states or config.low_memory:
        return False
    if config.prefill_chunk_size is not None or config.is_assistant:
        return False
    mask = model_kwargs.get("decoder_attention_mask")
    if mask is not None and not mask.all():
        return False
    is_pure = all(type(processor) in PURE_PROCESSORS for processor in processors)
    return is_pure and _stops_as_usual(criteria, config) and is_packable(decoder, lm_head)


def _stops_as_usual(criteria: StoppingCriteriaList, config: GenerationConfig) -> bool:
    """Whether the criteria are those that `generate` makes of a maximum length and of the end tokens."""
    for criterion in criteria:
        is_length = type(criterion) is MaxLengthCriteria and criterion.max_length == config.max_length
        is_end = type(criterion) is EosTokenCriteria and criterion.eos_token_id is config._eos_token_tensor
        if not is_length and not is_end:
            return False
    return config.max_length is not None and len(criteria) == 1 + (config._eos_token_tensor is not None)


class _SuppressTokens:
    """transformers' `SuppressTokensLogitsProcessor`, in place and without a search of the vocabulary at every step."""

    def __init__(self, processor: logits_process.SuppressTokensLogitsProcessor, vocab_size: int):
        tokens = torch.as_tensor(processor.suppress_tokens)
        self.tokens = tokens[(tokens >= 0) & (tokens < vocab_size)]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores.index_fill_(1, self.tokens, -torch.inf)


class Writer(Recorder):
    """
    The sentences of a call of `generate`, N = B * K for B images, as they grow.

    Args:
        captioner, input_ids, processors, config, encoder_outputs: as `generate` hands them to its loops.
        expand_size: sentences that are made of each in `input_ids`.

    Attributes:
        input_ids: words so far, `(N, T)`.
        logits: of the next word, `(N, vocab_size)`.
        state: of each layer.
    """

    def __init__(
        self,
        captioner: Any,
        input_ids: torch.Tensor,
        processors: list,
        config: GenerationConfig,
        encoder_outputs: Any,
        expand_size: int = 1,
    ):
        num_given = max(config.num_beams, config.num_return_sequences)
        num_copies = num_given * expand_size
        prompts = input_ids[::num_given]
        input_ids = input_ids.repeat_interleave(expand_size, dim=0) if expand_size > 1 else input_ids
        self.input_ids = input_ids
        self.record = Record.of(config, encoder_outputs)
        self.packed: PackedDecoder = packed_decoder(captioner, len(input_ids))
        vocab_size = captioner.lm_head.out_features
        self.processors = [
            _SuppressTokens(p, vocab_size) if type(p) is logits_process.SuppressTokensLogitsProcessor else p
            for p in processors
        ]
        # the copies of an image start alike: its prompt is read once
        decoder = captioner.model.decoder
        encoded = CnnRnnEncoderOutput.of(encoder_outputs)
        regions: Any
        regions, image, mask = (
            tensor[::num_given].contiguous() if tensor is not None else None
            for tensor in (encoded.last_hidden_state, encoded.pooler_output, encoded.image_features_mask)
        )
        outputs = decoder(
            prompts,
            encoder_hidden_states=regions,
            image_embeds=image,
            encoder_attention_mask=mask,
            use_cache=True,
            output_attentions=self.record.attentions is not None,
            return_dict=True,
        )
        self.cache: CnnRnnCache = outputs.past_key_values
        reads_image = decoder.config.image_injection == "bias_every_step"
        self.images: DecoderImages = self.packed.see(
            Seen(regions, self.cache.keys, mask),
            decoder.image_of(regions, image, mask) if reads_image else None,
            len(input_ids),
        )
        self.state: list[LayerState] = [
            tuple(s.repeat_interleave(num_copies, dim=0) for s in layer)
            for layer in zip(*self.cache.state, strict=True)
        ]
        self.logits = self.packed.vocabulary(outputs.last_hidden_state[:, -1]).repeat_interleave(num_copies, dim=0)
        if self.record.attentions is not None:
            attentions = tuple(a.repeat_interleave(num_copies, dim=0) for a in outputs.cross_attentions or ())
            self.record.attentions.append(attentions or None)

    def read(self):
        """Read the last word of each sentence."""
        self.logits, self.state, attentions = self.packed.step(self.input_ids[:, -1], self.state, self.images)
        if self.record.attentions is not None:
            self.record.attentions.append((attentions[:, None, None],) if attentions is not None else None)

    def reorder(self, rows: torch.Tensor):
        """Let each sentence go on from that of another row of the same image."""
        self.input_ids = self.input_ids.index_select(0, rows)
        self.state = [tuple(s.index_select(0, rows) for s in layer) for layer in self.state]

    def final_cache(self) -> CnnRnnCache:
        """The state after all words but the last, as the plain loop returns it."""
        cache, num_copies = self.cache, len(self.input_ids) // len(self.images.regions)
        if cache.keys is not None:
            cache.keys = cache.keys.repeat_interleave(num_copies, dim=0)
        cache.state = tuple(torch.stack(states) for states in zip(*self.state, strict=True))
        cache.seq_length = self.input_ids.shape[1] - 1
        return cache


def sample(writer: Writer, config: GenerationConfig) -> GenerateEncoderDecoderOutput | torch.Tensor:
    """
    Write the best word after the other, or sample it (`GenerationMixin._sample`).

    Returns:
        The sentences `(N, T)` or, with `return_dict_in_generate`, all that was asked for.
    """
    eos, pad = config._eos_token_tensor, config._pad_token_tensor
    is_open = torch.ones(len(writer.input_ids), dtype=torch.bool)
    while True:
        scores = writer.process(writer.logits)
        if config.do_sample:
            words = torch.multinomial(scores.softmax(dim=-1), num_samples=1).squeeze(1)
        else:
            words = scores.argmax(dim=-1)
        if eos is not None and pad is not None:  # `generate` sets no end token without a padding token
            words = torch.where(is_open, words, pad)
            is_open &= torch.isin(words, eos, invert=True)
        writer.append(words)
        if writer.input_ids.shape[1] >= config.max_length or not is_open.any():
            break
        writer.read()
    if not config.return_dict_in_generate:
        return writer.input_ids
    return GenerateEncoderDecoderOutput(
        sequences=writer.input_ids,  # type: ignore[arg-type]
        past_key_values=writer.final_cache(),
        **writer.record.outputs(),
    )


__all__ = ["Writer", "can_decode_fast", "sample"]
