"""
Split captions into the words that all metrics compare.

A caption is split by coco-caption's tokenizer, `ptb_tokenize`, with two exceptions that its authors had no need for:

- A caption with a character of a script that has no spaces (Chinese, Japanese, Thai, ...) is normalized and split as
  `build_tokenizer` normalizes and splits the captions that a model is trained on: Unicode NFKC, lower case, punctuation
  removed, each character with its combining marks a word. PTB would take the sentence for one word, which no other
  sentence has. A mixed sentence is split by the same rules: "一个 Red box。" is "一", "个", "red", "box".
- Each letter is spelled in one way, because models write Unicode NFKC: text that is not NFC is composed (an "é" of two
  code points is the "é" of one), presentation forms of Arabic and Hebrew, full-width letters and digits, half-width
  Hangul and their like become the usual letters, and the Greek "ς" is "σ". PTB takes two spellings for two words.

Captions without such characters have the same tokens as in coco-caption. Latin ligatures, fractions and superscripts
also stay as they are, because coco-caption's numbers depend on them.
"""

import re
import unicodedata
from collections.abc import Iterable

from .ptb_tokenizer import character_class, ptb_tokenize


# Unicode's scripts Han, Hiragana, Katakana, Thai, Lao, Khmer, Myanmar and Tibetan, and the prolonged sound mark U+30FC
UNSPACED = character_class("""
e01-e3a e40-e5b e81-e82 e84 e86-e8a e8c-ea3 ea5 ea7-ebd ec0-ec4 ec6 ec8-ece ed0-ed9 edc-edf f00-f47 f49-f6c f71-f97
f99-fbc fbe-fcc fce-fd4 fd9-fda 1000-109f 1780-17dd 17e0-17e9 17f0-17f9 19e0-19ff 2e80-2e99 2e9b-2ef3 2f00-2fd5 3005
3007 3021-3029 3038-303b 3041-3096 309d-309f 30a1-30fa 30fc-30ff 31f0-31ff 32d0-32fe 3300-3357 3400-4dbf 4e00-9fff
a9e0-a9fe aa60-aa7f f900-fa6d fa70-fad9 ff66-ff6f ff71-ff9d 116d0-116e3 16fe2-16fe3 16ff0-16ff1 1aff0-1aff3
1aff5-1affb 1affd-1affe 1b000-1b122 1b132 1b150-1b152 1b155 1b164-1b167 1f200 20000-2a6df 2a700-2b739 2b740-2b81d
2b820-2cea1 2ceb0-2ebe0 2ebf0-2ee5d 2f800-2fa1d 30000-3134a 31350-323af
""")

# letters of spaced scripts that NFKC spells differently and NFC does not; full-width Latin ones among them
_LETTER_FORMS = character_class("""
3d0-3d6 3f0-3f2 3f4-3f5 3f9 587 675-678 3131-318e fb13-fb17 fb20-fb28 fb4f-fbb1 fbd3-fd3d fd50-fd8f fd92-fdc7
fdf0-fdfb fe70-fe72 fe74 fe76-fefc ff10-ff19 ff21-ff3a ff41-ff5a ffa0-ffbe ffc2-ffc7 ffca-ffcf ffd2-ffd7 ffda-ffdc
""")

# the rules of `build_tokenizer`
_SIGNS = "&%$#+"
_LETTER = rf"[^\s{_SIGNS}'\-.,:]"  # among the characters that `_Kept` leaves
_CLITIC = "(?i:s|m|d|ll|re|ve)"

_find_unspaced = re.compile(f"[{UNSPACED}]").search
_find_letter_form = re.compile(f"[{_LETTER_FORMS}]")
_UNKNOWN = re.compile("(?i:(<unk>))")
_STRAY_MARKS = re.compile(rf"['-]{{2,}}|(?<!{_LETTER})(?!'{_CLITIC}(?!{_LETTER}))['-]|['-](?!{_LETTER})")
_POINT = re.compile("[.,:]")
_ALONE = re.compile(rf"([{_SIGNS}]|[{UNSPACED}]|'{_CLITIC}\Z|(?i:n't)\Z)")


def tokenize_captions(captions: Iterable[str]) -> list[str]:
    """
    Split captions into the words that `caption_metrics` compares.

    Args:
        captions: raw sentences, in the order of `ptb_tokenize`.

    Returns:
        The words of each caption in lower case, with one space between them.
    """
    captions = [caption if caption.isascii() else _spell(caption) for caption in captions]
    tokens = ptb_tokenize(captions)
    for index, caption in enumerate(captions):
        if not caption.isascii():
            normalized = unicodedata.normalize("NFKC", caption)
            words = _split_unspaced(normalized) if _find_unspaced(normalized) else tokens[index]
            tokens[index] = words.replace("ς", "σ")  # a model writes "οδοσ" for a capital "ΟΔΟΣ"
    return tokens


def _spell(caption: str) -> str:
    """Spell each letter in one way."""
    caption = _find_letter_form.sub(lambda form: unicodedata.normalize("NFKC", form[0]), caption)
    return unicodedata.normalize("NFC", caption)


class _Kept(dict[int, int | str | None]):
    """Table for `str.translate` that keeps letters, marks, numbers and a few signs, and makes spaces of the rest."""

    def __missing__(self, code: int) -> int | str:
        character = chr(code)
        category = unicodedata.category(character)
        # not assigned: a character that is younger than Python's Unicode
        is_kept = category[0] in "LMN" or (category == "Cn" and _find_unspaced(character) is not None)
        self[code] = kept = code if is_kept else " "
        return kept


_KEPT = _Kept({ord(sign): ord(sign) for sign in f"{_SIGNS}'-.,:\u200c\u200d"})
_KEPT.update({0x2019: "'", 0x2BC: "'", 0x2010: "-", 0xAD: None})


def _split_unspaced(caption: str) -> str:
    """Split a caption in NFKC as `build_tokenizer` does; its unknown word stays one."""
    words: list[str] = []
    for part in _UNKNOWN.split(caption):
        if _UNKNOWN.fullmatch(part):
            words.append("<unk>")
            continue
        # lower case one by one: as a whole, Python minds whether a sigma ends a word
        part = "".join(map(str.lower, part)).translate(_KEPT)
        part = _POINT.sub(_keep_in_number, _STRAY_MARKS.sub(" ", part))
        for piece in part.split():
            words.extend(_split_piece(piece))
    return " ".join(words)


def _keep_in_number(point: re.Match[str]) -> str:
    """Keep a point, comma or colon between two digits."""
    around = point.string[max(point.start() - 1, 0) : point.end() + 1]
    is_inside = len(around) == 3 and all(unicodedata.category(around[place])[0] == "N" for place in (0, 2))
    return point[0] if is_inside else " "


def _split_piece(piece: str) -> list[str]:
    """Split what stands between two spaces; combining marks stay with a character of a script without spaces."""
    words: list[str] = []
    takes_marks = False
    for part in filter(None, _ALONE.split(piece)):
        if takes_marks:
            num_marks = next((i for i, mark in enumerate(part) if unicodedata.category(mark)[0] != "M"), len(part))
            words[-1] += part[:num_marks]
            part = part[num_marks:]
        if part:
            words.append(part)
            takes_marks = _find_unspaced(part) is not None
    return words
