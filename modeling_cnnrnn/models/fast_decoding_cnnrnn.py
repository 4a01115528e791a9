"""
Greedy search, sampling and beam search on packed weights, with the results of transformers' loops in `generate`.

[`can_decode_fast`] says where they serve: where a call asks for nothing but what is common. Everything else is left to
transformers' loops.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig
from transformers.generation import logits_process
from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria, StoppingCriteriaList
from transformers.generation.utils import GenerateBeamEncoderDecoderOutput, GenerateEncoderDecoderOutput

from .decoder_cnnrnn import Seen
from .encoder_cnnrnn import CnnRnnEncoderOutput
from .packed_decoder_cnnrnn import DecoderImages, LayerState, PackedDecoder, is_packable, packed_decoder
from .recurrence_cnnrnn import CnnRnnCache


# what computes from the words so far and the scores alone, with no memory
PURE_PROCESSORS = (
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
NEVER = -1e9  # transformers' score of a beam that does not exist


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


@dataclass
class _Record:
    """What a call of `generate` with `return_dict_in_generate` returns of each step; lists that nobody asked for are `None`."""

    scores: list | None
    logits: list | None
    attentions: list | None
    encoder_attentions: tuple | None

    @classmethod
    def of(cls, config: GenerationConfig, encoder_outputs) -> "_Record":
        wanted = config.return_dict_in_generate
        return cls(
            scores=[] if wanted and config.output_scores else None,
            logits=[] if wanted and config.output_logits else None,
            attentions=[] if wanted and config.output_attentions else None,
            encoder_attentions=encoder_outputs.get("attentions") if wanted and config.output_attentions else None,
        )

    def outputs(self) -> dict:
        """The fields that greedy search, sampling and beam search share."""
        attentions = self.attentions
        return {
            "scores": tuple(self.scores) if self.scores is not None else None,
            "logits": tuple(self.logits) if self.logits is not None else None,
            "encoder_attentions": self.encoder_attentions,
            "decoder_attentions": (None,) * len(attentions) if attentions is not None else None,
            "cross_attentions": tuple(attentions) if attentions is not None else None,
        }


class Writer:
    """
    The sentences of a call of `generate`, N = B * K for B images, as they grow.

    Attributes:
        input_ids: words so far, `(N, T)`.
        logits: of the next word, `(N, vocab_size)`.
        state: of each layer.
    """

    def __init__(self, captioner, input_ids: torch.Tensor, processors: list, config: GenerationConfig, encoder_outputs):
        num_copies = max(config.num_beams, config.num_return_sequences)
        self.input_ids = input_ids
        self.record = _Record.of(config, encoder_outputs)
        self.packed: PackedDecoder = packed_decoder(captioner, len(input_ids))
        self.packed.expect_rows(len(input_ids) * (config.max_length - input_ids.shape[1]))
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
            tensor[::num_copies].contiguous() if tensor is not None else None
            for tensor in (encoded.last_hidden_state, encoded.pooler_output, encoded.image_features_mask)
        )
        outputs = decoder(
            input_ids[::num_copies],
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

    def process(self, scores: torch.Tensor) -> torch.Tensor:
        """Note logits and scores of the next word, and let the processors change the scores in between."""
        if self.record.logits is not None:
            self.record.logits.append(self.logits.clone())
        for processor in self.processors:
            scores = processor(self.input_ids, scores)
        if self.record.scores is not None:
            self.record.scores.append(scores)
        return scores

    def append(self, words: torch.Tensor):
        self.input_ids = torch.cat([self.input_ids, words[:, None]], dim=1)

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


@dataclass
class _Sentence:
    """A sentence of a beam as its last word and the sentence before; `row` is the beam that it went on from."""

    before: "_Sentence | None"
    word: int
    row: int

    def words_and_rows(self) -> tuple[list[int], list[int]]:
        words, rows = [], []
        sentence: _Sentence | None = self
        while sentence is not None:
            words.append(sentence.word)
            rows.append(sentence.row)
            sentence = sentence.before
        return words[::-1], rows[::-1]


@dataclass
class _Beams:
    """
    The sentences of one image.

    Attributes:
        running: those that go on, best first.
        ended: `(score, sentence)` of the best that ended, best first; `None` where there are not yet enough.
        can_improve: whether a sentence that goes on could still become better than one that ended.
    """

    running: list[_Sentence | None]
    ended: list[tuple[float, _Sentence | None]]
    can_improve: bool = True

    @property
    def is_full(self) -> bool:
        return all(sentence is not None for _, sentence in self.ended)


class _BeamSearch:
    """
    The rules of `GenerationMixin._beam_search`.

    Of the 2 K candidates for the K beams of an image, those that do not end go on, best first. Those that end count if they
    are among the best K, and the best K that ended are kept, by log-probability / length ** length_penalty.

    Args:
        num_images: B.
        prompt_length: number of tokens before the first word.
    """

    def __init__(self, config: GenerationConfig, num_images: int, prompt_length: int):
        self.config, self.eos, self.num_beams = config, config._eos_token_tensor, config.num_beams
        self.stops_when_full = config.early_stopping is True
        self.max_new_tokens, self.length = config.max_length - prompt_length, 0
        num_ends = len(self.eos) if self.eos is not None else 0
        self.num_candidates = max(2, 1 + num_ends) * self.num_beams
        self.images = [_Beams([None] * self.num_beams, [(NEVER, None)] * self.num_beams) for _ in range(num_images)]
        self.offsets = self.num_beams * torch.arange(num_images)[:, None]
        self.is_done = False

    def choose(self, totals: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Choose candidates of each image from the log-probabilities of all, `(B, K * vocab_size)`, or sample them."""
        if not self.config.do_sample:
            return totals.topk(self.num_candidates)
        places = torch.multinomial(totals.softmax(dim=-1), num_samples=self.num_candidates)
        return totals.gather(1, places), places

    def advance(self, totals: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        Add a word to the beams.

        Args:
            totals: log-probabilities of sentences, `(B, K, vocab_size)`.

        Returns:
            Of each beam, image by image: the row that it goes on from, its word, its log-probability.
        """
        vocab_size = totals.shape[-1]
        values, places = self.choose(totals.flatten(1))
        self.length += 1
        words, origins = places % vocab_size, places // vocab_size + self.offsets
        ends = torch.isin(words, self.eos) if self.eos is not None else torch.zeros_like(words, dtype=torch.bool)
        ends |= self.length >= self.max_new_tokens
        scores, order = (values + NEVER * ends.float()).topk(self.num_beams)
        best_length = self.length
        if self.config.early_stopping == "never" and self.config.length_penalty > 0:
            best_length = self.max_new_tokens  # a longer sentence may become better
        best_scores = scores[:, 0] / best_length**self.config.length_penalty
        self._update(values, words, origins, ends, order, best_scores)
        is_full = self.stops_when_full and all(beams.is_full for beams in self.images)
        self.is_done = is_full or bool(ends.all()) or not any(beams.can_improve for beams in self.images)
        return origins.gather(1, order).flatten(), words.gather(1, order).flatten(), scores.flatten()

    def _update(self, values, words, origins, ends, order, best_scores):
        """Keep the sentences that end and those that go on."""
        final_scores = values / self.length**self.config.length_penalty
        columns = (final_scores, words, origins, ends, order, best_scores)
        rows = zip(self.images, *(column.tolist() for column in columns), strict=True)
        for index, (beams, image_scores, image_words, image_origins, image_ends, ranks, best_score) in enumerate(rows):
            before = [beams.running[origin - index * self.num_beams] for origin in image_origins]
            if beams.can_improve and not (self.stops_when_full and beams.is_full):
                new = [
                    (image_scores[rank], _Sentence(before[rank], image_words[rank], image_origins[rank]))
                    for rank in range(self.num_beams)
                    if image_ends[rank]
                ]
                beams.ended = sorted([*beams.ended, *new], key=lambda end: -end[0])[: self.num_beams]
            beams.running = [_Sentence(before[rank], image_words[rank], image_origins[rank]) for rank in ranks]
            beams.can_improve &= best_score > beams.ended[-1][0]

    def sentences(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        Return the best sentences without their prompts, `(B * num_return_sequences, T)`, filled up with padding; the rows
        that their words went on from, filled up with -1; and their scores.
        """
        best = [end for beams in self.images for end in beams.ended[: self.config.num_return_sequences]]
        found = [sentence.words_and_rows() if sentence is not None else ([], []) for _, sentence in best]
        length = max(len(words) for words, _ in found)
        pad = self.config._pad_token_tensor
        sequences = torch.full((len(best), length), int(pad) if pad is not None else -1)
        beam_indices = torch.full((len(best), length), -1, dtype=torch.int32)
        for index, (words, rows) in enumerate(found):
            sequences[index, : len(words)] = torch.tensor(words)
            beam_indices[index, : len(rows)] = torch.tensor(rows)
        return sequences, beam_indices, torch.tensor([score for score, _ in best])


def beam_search(writer: Writer, config: GenerationConfig) -> GenerateBeamEncoderDecoderOutput | torch.Tensor:
    """
    Search for the best sentences with K beams per image (`GenerationMixin._beam_search`).

    Returns:
        The sentences `(B * num_return_sequences, T)` or, with `return_dict_in_generate`, all that was asked for.
    """
    prompts, num_images = writer.input_ids[:: config.num_beams], len(writer.input_ids) // config.num_beams
    search = _BeamSearch(config, num_images, prompts.shape[1])
    scores = torch.tensor([0.0] + [NEVER] * (config.num_beams - 1)).repeat(num_images)
    while True:
        log_probs = writer.process(writer.logits.log_softmax(dim=-1))
        totals = (log_probs + scores[:, None]).unflatten(0, (num_images, -1))
        rows, words, scores = search.advance(totals)
        writer.reorder(rows)
        writer.append(words)
        if search.is_done:
            break
        writer.read()
    sequences, beam_indices, sequences_scores = search.sentences()
    sequences = torch.cat([prompts.repeat_interleave(config.num_return_sequences, dim=0), sequences], dim=1)
    if not config.return_dict_in_generate:
        return sequences
    return GenerateBeamEncoderDecoderOutput(
        sequences=sequences,  # type: ignore[arg-type]
        sequences_scores=sequences_scores if config.output_scores else None,
        beam_indices=beam_indices,  # type: ignore[arg-type]
        past_key_values=writer.final_cache(),
        **writer.record.outputs(),
    )


__all__ = ["Writer", "beam_search", "can_decode_fast", "sample"]
