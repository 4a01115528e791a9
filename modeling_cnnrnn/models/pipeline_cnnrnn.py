"""The `image-to-text` pipeline, which transformers 5 does not have."""

# in transformers, a pipeline's flags are typed `None` and its methods without the arguments of subclasses
# mypy: disable-error-code="assignment, override"

from collections.abc import Iterable, Mapping
from os import PathLike
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from transformers import Pipeline

from .generation_cnnrnn import sentence_mask
from .loading_cnnrnn import PRETRAINED_FOLDERS, explain_errors, find_pretrained
from .processing_cnnrnn import CnnRnnProcessor
from .processor_checks_cnnrnn import HUB_KWARGS


# the entry of config.json by which `transformers.pipeline` finds the class below in a repository
CUSTOM_PIPELINES = {
    "image-to-text": {
        "impl": "pipeline_cnnrnn.ImageToTextPipeline",
        "pt": ["AutoModelForImageTextToText"],
        "type": "multimodal",
    }
}


class ImageToTextPipeline(Pipeline):
    """
    Write sentences about images; called like the pipeline of this name in transformers 4.

    Args:
        model: a captioner.
        processor: its processor; by default loaded from the folder or repository of the model.
        tokenizer: a tokenizer to use in place of the processor's.
        image_processor: an image processor to use in place of the processor's.
        **kwargs: as in [`~transformers.Pipeline`]; arguments of a call given here are the defaults of all calls.

    Raises:
        ValueError: no processor is given, and the model was not loaded from anywhere.

    ```python
    >>> import modeling_cnnrnn

    >>> captioner = modeling_cnnrnn.pipeline("image-to-text", model="path/to/captioner")
    >>> captioner("dog.jpg")
    [{'generated_text': 'a dog jumps over a bar'}]
    ```
    """

    model: Any
    processor: Any
    # The processor flattens transparency, scales 16 bits, ...; the image processor in it would get raw images.
    _load_processor = None
    _load_image_processor = False
    _load_feature_extractor = False
    _load_video_processor = False
    _load_tokenizer = False
    # With True, transformers keeps generation options of the constructor for a helper whose name and duties change between
    # its versions. With False all options pass through `_sanitize_parameters`.
    _pipeline_calls_generate = False

    def __init__(self, model, processor=None, tokenizer=None, image_processor=None, **kwargs):
        if processor is None and (tokenizer is None or image_processor is None):
            if not model.name_or_path:
                raise ValueError(
                    "`processor` is None, and `model` was not loaded from anywhere: pass `processor=`, or "
                    "`image_processor=` and `tokenizer=`."
                )
            # that of an ensemble is another one
            processor = getattr(model, "processor_class", CnnRnnProcessor).from_pretrained(model.name_or_path)
        if tokenizer is not None or image_processor is not None:
            processor = CnnRnnProcessor(image_processor or processor.image_processor, tokenizer or processor.tokenizer)
        super().__init__(model, processor=processor, **{**kwargs, "task": "image-to-text"})

    def __call__(self, inputs: Any = None, **kwargs) -> Any:
        """
        Write sentences about images.

        Args:
            inputs: an image (of PIL, path, URL, `data:` URI, array or tensor, see `load_image`), a list or a batch of
                images, or a stream of them: a dataset, a column of one, `KeyDataset`, or a generator. Rows of a
                dataset are dictionaries with an `"image"`. Also accepted as `images`, the name in transformers 4.
            prompt (`str`, *optional*): how the sentences begin; part of `generated_text`.
            max_new_tokens (`int`, *optional*): number of tokens of a sentence at most.
            generate_kwargs (`dict`, *optional*): options of `generate`, such as `{"num_beams": 3}`.
            num_return_sequences (`int`, *optional*): number of sentences for each image; needs sampling or as many beams.
            return_scores (`bool`, *optional*): whether to return the log-probability of each sentence.
            timeout (`float`, *optional*, defaults to 60): seconds that downloading an image may take.
            allow_private_addresses (`bool`, *optional*, defaults to `True`): whether a URL may be at a private, loopback
                or link-local address. Pass `False` for URLs of strangers.
            draft (`bool`, *optional*, defaults to `True`): whether a large JPEG file is decoded at a part of its size, see
                [`CnnRnnProcessor`]. Pass `False` for exact pixels.
            batch_size (`int`, *optional*, defaults to 1): number of images that the model processes together.

        Returns:
            For one image a list with a dictionary for each sentence, for a list of images a list of such lists, for
            a stream an iterator over them.
            - **generated_text** (`str`): the sentence.
            - **score** (`float`, with `return_scores`): its log-probability in nats, the sum over the tokens after the
              prompt, with the end token if there is one. It is the probability by the model alone, without the length
              penalty of beam search, the temperature or suppressed tokens that the words were chosen with.

        Raises:
            ValueError: `inputs` is missing or an empty list, an option is given twice, or an image cannot be read.
            OSError: an image cannot be read.
        """
        inputs = kwargs.pop("images", inputs)
        if inputs is None:
            raise ValueError("`inputs` is None: pass an image, a list of images or a dataset.")
        if isinstance(inputs, np.ndarray | torch.Tensor):
            inputs = list(inputs) if inputs.ndim == 4 else inputs
        elif isinstance(inputs, list | tuple):
            inputs = list(inputs)
        elif not isinstance(
            inputs, str | PathLike | bytes | Image.Image | Mapping | torch.utils.data.Dataset
        ) and isinstance(inputs, Iterable):
            inputs = (image for image in inputs)  # a dataset, or a column of one, that is not torch's
        if isinstance(inputs, list) and not inputs:
            raise ValueError("`inputs` is an empty list: pass at least one image.")
        return super().__call__(inputs, **kwargs)

    def _sanitize_parameters(
        self,
        prompt=None,
        max_new_tokens=None,
        generate_kwargs=None,
        num_return_sequences=None,
        return_scores=None,
        timeout=None,
        allow_private_addresses=None,
        draft=None,
    ):
        preprocess = {
            "prompt": prompt,
            "timeout": timeout,
            "allow_private_addresses": allow_private_addresses,
            "draft": draft,
        }
        generate = {"max_new_tokens": max_new_tokens, "num_return_sequences": num_return_sequences}
        generate = {name: value for name, value in generate.items() if value is not None}
        for name in generate.keys() & (generate_kwargs or {}).keys():
            raise ValueError(f"`{name}` is given as an argument and in `generate_kwargs`: pass it once.")
        forward = {**(generate_kwargs or {}), **generate}
        if return_scores is not None:
            forward["return_scores"] = return_scores
        return {name: value for name, value in preprocess.items() if value is not None}, forward, {}

    def preprocess(self, image, prompt=None, timeout=None, allow_private_addresses=True, draft=True):
        if isinstance(image, Mapping):
            if "image" not in image:
                raise ValueError(
                    f"`inputs` holds a dictionary with {list(image)} and no 'image': pick the column of the images, "
                    f"as in `KeyDataset(dataset, {next(iter(image), 'picture')!r})`."
                )
            image = image["image"]
        if prompt is not None and not isinstance(prompt, str):
            raise ValueError(f"`prompt` is {prompt!r}: pass one string for all images.")
        image = self.processor.load_image(
            image, draft, timeout=timeout, name="inputs", allow_private_addresses=allow_private_addresses
        )
        return self.processor(images=image, text=prompt, return_tensors="pt").to(self.model.dtype)

    def _forward(self, model_inputs, return_scores=False, **generate_kwargs):
        if return_scores:
            generate_kwargs |= {"return_dict_in_generate": True, "output_logits": True}
        output = self.model.generate(**model_inputs, **generate_kwargs)
        sequences = output if isinstance(output, torch.Tensor) else output.sequences
        result = {"sequences": sequences}
        if return_scores:
            result["scores"] = self._log_probabilities(output, generate_kwargs)
        # `Pipeline` splits a batch along the first dimension: one row of sequences for each image
        batch_size = len(next(iter(model_inputs.values())))
        return {name: value.unflatten(0, (batch_size, -1)) for name, value in result.items()}

    def _log_probabilities(self, output, generate_kwargs) -> torch.Tensor:
        """Add up the log-probabilities of each sentence, to its first end token, `(batch_size * num_return_sequences,)`."""
        log_probabilities = self.model.compute_transition_scores(
            output.sequences, output.logits, getattr(output, "beam_indices", None), normalize_logits=True
        )
        config = generate_kwargs.get("generation_config") or self.model.generation_config
        eos_token_id = generate_kwargs.get("eos_token_id", config.eos_token_id)
        mask = sentence_mask(output.sequences[:, -log_probabilities.shape[1] :], eos_token_id)
        return log_probabilities.masked_fill(~mask, 0).sum(dim=1)

    def postprocess(self, model_outputs):
        texts = self.processor.batch_decode(model_outputs["sequences"].flatten(0, 1), skip_special_tokens=True)
        records = [{"generated_text": text} for text in texts]
        if "scores" in model_outputs:
            for record, score in zip(records, model_outputs["scores"].flatten().tolist(), strict=True):
                record["score"] = score
        return records


