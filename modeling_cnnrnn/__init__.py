"""CNN+RNN image captioning for the Hugging Face ecosystem."""

from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor
from transformers.pipelines import PIPELINE_REGISTRY

from .models.configuration_cnnrnn import CnnRnnConfig
from .models.modeling_cnnrnn import CnnRnnForConditionalGeneration, CnnRnnModel, CnnRnnPreTrainedModel
from .models.pipeline_cnnrnn import ImageToTextPipeline, pipeline
from .models.processing_cnnrnn import CnnRnnProcessor, load_image
from .models.recurrence_cnnrnn import CnnRnnCache
from .models.tokenization_cnnrnn import build_tokenizer


__version__ = "0.1.0"

AutoConfig.register("cnnrnn", CnnRnnConfig, exist_ok=True)
AutoModel.register(CnnRnnConfig, CnnRnnModel, exist_ok=True)
AutoModelForImageTextToText.register(CnnRnnConfig, CnnRnnForConditionalGeneration, exist_ok=True)
AutoProcessor.register(CnnRnnConfig, CnnRnnProcessor, exist_ok=True)
CnnRnnConfig.register_for_auto_class()
CnnRnnForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")
CnnRnnProcessor.register_for_auto_class()
PIPELINE_REGISTRY.register_pipeline(
    "image-captioning", pipeline_class=ImageToTextPipeline, pt_model=AutoModelForImageTextToText, type="multimodal"
)

__all__ = [
    "CnnRnnCache",
    "CnnRnnConfig",
    "CnnRnnForConditionalGeneration",
    "CnnRnnModel",
    "CnnRnnPreTrainedModel",
    "CnnRnnProcessor",
    "ImageToTextPipeline",
    "build_tokenizer",
    "load_image",
    "pipeline",
]
