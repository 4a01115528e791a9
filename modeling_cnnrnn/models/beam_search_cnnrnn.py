"""
Beam search and diverse beam search, whatever computes the next words.

A writer ([`Writer`] on packed weights, [`PlainWriter`] on any model) grows the sentences; a search says which ones go on.
"""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, StoppingCriteriaList
from transformers.generation.utils import GenerateBeamEncoderDecoderOutput


NEVER = -1e9  # transformers' score of a beam that does not exist


@dataclass
class Sentence:
    """A sentence of a beam as its last word and the sentence before; `row` is the beam that it went on from."""

    before: "Sentence | None"
    word: int
    row: int

    def words_and_rows(self) -> tuple[list[int], list[int]]:
        words, rows = [], []
        sentence: Sentence | None = self
        while sentence is not None:
            words.append(sentence.word)
            rows.append(sentence.row)
            sentence = sentence.before
        return words[::-1], rows[::-1]


Ended = list[tuple[float, Sentence | None]]  # scores and sentences, best first; `None` where there are not enough


@dataclass
class Beams:
    """
    The sentences of one image.

    Attributes:
        running: those that go on.
        ended: the best that ended.
        can_improve: whether a sentence that goes on could still become better than one that ended.
    """

    running: list[Sentence | None]
    ended: Ended
    can_improve: bool = True

    @property
    def is_full(self) -> bool:
        return all(sentence is not None for _, sentence in self.ended)