def pipeline(task: str | None = None, model: Any = None, **kwargs) -> Pipeline:
    """
    Make a pipeline as `transformers.pipeline` does, also for `image-to-text` (and `image-captioning`, its other name).

    Args:
        task: the task; [`ImageToTextPipeline`] serves these two, transformers all others.
        model: a repository of the Hub, a folder, a model or the name of a captioner that comes with the package. These two
            tasks take `flickr8k-mobilenet` of these where none is named.
        **kwargs: as in `transformers.pipeline`, but nobody is asked on the terminal whether code of a repository may run:
            pass `trust_remote_code=True` if it may.

    Raises:
        OSError: an image task and a model that cannot be read.
        CnnRnnLoadingError: an image task and a model that is no captioner, or of which a file is missing, damaged or
            wrong. It is both an `OSError` and a `ValueError`.

    ```python
    >>> captioner = pipeline("image-to-text", model="path/to/captioner")
    ```
    """
    if task in ("image-to-text", "image-captioning"):
        # transformers 5 replaces "image-to-text" by "image-text-to-text", and warns; the models of both are the same
        task = "image-text-to-text"
        kwargs = {"pipeline_class": ImageToTextPipeline, "trust_remote_code": False, **kwargs}
        if model is None and kwargs.get("tokenizer") is None:
            model = next(iter(PRETRAINED_FOLDERS.values()), None)
        if isinstance(model, str | PathLike):
            return _load_pipeline(task, find_pretrained(model), kwargs)
    return transformers.pipeline(task, model=model, **kwargs)  # type: ignore[arg-type]


def _load_pipeline(task: str, place: str | PathLike, kwargs: dict[str, Any]) -> Pipeline:
    """Load a pipeline, and let what fails end as one sentence, of which transformers makes a list of tracebacks."""
    from .modeling_cnnrnn import CnnRnnForConditionalGeneration  # which imports this file

    where = {**(kwargs.get("model_kwargs") or {}), **kwargs}
    where = {key: where[key] for key in HUB_KWARGS if key in where}
    with explain_errors(place, (), **where):
        try:
            return transformers.pipeline(task, model=place, **kwargs)  # type: ignore[call-overload]
        except Exception:
            CnnRnnForConditionalGeneration.from_pretrained(place, **where)
            CnnRnnProcessor.from_pretrained(place, **where)
            raise  # the files are whole


__all__ = ["CUSTOM_PIPELINES", "ImageToTextPipeline", "pipeline"]
