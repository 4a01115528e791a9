"""Count and name in one line whatever a dataset loses on its way."""

import logging
from collections.abc import Sequence

from .columns import shown


logger = logging.getLogger(__name__)


def left_out(place: str, what: str, names: Sequence[str], remedy: str = "") -> None:
    """Warn of what is left out of a split or file, with its number and the first ten names; nothing if there is none."""
    if names:
        logger.warning("Left out of %s: %s (%d): %s%s.", place, what, len(names), some(names), remedy)


def some(names: Sequence[str], number: int = 10) -> str:
    """List the first names, and how many more there are."""
    first = ", ".join(map(shown, names[:number]))
    return first if len(names) <= number else f"{first} and {len(names) - number} more"
