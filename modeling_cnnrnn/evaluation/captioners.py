"""Load a captioner with its processor, or several that write as one."""

import os
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from ..models.configuration_ensemble_cnnrnn import CnnRnnEnsembleConfig
from ..models.loading_cnnrnn import find_pretrained
from ..models.modeling_cnnrnn import CnnRnnForConditionalGeneration
from ..models.modeling_ensemble_cnnrnn import CnnRnnEnsemble
from ..models.processing_cnnrnn import CnnRnnProcessor
from ..models.processing_ensemble_cnnrnn import CnnRnnEnsembleProcessor


def load_captioner(model_name_or_path: str, revision: str = "main", **kwargs: Any) -> tuple[Any, Any]:
    """
    Load a captioner and its processor.

    Args:
        model_name_or_path: folder, repository of the Hub or short name of a captioner or of an ensemble; several with commas
            are an ensemble.
        revision: commit, tag or branch, of all.
        kwargs: further arguments of `from_pretrained` of the captioners.

    Returns:
        The captioner in evaluation mode and its processor.

    Raises:
        ValueError: several captioners have different vocabularies.
        OSError: a captioner is not there.
    """
    places = names_of(model_name_or_path)
    if len(places) > 1:
        processor: Any = CnnRnnEnsembleProcessor.from_captioners(places, revision=revision)
        return CnnRnnEnsemble.from_captioners(places, revision=revision, **kwargs), processor
    classes: Any = (CnnRnnForConditionalGeneration, CnnRnnProcessor)
    if _model_type(places[0], revision) == CnnRnnEnsembleConfig.model_type:
        classes = (CnnRnnEnsemble, CnnRnnEnsembleProcessor)
    processor = classes[1].from_pretrained(places[0], revision=revision)
    return classes[0].from_pretrained(places[0], revision=revision, **kwargs).eval(), processor


def names_of(model_name_or_path: str) -> list[str]:
    """List the captioners that an option names; a folder may have a comma in its name."""
    if os.path.isdir(model_name_or_path):
        return [model_name_or_path]
    return [name.strip() for name in str(model_name_or_path).split(",") if name.strip()] or [model_name_or_path]


def title_of(model_name_or_path: str) -> str:
    """Name captioners as a heading does, without their folders."""
    return " + ".join(Path(name).name for name in names_of(model_name_or_path))


def _model_type(place: str, revision: str) -> str | None:
    try:
        return PreTrainedConfig.get_config_dict(find_pretrained(place), revision=revision)[0].get("model_type")
    except (OSError, ValueError):
        return None  # the captioner's own loading says what is wrong


__all__ = ["load_captioner", "names_of", "title_of"]