class BeamSearch:
    """
    The rules of `GenerationMixin._beam_search`.

    Of the 2 K candidates for the K beams of an image, those that do not end go on, best first. Those that end count if they
    are among the best K, and the best K that ended are kept, by log-probability / length ** length_penalty.

    Args:
        prompts: tokens before the first word, of each beam `(B * num_rows, T)`.
        num_images: B.
        criteria: what ends a sentence, if it is more than the end tokens and the maximum length.
        num_beams: K, by default that of the configuration.
        first_row: the row of the first beam of an image, among the `num_rows` of an image.

    Attributes:
        scores: log-probabilities of the sentences that go on, `(B * K,)`.
        last_words: of the sentences that have just ended, `(B, K)`, filled up with -1.
        is_done: whether the search has come to its end.
    """

    def __init__(
        self,
        config: GenerationConfig,
        prompts: torch.Tensor,
        num_images: int,
        criteria: StoppingCriteriaList | None = None,
        num_beams: int | None = None,
        first_row: int = 0,
    ):
        self.config, self.eos, self.criteria = config, config._eos_token_tensor, criteria
        self.num_beams = num_beams or config.num_beams
        num_rows, self.device = len(prompts) // num_images, prompts.device
        self.stops_when_full = config.early_stopping is True
        self.max_new_tokens, self.length = config.max_length - prompts.shape[1], 0
        num_ends = len(self.eos) if self.eos is not None else 0
        self.num_candidates = max(2, 1 + num_ends) * self.num_beams
        self.first_rows = [first_row + num_rows * image for image in range(num_images)]
        self.offsets = torch.tensor(self.first_rows, device=self.device)[:, None]
        self.images = [Beams([None] * self.num_beams, [(NEVER, None)] * self.num_beams) for _ in range(num_images)]
        first = torch.tensor([0.0] + [NEVER] * (self.num_beams - 1), device=self.device)
        self.scores = first.repeat(num_images)
        self.last_words = torch.full((num_images, self.num_beams), -1, device=self.device)
        self.is_done = False

    def choose(self, totals: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Choose candidates of each image from the log-probabilities of all, `(B, K * vocab_size)`, or sample them."""
        if not self.config.do_sample:
            return totals.topk(self.num_candidates)
        places = torch.multinomial(totals.softmax(dim=-1), num_samples=self.num_candidates)
        return totals.gather(1, places), places

    def advance(
        self, log_probs: torch.Tensor, input_ids: torch.Tensor, penalty: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Add a word to the beams.

        Args:
            log_probs: of the next words, `(B * K, vocab_size)`.
            input_ids: the sentences so far, of all rows.
            penalty: what words lose in the choice of the candidates, and not in the scores of the sentences,
                `(B, vocab_size)`.

        Returns:
            Of each beam, image by image: the row that it goes on from, and its word.
        """
        totals = (log_probs + self.scores[:, None]).unflatten(0, (len(self.images), -1))
        ranks, places = self.choose((totals if penalty is None else totals - penalty[:, None]).flatten(1))
        values = ranks if penalty is None else totals.flatten(1).gather(1, places)
        self.length += 1
        words, beams = places % totals.shape[-1], places // totals.shape[-1]
        ends = self.find_ends(words, beams, input_ids)
        order = (ranks + NEVER * ends.float()).topk(self.num_beams).indices
        scores = (values + NEVER * ends.float()).gather(1, order)
        best = slice(self.num_beams)
        ending = values[:, best], words[:, best], beams[:, best], ends[:, best]
        self.last_words = torch.where(ending[3], ending[1], -1)
        words, beams = words.gather(1, order), beams.gather(1, order)
        self.update(ending, words, beams, scores)
        is_full = self.stops_when_full and all(image.is_full for image in self.images)
        self.is_done = is_full or bool(ends.all()) or not any(image.can_improve for image in self.images)
        return (beams + self.offsets).flatten(), words.flatten()

    def find_ends(self, words: torch.Tensor, beams: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
        """Mark the candidates whose sentence ends with their word; all are `(B, num_candidates)`."""
        if self.criteria is not None:
            sentences = torch.cat([input_ids[(beams + self.offsets).flatten()], words.flatten()[:, None]], dim=1)
            return self.criteria(sentences, None).view_as(words)
        ends = torch.isin(words, self.eos) if self.eos is not None else torch.zeros_like(words, dtype=torch.bool)
        return ends | (self.length >= self.max_new_tokens)

    def update(self, ending: tuple, words: torch.Tensor, beams: torch.Tensor, scores: torch.Tensor):
        """
        Keep the sentences that end and those that go on.

        Args:
            ending: log-probabilities, words and beams of candidates, and whether they end, each `(B, C)`.
            words: of those that go on, `(B, K)`.
            beams: that they go on from, `(B, K)`.
            scores: their log-probabilities, `(B, K)`.
        """
        self.scores = scores.flatten()
        best_length = self.length
        if self.config.early_stopping == "never" and self.config.length_penalty > 0:
            best_length = self.max_new_tokens  # a longer sentence may become better
        best_scores = scores.amax(dim=1) / best_length**self.config.length_penalty
        final_scores = ending[0] / self.length**self.config.length_penalty
        columns = (final_scores, *ending[1:], words, beams, best_scores)
        rows = zip(self.images, self.first_rows, *(column.tolist() for column in columns), strict=True)
        for image, first_row, *candidates, next_words, next_beams, best_score in rows:
            if image.can_improve and not (self.stops_when_full and image.is_full):
                new = [
                    (score, Sentence(image.running[beam], word, first_row + beam))
                    for score, word, beam, is_end in zip(*candidates, strict=True)
                    if is_end
                ]
                image.ended = sorted([*image.ended, *new], key=lambda end: -end[0])[: self.num_beams]
            image.running = [
                Sentence(image.running[beam], word, first_row + beam)
                for word, beam in zip(next_words, next_beams, strict=True)
            ]
            image.can_improve &= best_score > image.ended[-1][0]

    def ended(self) -> list[Ended]:
        """The sentences of each image that ended, best first."""
        return [image.ended for image in self.images]


class DiverseBeamSearch:
    """
    Diverse beam search (https://arxiv.org/abs/1610.02424, algorithm 1, with the Hamming distance).

    The beams of an image are divided into groups that search one after the other at each step. A word loses
    `diversity_penalty` in the choice of a group for each sentence of an earlier group that goes on or ends with it at this
    step. The scores of sentences are their log-probabilities, without what they lost.

    Args:
        config, prompts, num_images, criteria: as in [`BeamSearch`].
    """

    def __init__(
        self,
        config: GenerationConfig,
        prompts: torch.Tensor,
        num_images: int,
        criteria: StoppingCriteriaList | None = None,
    ):
        self.diversity_penalty, num_groups = config.diversity_penalty, config.num_beam_groups
        size = config.num_beams // num_groups
        self.groups = [
            BeamSearch(config, prompts, num_images, criteria, size, first_row=size * group)
            for group in range(num_groups)
        ]

    @property
    def is_done(self) -> bool:
        return all(group.is_done for group in self.groups)

    def advance(self, log_probs: torch.Tensor, input_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Add a word to the beams, as [`BeamSearch`] does; the beams of an image lie group by group."""
        num_images, vocab_size = len(self.groups[0].images), log_probs.shape[-1]
        by_group = log_probs.unflatten(0, (num_images, len(self.groups), -1)).unbind(1)
        counts = log_probs.new_zeros(num_images, vocab_size + 1)  # with a column for no word
        found = []
        for group, group_log_probs in zip(self.groups, by_group, strict=True):
            is_open = [image.can_improve and not (group.stops_when_full and image.is_full) for image in group.images]
            penalty = self.diversity_penalty * counts[:, :vocab_size]
            rows, words = group.advance(group_log_probs.flatten(0, 1), input_ids, penalty)
            found.append((rows.unflatten(0, (num_images, -1)), words.unflatten(0, (num_images, -1))))
            chosen = torch.cat([found[-1][1], group.last_words], dim=1)
            # a group that has its sentences goes on with the others, and nobody looks at its words
            weights = counts.new_tensor(is_open)[:, None].expand_as(chosen)
            counts = counts.scatter_add(1, chosen.where(chosen >= 0, vocab_size), weights)
        rows, words = (torch.cat(parts, dim=1).flatten() for parts in zip(*found, strict=True))
        return rows, words

    def ended(self) -> list[Ended]:
        """The sentences of each image that ended, of all groups, best first."""
        by_group = zip(*(group.ended() for group in self.groups), strict=True)
        return [sorted((end for ends in image for end in ends), key=lambda end: -end[0]) for image in by_group]


def beam_search(writer: Any, search: Any, config: GenerationConfig) -> GenerateBeamEncoderDecoderOutput | torch.Tensor:
    """
    Search for the best sentences.

    Args:
        writer: grows the sentences.
        search: chooses those that go on: [`BeamSearch`], [`DiverseBeamSearch`] or [`ConstrainedBeamSearch`].

    Returns:
        The sentences `(B * num_return_sequences, T)` or, with `return_dict_in_generate`, all that was asked for.
    """
    prompts = writer.input_ids
    while True:
        rows, words = search.advance(writer.process(writer.logits.log_softmax(dim=-1)), writer.input_ids)
        writer.reorder(rows)
        writer.append(words)
        if search.is_done:
            break
        writer.read()
    sentences = [ended[: config.num_return_sequences] for ended in search.ended()]
    prompts = prompts[:: len(prompts) // len(sentences)].repeat_interleave(config.num_return_sequences, dim=0)
    sequences, beam_indices, scores = _as_tensors([end for ended in sentences for end in ended], config)
    sequences = torch.cat([prompts, sequences.to(prompts.device)], dim=1)
    if not config.return_dict_in_generate:
        return sequences
    return GenerateBeamEncoderDecoderOutput(
        sequences=sequences,  # type: ignore[arg-type]
        sequences_scores=scores.to(prompts.device) if config.output_scores else None,
        beam_indices=beam_indices.to(prompts.device),  # type: ignore[arg-type]
        past_key_values=writer.final_cache(),
        **writer.record.outputs(),
    )


def _as_tensors(sentences: Ended, config: GenerationConfig) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    Return sentences without their prompts, `(N, T)`, filled up with padding; the rows that their words went on from, filled
    up with -1; and their scores.
    """
    found = [sentence.words_and_rows() if sentence is not None else ([], []) for _, sentence in sentences]
    length = max(len(words) for words, _ in found)
    pad = config._pad_token_tensor
    sequences = torch.full((len(found), length), int(pad) if pad is not None else -1)
    beam_indices = torch.full((len(found), length), -1, dtype=torch.int32)
    for index, (words, rows) in enumerate(found):
        sequences[index, : len(words)] = torch.tensor(words)
        beam_indices[index, : len(rows)] = torch.tensor(rows)
    return sequences, beam_indices, torch.tensor([score for score, _ in sentences])


__all__ = ["NEVER", "BeamSearch", "Beams", "DiverseBeamSearch", "Ended", "Sentence", "beam_search"]
