"""Prove that a repository can be loaded without this package."""

import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from ..models.modeling_alignment_cnnrnn import CnnRnnForImageTextRetrieval
from ..models.modeling_cnnrnn import CnnRnnForConditionalGeneration
from ..models.pipeline_cnnrnn import ImageToTextPipeline
from ..models.processing_alignment_cnnrnn import CnnRnnAlignmentProcessor
from ..models.processing_cnnrnn import CnnRnnProcessor


def check_repository(staged: str | Path, model: CnnRnnForConditionalGeneration, processor: CnnRnnProcessor) -> None:
    """
    Load a repository as a user without this package does, with the code that is in it.

    Args:
        staged: folder of the repository.
        model: the captioner that the repository was made from; the loaded one must write the same sentence.
        processor: its processor.

    Raises:
        ValueError: the repository does not load, or writes another sentence.
    """
    picture = Image.linear_gradient("L")
    expected = ImageToTextPipeline(model, processor=processor, device="cpu")(picture)
    try:
        config = json.loads((Path(staged) / "config.json").read_text(encoding="utf-8"))
        names = [config["auto_map"][AutoModelForImageTextToText.__name__], "processing_cnnrnn.CnnRnnProcessor"]
        names.append(config["custom_pipelines"]["image-to-text"]["impl"])
        classes: list[Any] = [get_class_from_dynamic_module(name, str(staged)) for name in names]
        model_class, processor_class, pipeline_class = classes
        loaded = model_class.from_pretrained(staged)
        pipe = pipeline_class(loaded, processor=processor_class.from_pretrained(staged), device="cpu")
        written = pipe(picture)
    except Exception as error:  # with any error, nobody could load it
        raise ValueError(f"The repository made of the captioner does not load, and is not pushed: {error}") from error
    if written != expected:
        raise ValueError(f"The repository made of the captioner writes {written} and not {expected}: it is not pushed.")


@torch.inference_mode()
def check_alignment_repository(
    staged: str | Path, model: CnnRnnForImageTextRetrieval, processor: CnnRnnAlignmentProcessor
) -> None:
    """
    Load the repository of an alignment as a user without this package does.

    Raises:
        ValueError: the repository does not load, or scores a picture and a word otherwise.
    """
    picture, tokenizer = Image.linear_gradient("L"), processor.tokenizer
    word = next(word for word, index in tokenizer.get_vocab().items() if index not in tokenizer.all_special_ids)
    expected = model(**processor(images=picture, text=word, return_tensors="pt")).logits_per_image
    try:
        config = json.loads((Path(staged) / "config.json").read_text(encoding="utf-8"))
        names = [config["auto_map"]["AutoModelForZeroShotImageClassification"]]
        names.append("processing_alignment_cnnrnn.CnnRnnAlignmentProcessor")
        classes: list[Any] = [get_class_from_dynamic_module(name, str(staged)) for name in names]
        loaded, reader = classes[0].from_pretrained(staged).eval(), classes[1].from_pretrained(staged)
        scores = loaded(**reader(images=picture, text=word, return_tensors="pt")).logits_per_image
    except Exception as error:  # with any error, nobody could load it
        raise ValueError(f"The repository made of the alignment does not load, and is not pushed: {error}") from error
    if not torch.allclose(scores, expected, atol=1e-4):
        raise ValueError(f"The repository made of the alignment scores {scores} and not {expected}: it is not pushed.")
