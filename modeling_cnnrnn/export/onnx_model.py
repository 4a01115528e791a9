"""An exported captioner as a model of transformers: for pipelines, and for `AutoModelForImageTextToText`."""

import copy
import os
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from transformers import GenerationConfig

from ..models.configuration_cnnrnn import CnnRnnConfig


# options of `generate` that an exported captioner knows, and their defaults
SUPPORTED_OPTIONS = {
    "num_beams": 1,
    "max_length": 20,
    "length_penalty": 1.0,
    "early_stopping": False,
    "no_repeat_ngram_size": 0,
    "eos_token_id": None,
    "decoder_start_token_id": None,
}
# options that say nothing about the search, or are part of the graphs
OTHER_OPTIONS = {
    "bos_token_id", "pad_token_id", "suppress_tokens", "use_cache", "num_return_sequences", "max_new_tokens",
    "transformers_version", "_from_model_config", "temperature", "top_k", "top_p",
}  # fmt: skip


class CnnRnnOnnxConfig(CnnRnnConfig):
    """The configuration of an exported captioner: that of the captioner, under another name."""

    model_type = "cnnrnn_onnx"
    _auto_class = None


def onnx_config(config: CnnRnnConfig) -> CnnRnnOnnxConfig:
    """Make the configuration of an exported captioner from that of the captioner."""
    fields = config.to_dict()
    for name in ("auto_map", "custom_pipelines", "model_type", "architectures", "dtype"):
        fields.pop(name, None)
    return CnnRnnOnnxConfig(**fields)


def generation_options(config: GenerationConfig) -> dict[str, Any]:
    """
    Read the options of an exported captioner's search.

    Raises:
        ValueError: the configuration asks for something that it cannot do.
    """
    for name, value in config.to_diff_dict().items():
        is_default = value is not True and value in (None, False, 0, 1.0)
        if name not in SUPPORTED_OPTIONS and name not in OTHER_OPTIONS and not is_default:
            raise ValueError(
                f"`{name}` is {value!r}, which an exported captioner does not know: leave it out, or use the model in torch."
            )
    options = {
        name: default if getattr(config, name) is None else getattr(config, name)
        for name, default in SUPPORTED_OPTIONS.items()
    }
    ends = options["eos_token_id"]
    options["eos_token_id"] = ends if isinstance(ends, list) else [] if ends is None else [ends]
    return options


class CnnRnnOnnxForConditionalGeneration:
    """
    A captioner that `cnnrnn export` has written, run by ONNX Runtime: the captions of `generate`, several times as fast.

    ```python
    >>> import modeling_cnnrnn

    >>> captioner = modeling_cnnrnn.pipeline("image-to-text", model="path/to/exported")
    >>> captioner("dog.jpg", generate_kwargs={"num_beams": 3})
    [{'generated_text': 'a dog jumps over a bar'}]
    ```
    """

    config_class = CnnRnnOnnxConfig
    main_input_name = "pixel_values"
    device = torch.device("cpu")
    dtype = torch.float32

    def __init__(self, folder: str | os.PathLike):
        """
        Args:
            folder: of an exported captioner.
        """
        from .captioner import Captioner  # which imports onnxruntime

        self.name_or_path = str(folder)
        self.config = CnnRnnOnnxConfig.from_pretrained(folder)
        self.generation_config = GenerationConfig.from_pretrained(folder)
        self.captioner = Captioner(str(folder), torch.get_num_threads())

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike, *, revision: str | None = None, **kwargs
    ) -> "CnnRnnOnnxForConditionalGeneration":
        """
        Load an exported captioner.

        Args:
            pretrained_model_name_or_path: a folder, or a repository of the Hub.
            revision: commit, tag or branch of the repository.
            kwargs: other options of `from_pretrained`, which have no effect.

        Raises:
            OSError: there is no such captioner.
            ValueError: the folder is that of another model.
        """
        folder = Path(pretrained_model_name_or_path)
        if not folder.is_dir():
            name = str(pretrained_model_name_or_path)
            folder = Path(snapshot_download(name, revision=revision, allow_patterns=["*.onnx", "*.json"]))
        return cls(folder)

    def can_generate(self) -> bool:
        return True

    def eval(self) -> "CnnRnnOnnxForConditionalGeneration":
        return self

    def to(self, *args, **kwargs) -> "CnnRnnOnnxForConditionalGeneration":
        return self

    def generate(
        self, pixel_values: torch.Tensor, generation_config: GenerationConfig | None = None, **kwargs
    ) -> torch.Tensor:
        """
        Write sentences about images.

        Args:
            pixel_values: `(batch_size, 3, height, width)`, bytes, as the processor in the folder returns them.
            generation_config: in place of the model's.
            kwargs: `num_beams`, `max_new_tokens` or `max_length`, `num_return_sequences`, `length_penalty`,
                `early_stopping`, `no_repeat_ngram_size`.

        Returns:
            Token ids `(batch_size * num_return_sequences, T)`, those of `generate` of the model in torch, padded with its
            padding token.

        Raises:
            ValueError: an option is none of these, or `num_return_sequences` is larger than `num_beams`.
        """
        config = copy.deepcopy(generation_config or self.generation_config)
        unknown = config.update(**{name: value for name, value in kwargs.items() if value is not None})
        if unknown:
            raise ValueError(
                f"`{next(iter(unknown))}` is given, which an exported captioner does not know: leave it out, or use the model "
                "in torch."
            )
        if config.max_new_tokens is not None:
            config.max_length = config.max_new_tokens + 1
        options = generation_options(config)
        count = config.num_return_sequences or 1
        sequences = [
            [options["decoder_start_token_id"], *sentence["token_ids"]]
            for pixels in pixel_values.to(torch.uint8).permute(0, 2, 3, 1).numpy()
            for sentence in self.captioner.generate(pixels, **options)[:count]
        ]
        length = max(map(len, sequences))
        padding = config.pad_token_id or 0
        return torch.tensor([sequence + [padding] * (length - len(sequence)) for sequence in sequences])
