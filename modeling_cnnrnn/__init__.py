"""
CNN+RNN image captioning for the Hugging Face ecosystem.

Names are imported when they are used, and the classes registered with transformers' Auto classes when transformers is: see
`registration.py`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .registration import register


if TYPE_CHECKING:
    from .models.configuration_alignment_cnnrnn import CnnRnnAlignmentConfig
    from .models.configuration_cnnrnn import CnnRnnConfig
    from .models.configuration_convnet_cnnrnn import ConvNetConfig
    from .models.configuration_ensemble_cnnrnn import CnnRnnEnsembleConfig
    from .models.image_loading_cnnrnn import load_image
    from .models.modeling_alignment_cnnrnn import CnnRnnAlignmentModel, CnnRnnForImageTextRetrieval
    from .models.modeling_cnnrnn import CnnRnnForConditionalGeneration, CnnRnnModel, CnnRnnPreTrainedModel
    from .models.modeling_convnet_cnnrnn import ConvNetForImageClassification, ConvNetModel
    from .models.modeling_ensemble_cnnrnn import CnnRnnEnsemble
    from .models.pipeline_cnnrnn import ImageToTextPipeline, pipeline
    from .models.processing_alignment_cnnrnn import CnnRnnAlignmentProcessor
    from .models.processing_cnnrnn import CnnRnnProcessor
    from .models.processing_ensemble_cnnrnn import CnnRnnEnsembleProcessor
    from .models.recurrence_cnnrnn import CnnRnnCache
    from .models.regions_cnnrnn import detect_boxes
    from .models.tokenization_cnnrnn import build_tokenizer

__version__ = "0.1.0"

__all__ = [
    "CnnRnnAlignmentConfig",
    "CnnRnnAlignmentModel",
    "CnnRnnAlignmentProcessor",
    "CnnRnnCache",
    "CnnRnnConfig",
    "CnnRnnEnsemble",
    "CnnRnnEnsembleConfig",
    "CnnRnnEnsembleProcessor",
    "CnnRnnForConditionalGeneration",
    "CnnRnnForImageTextRetrieval",
    "CnnRnnModel",
    "CnnRnnPreTrainedModel",
    "CnnRnnProcessor",
    "ConvNetConfig",
    "ConvNetForImageClassification",
    "ConvNetModel",
    "ImageToTextPipeline",
    "build_tokenizer",
    "detect_boxes",
    "load_image",
    "pipeline",
]

_FILES = {
    "CnnRnnAlignmentConfig": "configuration_alignment_cnnrnn",
    "CnnRnnAlignmentModel": "modeling_alignment_cnnrnn",
    "CnnRnnAlignmentProcessor": "processing_alignment_cnnrnn",
    "CnnRnnCache": "recurrence_cnnrnn",
    "CnnRnnConfig": "configuration_cnnrnn",
    "CnnRnnEnsemble": "modeling_ensemble_cnnrnn",
    "CnnRnnEnsembleConfig": "configuration_ensemble_cnnrnn",
    "CnnRnnEnsembleProcessor": "processing_ensemble_cnnrnn",
    "CnnRnnForConditionalGeneration": "modeling_cnnrnn",
    "CnnRnnForImageTextRetrieval": "modeling_alignment_cnnrnn",
    "CnnRnnModel": "modeling_cnnrnn",
    "CnnRnnPreTrainedModel": "base_cnnrnn",
    "CnnRnnProcessor": "processing_cnnrnn",
    "ConvNetConfig": "configuration_convnet_cnnrnn",
    "ConvNetForImageClassification": "modeling_convnet_cnnrnn",
    "ConvNetModel": "modeling_convnet_cnnrnn",
    "ImageToTextPipeline": "pipeline_cnnrnn",
    "build_tokenizer": "tokenization_cnnrnn",
    "detect_boxes": "regions_cnnrnn",
    "load_image": "image_loading_cnnrnn",
    "pipeline": "pipeline_cnnrnn",
}


def __getattr__(name: str) -> Any:
    if name not in _FILES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    value = globals()[name] = getattr(import_module(f".models.{_FILES[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register()
