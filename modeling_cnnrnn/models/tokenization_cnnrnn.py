"""Build a word-level tokenizer from captions."""

from collections import Counter
from collections.abc import Iterable, Iterator

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast


SPECIAL_TOKENS = ["<pad>", "<bos>", "<eos>", "<unk>"]

# Scripts that are written without spaces: each character, with its combining marks, is a word.
UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\u30FC\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}"
# Signs that coco-caption leaves in its sentences ("salt & pepper", "50 %") are words of their own.
SIGNS = "&%$#+"
# The joiners are a part of words in Persian and in Indic scripts.
LETTER = r"\p{L}\p{M}\p{N}\u200C\u200D"
# The clitics that PTB cuts off the end of a word: "man's" is "man 's", "doesn't" is "does n't".
CLITIC = "(?i:s|m|d|ll|re|ve)"


def build_tokenizer(
    captions: Iterable[str] | Iterable[Iterable[str]],
    min_frequency: int = 5,
    vocab_size: int | None = None,
    lowercase: bool = True,
) -> PreTrainedTokenizerFast:
    r"""
    Build a word-level tokenizer from captions, for [`CnnRnnProcessor`] and `AutoTokenizer`.

    Count on the **training split only**: words that only other splits use must stay unknown, or the scores there are not
    those of unseen sentences.

    A caption is split into words as coco-caption's PTB tokenizer splits a reference, so that generated sentences are
    scored in the references' words: Unicode NFKC, lower case, punctuation removed. Apostrophes and hyphens inside a
    word are kept, and so are points, commas and colons inside a number: `"t-shirt"` and `"l'eau"` are one word each. English
    clitics are words of their own, however they are written: `"man's"` and `"man 's"` are `"man"`, `"'s"`, decoded as
    `"man's"`, which PTB splits again. Words are words of any language; where a script has no spaces (Chinese, Japanese,
    Thai, ...) each character is a word, and decoding puts no spaces between them.

    The tokenizer appends one `<eos>` and no `<bos>`: token ids are labels as they are, and the model starts from its
    `decoder_start_token_id`. As with SentencePiece, special tokens are not part of a sentence's text: decoding leaves
    out `<pad>`, `<bos>` and `<eos>` (`convert_ids_to_tokens` shows them), and `skip_special_tokens=True` leaves out
    `<unk>` too.

    Args:
        captions: captions, or lists of the captions of one image; any iterable, read once.
        min_frequency: a word is known if it is seen **at least** this often (`>=`); the others are `<unk>`.
        vocab_size: largest number of tokens, the four special ones included; the most frequent words are kept. `None`
            keeps all.
        lowercase: whether captions are lower-cased.

    Returns:
        A fast tokenizer with `<pad>`, `<bos>`, `<eos>`, `<unk>` as ids 0 to 3, then the words, the most frequent first
        and in alphabetical order where equally frequent: the same captions give the same ids in any order.

    Raises:
        ValueError: `captions` is a string, holds values that are not strings, or is empty; no word reaches
            `min_frequency`; `min_frequency` or `vocab_size` is too small.
    """
    if min_frequency < 1:
        raise ValueError(f"`min_frequency` is {min_frequency}: pass 1 to keep every word, or more.")
    if vocab_size is not None and vocab_size <= len(SPECIAL_TOKENS):
        raise ValueError(f"`vocab_size` is {vocab_size}: pass more than {len(SPECIAL_TOKENS)}, the special tokens.")

    frequencies, num_captions = _count_words(captions, lowercase)
    ranked = sorted(frequencies.items(), key=lambda item: (-item[1], item[0]))
    words = [word for word, frequency in ranked if frequency >= min_frequency]
    if not words:
        raise ValueError(
            f"No word of the {num_captions} captions is seen `min_frequency`={min_frequency} times, the most frequent "
            f"({ranked[0][0]!r}) is seen {ranked[0][1]} times: pass a lower `min_frequency`, or more captions."
        )
    return make_tokenizer(words if vocab_size is None else words[: vocab_size - len(SPECIAL_TOKENS)], lowercase)


