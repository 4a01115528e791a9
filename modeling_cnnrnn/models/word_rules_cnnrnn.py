"""Rules for the words of a sentence: which must appear, which must not stand at its end, which end it."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import LogitsProcessor, StoppingCriteria

from .error_messages_cnnrnn import shown


MAX_STATES = 128


class StopStrings(StoppingCriteria):
    """
    End a sentence with the token that completes one of some texts.

    transformers' own criterion looks for the spelling of each token, which the decoder of a word-level tokenizer, with its
    spaces, does not let it find; this one decodes the sentences.
    """

    def __init__(self, stop_strings: str | Sequence[str], tokenizer: Any):
        self.stop_strings = [stop_strings] if isinstance(stop_strings, str) else list(stop_strings)
        self.tokenizer = tokenizer

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor | None, **kwargs: Any) -> torch.Tensor:
        # texts of the prompt were there before
        before, now = (
            self.tokenizer.batch_decode(ids, skip_special_tokens=True) for ids in (input_ids[:, :-1], input_ids)
        )
        is_done = [any(b.count(s) < n.count(s) for s in self.stop_strings) for b, n in zip(before, now, strict=True)]
        return torch.tensor(is_done, device=input_ids.device)


class BadEndings(LogitsProcessor):
    """
    Let no sentence end in words that break it off ("a man with a"), neither before an end token nor at the length limit.

    Args:
        bad_ending_ids: the endings, each a list of token ids.
        eos_token_id: the end tokens.
        max_length: tokens of the longest sentence, prompt included.
    """

    def __init__(self, bad_ending_ids: Sequence[Sequence[int]], eos_token_id: torch.Tensor | None, max_length: int):
        if not isinstance(bad_ending_ids, list) or not all(_is_phrase(ending) for ending in bad_ending_ids):
            raise ValueError(
                f"`bad_ending_ids` is {shown(bad_ending_ids, 80)}: pass a list of endings, each a list of token ids."
            )
        self.endings, self.eos, self.max_length = bad_ending_ids, eos_token_id, max_length

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if self.eos is not None:
            ends_badly = torch.zeros(len(input_ids), 1, dtype=torch.bool, device=input_ids.device)
            for ending in self.endings:
                ends_badly |= _ends_in(input_ids, ending)
            is_end = torch.zeros_like(scores[:1], dtype=torch.bool).index_fill_(1, self.eos, True)
            scores = scores.masked_fill(ends_badly & is_end, -torch.inf)
        if input_ids.shape[1] + 1 == self.max_length:
            for *before, word in self.endings:
                is_last = torch.zeros_like(scores[:1], dtype=torch.bool)
                is_last[:, word] = True
                scores = scores.masked_fill(_ends_in(input_ids, before) & is_last, -torch.inf)
        return scores


def _is_phrase(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(type(word) is int and word >= 0 for word in value)


def _ends_in(input_ids: torch.Tensor, words: Sequence[int]) -> torch.Tensor:
    """Mark the sentences that end in these words, `(N, 1)`."""
    if len(words) > input_ids.shape[1]:
        return torch.zeros(len(input_ids), 1, dtype=torch.bool, device=input_ids.device)
    last = input_ids[:, input_ids.shape[1] - len(words) :]
    return (last == last.new_tensor(words)).all(dim=1, keepdim=True)


class WordConstraints:
    """
    A machine that reads a sentence and knows which of the words that must appear have appeared.

    Each constraint is one phrase or alternatives of which one must appear. Its states are the phrases' beginnings that the
    last words are, and one for a phrase that has appeared; those of the machine are their combinations that can come about
    (https://arxiv.org/abs/1612.00576, section 3.2).

    Args:
        force_words_ids: the constraints, each a phrase as a list of token ids, or a list of such phrases.
        vocab_size: number of words.

    Raises:
        ValueError: the constraints are no such lists, hold a token outside the vocabulary, or have too many states.

    Attributes:
        words: those of all phrases, `(M,)`.
        after_words: the state after each of them, `(num_states, M)`.
        after_others: the state after any other word, `(num_states,)`.
        final: the state in which all constraints are met.
    """

    def __init__(self, force_words_ids: Any, vocab_size: int):
        constraints = [_alternatives(constraint, force_words_ids) for constraint in _as_list(force_words_ids)]
        words = sorted({word for phrases in constraints for phrase in phrases for word in phrase})
        if words[-1] >= vocab_size:
            raise ValueError(f"`force_words_ids` holds token {words[-1]}, outside the vocabulary of {vocab_size}.")
        tables = [_read_phrases(phrases, words) for phrases in constraints]
        states = [(0,) * len(tables)]
        numbers, after = {states[0]: 0}, []
        for state in states:  # grows by those that can be reached
            following = [tuple(t[s][c] for t, s in zip(tables, state, strict=True)) for c in range(len(words) + 1)]
            for new in dict.fromkeys(following):
                if new not in numbers:
                    numbers[new] = len(states)
                    states.append(new)
            after.append([numbers[new] for new in following])
            if len(states) > MAX_STATES:
                raise ValueError(
                    f"`force_words_ids` holds {len(tables)} constraints, which can be met in more than {MAX_STATES} orders "
                    "and parts: pass fewer or shorter ones."
                )
        self.num_states, self.vocab_size = len(states), vocab_size
        self.words, self.final = torch.tensor(words), numbers[tuple(len(table) - 1 for table in tables)]
        self.after_words, after_others = torch.tensor(after).split([len(words), 1], dim=1)
        self.after_others = after_others.squeeze(1)

    def read(self, sentence: Sequence[int]) -> int:
        """Return the state after a sentence."""
        columns = {word: column for column, word in enumerate(self.words.tolist())}
        state = 0
        for word in sentence:
            after = self.after_words[state, columns[word]] if word in columns else self.after_others[state]
            state = int(after)
        return state


def _as_list(force_words_ids: Any) -> list:
    if not isinstance(force_words_ids, list) or not force_words_ids:
        raise ValueError(f"`force_words_ids` is {shown(force_words_ids, 80)}: pass a list of phrases of token ids.")
    return force_words_ids


def _alternatives(constraint: Any, force_words_ids: Any) -> list[list[int]]:
    """Return the phrases of a constraint."""
    phrases = [constraint] if _is_phrase(constraint) else constraint
    if not isinstance(phrases, list) or not phrases or not all(_is_phrase(phrase) for phrase in phrases):
        raise ValueError(
            f"`force_words_ids` is {shown(force_words_ids, 80)}: pass a list in which each constraint is a list of token "
            "ids, or a list of such lists of which one must appear."
        )
    return phrases


def _read_phrases(phrases: list[list[int]], words: Sequence[int]) -> list[list[int]]:
    """
    Make the table of one constraint.

    Returns:
        For each state, the state after each of `words` and after any other word. The first state is that in which nothing of
        a phrase has appeared, the last one that in which a phrase has.
    """
    beginnings = sorted(
        {tuple(phrase[:n]) for phrase in phrases for n in range(len(phrase))}, key=lambda b: (len(b), b)
    )
    numbers = {beginning: number for number, beginning in enumerate(beginnings)}
    done = len(beginnings)

    def follow(beginning: tuple[int, ...], word: int) -> int:
        read = (*beginning, word)
        if any(read[-len(phrase) :] == tuple(phrase) for phrase in phrases):
            return done
        return next(numbers[read[start:]] for start in range(len(read) + 1) if read[start:] in numbers)

    table = [[*(follow(beginning, word) for word in words), 0] for beginning in beginnings]
    return [*table, [done] * (len(words) + 1)]


__all__ = ["BadEndings", "StopStrings", "WordConstraints"]
