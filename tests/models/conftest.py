"""Fixtures of the tests of images."""

import numpy as np
import pytest


@pytest.fixture
def pixels() -> np.ndarray:
    """An RGB image of 10 x 12 random pixels."""
    return np.random.default_rng(0).integers(0, 256, (10, 12, 3), dtype=np.uint8)
