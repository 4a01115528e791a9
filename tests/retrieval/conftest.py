"""Tiny models that compare pictures with words, and a folder of photographs."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_cnnrnn import CnnRnnAlignmentConfig, CnnRnnForImageTextRetrieval


def make_aligner(encoder_config, seed: int) -> CnnRnnForImageTextRetrieval:
    torch.manual_seed(seed)
    sizes = {"vocab_size": 20, "hidden_size": 14, "embedding_size": 12, "word_embedding_size": 10}
    config = CnnRnnAlignmentConfig(encoder=encoder_config.to_dict(), initializer_range=0.5, **sizes)
    return CnnRnnForImageTextRetrieval(config).eval()


@pytest.fixture
def aligner(tiny_encoder_config) -> CnnRnnForImageTextRetrieval:
    return make_aligner(tiny_encoder_config, 0)


@pytest.fixture
def other_aligner(tiny_encoder_config) -> CnnRnnForImageTextRetrieval:
    """A model with the same configuration and other weights."""
    return make_aligner(tiny_encoder_config, 1)


@pytest.fixture
def photographs(tmp_path) -> Path:
    """Seven photographs, two of them in a folder below."""
    folder = tmp_path / "photographs"
    (folder / "trip").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.png", "c.png", "d.png", "trip/e.png", "trip/f.png", "g.png"):
        blocks = rng.integers(0, 256, (3, 3, 3), dtype=np.uint8)
        Image.fromarray(blocks).resize((48, 40), Image.Resampling.NEAREST).save(folder / name)
    return folder
