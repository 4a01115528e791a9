"""Captioners as a training leaves them, and people who load them from a Hub."""

import json
from pathlib import Path

from support import hub_user
from support.local_hub import LocalHub
from support.nursery import run_python
from support.tiny_models import CAPTIONS
from transformers import BitImageProcessorPil, ResNetConfig, set_seed

from modeling_cnnrnn import CnnRnnConfig, CnnRnnForConditionalGeneration, CnnRnnProcessor, build_tokenizer


CNN = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}


def make_model(seed: int = 0, **options) -> CnnRnnForConditionalGeneration:
    """A captioner whose sentences come to an end and depend on its weights."""
    set_seed(seed)
    sizes = {"vocab_size": 20, "hidden_size": 14, "embedding_size": 12, "attention_size": 10}
    config = CnnRnnConfig(encoder=ResNetConfig(**CNN).to_dict(), **sizes, initializer_range=2.0, **options)
    model = CnnRnnForConditionalGeneration(config).eval()
    model.generation_config.update(max_length=8, suppress_tokens=[0, 1, 3])
    return model


def make_processor() -> CnnRnnProcessor:
    image_processor = BitImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return CnnRnnProcessor(image_processor, build_tokenizer(CAPTIONS, min_frequency=1))


def save(folder: Path, model: CnnRnnForConditionalGeneration) -> Path:
    """What is left of a training, as far as a push needs it."""
    model.save_pretrained(folder)
    make_processor().save_pretrained(folder)
    return folder


def fork_jobs(hub: LocalHub, folder: Path, jobs: dict, **environment: str) -> dict:
    """What the jobs of `hub_user.py` give, in a process with the caches in `folder`."""
    path = folder / "jobs.json"
    path.write_text(json.dumps(jobs))
    environment = {**hub.environment(folder / "home"), "OMP_NUM_THREADS": "1", **environment}
    environment.pop("PYTHONPATH", None)
    completed = run_python("-P", hub_user.__file__, path, env=environment, cwd=folder)
    assert completed.returncode == 0, completed.stderr
    return json.loads(path.with_suffix(".out").read_text())
