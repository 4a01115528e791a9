"""METEOR and SPICE, through pycocoevalcap's Java programs."""

import numpy as np
from collections.abc import Sequence


class NotComputed(RuntimeError):
    """A metric could not be computed; the message says why."""


def meteor(predictions: Sequence[str], references: Sequence[Sequence[str]], timeout: float) -> tuple[float, np.ndarray]:
    raise NotComputed("no `java`")


def spice(predictions: Sequence[str], references: Sequence[Sequence[str]], timeout: float) -> tuple[float, np.ndarray]:
    raise NotComputed("no `java`")