def _count_words(captions: Iterable[str] | Iterable[Iterable[str]], lowercase: bool) -> tuple[Counter[str], int]:
    """Count how often each word is seen, and the captions."""
    normalizer, pre_tokenizer = _normalizer(lowercase), _pre_tokenizer()
    num_captions, pieces = 0, Counter[str]()
    for caption in _flatten(captions):
        num_captions += 1
        pieces.update(caption.split())
    frequencies = Counter[str]()
    for piece, frequency in pieces.items():  # a piece between spaces becomes the same words in every caption
        for word, _ in pre_tokenizer.pre_tokenize_str(normalizer.normalize_str(piece)):
            frequencies[word] += frequency
    if not num_captions:
        raise ValueError("`captions` is empty: pass the captions of the training split.")
    if not frequencies:
        raise ValueError(f"`captions` holds {num_captions} captions without a single word: pass sentences.")
    return frequencies, num_captions


def make_tokenizer(words: list[str], lowercase: bool) -> PreTrainedTokenizerFast:
    """Make the tokenizer of a vocabulary, the special tokens before its words."""
    vocabulary = {token: i for i, token in enumerate(SPECIAL_TOKENS + words)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.normalizer = _normalizer(lowercase)
    backend.pre_tokenizer = _pre_tokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single="$A <eos>", pair="$A <eos> $B:1 <eos>:1", special_tokens=[("<eos>", vocabulary["<eos>"])]
    )
    backend.decoder = _decoder()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="right",
        clean_up_tokenization_spaces=False,  # its rules are for English
        model_input_names=["input_ids", "attention_mask"],
    )


def _flatten(captions: Iterable[str] | Iterable[Iterable[str]]) -> Iterator[str]:
    """Yield the captions one by one, out of the lists too."""
    if isinstance(captions, str):
        raise ValueError(f"`captions` is the string {captions!r}: pass a list of captions.")
    for entry in captions:
        for caption in [entry] if isinstance(entry, str) or not isinstance(entry, Iterable) else entry:
            if not isinstance(caption, str):
                raise ValueError(f"`captions` holds {caption!r}: pass strings, or lists of strings.")
            yield caption


def _normalizer(lowercase: bool) -> normalizers.Normalizer:
    """Reduce a text to its words, with a space between them."""
    return normalizers.Sequence(
        [
            normalizers.NFKC(),
            *([normalizers.Lowercase()] if lowercase else []),
            normalizers.Replace(Regex(r"[\u2019\u02BC]"), "'"),
            normalizers.Replace("\u2010", "-"),
            normalizers.Replace("\u00ad", ""),  # the soft hyphen
            normalizers.Replace(Regex(rf"[^{LETTER}\s{SIGNS}'\-.,:]|['\-]{{2,}}"), " "),
            normalizers.Replace(Regex(rf"(?<![{LETTER}])(?!'{CLITIC}(?![{LETTER}]))['\-]|['\-](?![{LETTER}])"), " "),
            normalizers.Replace(Regex(r"(?<!\p{N})[.,:]|[.,:](?!\p{N})"), " "),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
        ]
    )


def _pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    """Split at spaces; clitics, signs and characters of scripts without spaces are words of their own."""
    alone = Regex(rf"[{SIGNS}]|[{UNSPACED}]\p{{M}}*|'{CLITIC}$|(?i:n't)$")
    return pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(alone, "isolated")])


def _decoder() -> decoders.Decoder:
    """Join words with spaces, but clitics and scripts without spaces, and leave out padding, beginning and end."""
    return decoders.Sequence(
        [
            decoders.WordPiece(prefix="##", cleanup=False),  # puts a space before each word; no word begins with ##
            decoders.Fuse(),
            decoders.Replace(Regex("<(?:pad|bos|eos)>"), ""),
            decoders.Replace(Regex(" +"), " "),
            decoders.Replace(Regex("^ | $"), ""),
            decoders.Replace(Regex(rf" (?='|(?i:n't)(?: |$))|(?<=[{UNSPACED}]) (?=[{UNSPACED}])"), ""),
        ]
    )
