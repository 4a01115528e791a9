"""Weights of old captioners at random, the same on every machine: a seed and the layout of a state dict."""

from collections.abc import Mapping, Sequence

import numpy as np


def draw_weights(layout: Mapping[str, Sequence[int]], seed: int = 0, scale: float = 1.0) -> dict[str, np.ndarray]:
    """
    Draw the tensors of a state dict, in float32.

    Matrices keep the size of what goes through them, times `scale`; the variances of norms are positive.
    """
    generator = np.random.default_rng(seed)
    return {name: _draw(name, tuple(shape), generator, scale) for name, shape in layout.items()}


def _draw(name: str, shape: tuple[int, ...], generator: np.random.Generator, scale: float) -> np.ndarray:
    if name.endswith("num_batches_tracked"):
        return np.array(1, dtype=np.int64)
    values = generator.standard_normal(shape, dtype=np.float32)
    if name.endswith("running_var"):
        return np.float32(0.2) + np.abs(values) / 8
    if len(shape) == 1:
        return values / 4 + (1 if "weight" in name else 0)
    return values * np.float32(scale / np.sqrt(np.prod(shape[1:])))


def draw_pixels(batch_size: int, size: int, seed: int = 1) -> np.ndarray:
    """Draw `pixel_values` `(batch_size, 3, size, size)` in float32, each image of another contrast."""
    pixels = np.random.default_rng(seed).standard_normal((batch_size, 3, size, size), dtype=np.float32)
    return pixels * np.linspace(0.5, 3, batch_size, dtype=np.float32)[:, None, None, None]


def draw_features(batch_size: int, num_regions: int, size: int, seed: int = 2) -> np.ndarray:
    """Draw image features behind a ReLU, `(batch_size, num_regions, size)` in float32, with another mean for each image."""
    features = np.random.default_rng(seed).standard_normal((batch_size, num_regions, size), dtype=np.float32)
    return np.maximum(features + np.random.default_rng(seed + 1).standard_normal((batch_size, 1, size)), 0).astype("f4")
