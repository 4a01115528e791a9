"""The words of an old checkpoint: its tokenizer, and the rows of its matrices in the order of that."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from tokenizers import Regex, decoders, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ..models.tokenization_cnnrnn import SPECIAL_TOKENS, make_tokenizer


PUNCTUATION = r"[!-/:-@\[-`{-~]"  # `string.punctuation`, which Karpathy's programs remove
NEVER = -1e4  # bias of a token that the original could not write: its probability is 0, and finite in half precision


@dataclass
class Vocabulary:
    """
    The tokens of an old checkpoint by their rows.

    Attributes:
        words: each word with its row, which it has in the embedding and in the output.
        start: row of the start; the original has no other output for it if it is also the end.
        end: row of the end.
        padding: row of padding; `None` if the original has none of its own.
        unknown: row of unknown words; `None` if the original leaves them out.
        removed: regular expression of what the original removes from a caption before it splits it at spaces.
    """

    words: Mapping[str, int]
    start: int
    end: int
    padding: int | None = None
    unknown: int | None = None
    removed: str | None = None

    def __post_init__(self):
        if clashes := [word for word in self.words if word in SPECIAL_TOKENS]:
            raise ValueError(f"The vocabulary has {clashes[0]!r} among its words, which means something else here.")
        rows = [*self.words.values(), self.start, *(row for row in (self.padding, self.unknown) if row is not None)]
        if len(set(rows)) < len(rows):
            raise ValueError("The vocabulary has two words of one number: it is damaged.")

    @property
    def size(self) -> int:
        return len(SPECIAL_TOKENS) + len(self.words)

    def make_tokenizer(self) -> PreTrainedTokenizerFast:
        """
        Make the tokenizer: the special tokens of this package, then the words in their old order.

        It splits at spaces and joins with spaces, as the original does.
        """
        tokenizer = make_tokenizer(sorted(self.words, key=lambda word: self.words[word]), lowercase=True)
        backend = tokenizer.backend_tokenizer
        removed = [normalizers.Replace(Regex(self.removed), "")] if self.removed else []
        backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *removed])
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        backend.decoder = decoders.Sequence(
            [
                decoders.WordPiece(prefix="##", cleanup=False),  # puts a space before each word
                decoders.Fuse(),
                decoders.Replace(Regex("<(?:pad|bos|eos)>"), ""),
                decoders.Replace(Regex(" +"), " "),
                decoders.Replace(Regex("^ | $"), ""),
            ]
        )
        return tokenizer

    def embedding(self, weight: torch.Tensor) -> torch.Tensor:
        """Order the rows of an embedding `(V, E)`; a token that the original never reads is 0."""
        return _take_rows(weight, [self.padding, self.start, self.end, self.unknown, *self._rows()], 0.0)

    def output(self, weight: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Order the rows of an output layer, `(V, D)` and `(V,)`; a token that the original never writes has no probability."""
        start = None if self.start == self.end else self.start
        rows = [self.padding, start, self.end, self.unknown, *self._rows()]
        return _take_rows(weight, rows, 0.0), _take_rows(bias, rows, NEVER)

    def _rows(self) -> list[int]:
        return sorted(self.words.values())


def _take_rows(values: torch.Tensor, rows: Sequence[int | None], missing: float) -> torch.Tensor:
    taken = values[[0 if row is None else row for row in rows]].float().clone()
    taken[[row is None for row in rows]] = missing
    return taken
