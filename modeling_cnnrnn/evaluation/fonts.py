"""Draw texts as they are: in fonts that have their characters, and never as mathematics."""

import logging
import warnings
from collections.abc import Iterable, Iterator, Set
from contextlib import contextmanager, suppress
from typing import Any

import matplotlib
from matplotlib.font_manager import FontEntry, FontProperties, findfont, fontManager, get_font
from matplotlib.ft2font import FT2Font


logger = logging.getLogger(__name__)

NUM_SHOWN = 10  # characters that the warning shows

_added_families: list[str] = []  # for characters that the fonts of matplotlib's settings do not have
_missing: set[str] = set()  # characters that no font has


@contextmanager
def plain_text(texts: Iterable[str]) -> Iterator[None]:
    """
    Let matplotlib draw texts within the block as they are.

    `$` is a dollar sign and begins no formula. Characters that the usual font does not have are drawn with another
    installed font. Those that no font has become boxes; one warning says so, whatever the number of pictures.

    Args:
        texts: the texts that are drawn.
    """
    _add_families({character for text in texts for character in text if character.isprintable()})
    families = [*matplotlib.rcParams["font.family"], *_added_families]
    settings: dict[Any, Any] = {"text.parse_math": False, "text.usetex": False, "font.family": families}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from|Matplotlib currently does not support")
        yield


def _add_families(characters: Set[str]) -> None:
    """Add the fewest families of fonts that have the characters; a warning says which characters none has."""
    families = [*matplotlib.rcParams["font.family"], *_added_families]
    fonts = [get_font(findfont(FontProperties(family=[family]))) for family in families]
    wanted = {c for c in characters - _missing if not any(font.get_char_index(ord(c)) for font in fonts)}
    if not wanted:
        return
    covered = _coverage(wanted)
    while wanted and (family := max(covered, key=lambda family: len(covered[family] & wanted), default=None)):
        if not covered[family] & wanted:
            break
        _added_families.append(family)
        wanted -= covered[family]
    if wanted and not _missing:
        some = " ".join(sorted(wanted)[:NUM_SHOWN])
        logger.warning(
            "No installed font has the characters %s%s: pictures show boxes in their place. Install a font that has "
            "them, such as one of the Noto fonts.",
            some,
            " ..." if len(wanted) > NUM_SHOWN else "",
        )
    _missing.update(wanted)


def _coverage(characters: Set[str]) -> dict[str, set[str]]:
    """Return which of the characters each family has, upright fonts of usual weight first."""

    def distance(font: FontEntry) -> tuple[bool, int]:
        return font.style != "normal", abs(font.weight - 400) if isinstance(font.weight, int) else 0

    covered: dict[str, set[str]] = {}
    for entry in sorted(fontManager.ttflist, key=distance):
        if entry.name in covered or entry.name.startswith("Last Resort"):  # it has a box for every character
            continue
        with suppress(OSError, RuntimeError):  # a damaged file
            font = FT2Font(entry.fname)
            covered[entry.name] = {c for c in characters if font.get_char_index(ord(c))}
            if covered[entry.name] == characters:
                break
    return covered
