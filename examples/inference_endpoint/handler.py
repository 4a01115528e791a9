"""
Serve a captioner as an Inference Endpoint. Upload this file and requirements.txt to the captioner's repository:

    hf upload user/captioner examples/inference_endpoint .

A request is an image, or JSON with images as base64 or URLs and with options of `generate`:

    {"inputs": "<base64>", "parameters": {"num_beams": 3, "num_return_sequences": 3, "return_scores": true}}
    [{"generated_text": "a dog jumps over a bar", "score": -3.1}, ...]
"""

import base64
import binascii
from typing import Any

from PIL import Image
from transformers import GenerationConfig, pipeline


# arguments of the pipeline; all other parameters are for `generate`
PIPELINE_PARAMETERS = ("prompt", "max_new_tokens", "num_return_sequences", "return_scores", "batch_size")
# fields of a generation config only: `generate` also takes `custom_generate`, which runs any code of the Hub
GENERATE_PARAMETERS = frozenset(GenerationConfig().to_dict())
TIMEOUT = 10  # seconds that a download may take
MAX_SHOWN = 60  # characters of what is sent, in errors


class EndpointHandler:
    """
    Load a captioner and answer requests, as Inference Endpoints expect.

    Args:
        path: folder of the repository, with the captioner and its code.
    """

    def __init__(self, path: str = ""):
        self.pipeline = pipeline("image-to-text", model=path, trust_remote_code=True)

    def __call__(self, data: dict[str, Any]) -> list:
        """
        Write sentences about the images of a request.

        Args:
            data: `inputs`, an image (of PIL, bytes, base64, a `data:` URI or a URL) or a list of images, and optionally
                `parameters`: `prompt`, `max_new_tokens`, `num_return_sequences`, `return_scores`, `batch_size` and
                options of `generate`, which may stand in `generate_kwargs` too.

        Returns:
            For one image a list with a dictionary for each sentence (`generated_text`, with `return_scores` its
            log-probability as `score`), for a list of images a list of such lists.

        Raises:
            ValueError: `inputs` is missing or no image, or a parameter is unknown.
            OSError: a URL cannot be read, or is not at a public address: a request must not reach what only this machine
                can reach.
        """
        inputs, parameters = data.get("inputs"), dict(data.get("parameters") or {})
        if inputs is None:
            raise ValueError('`inputs` is missing: send an image, or JSON as {"inputs": "<base64>"}.')
        options = {name: parameters.pop(name) for name in PIPELINE_PARAMETERS if name in parameters}
        generate_kwargs = {**(parameters.pop("generate_kwargs", None) or {}), **parameters}
        for name in generate_kwargs.keys() - GENERATE_PARAMETERS:
            raise ValueError(
                f"`parameters` holds {str(name)[:MAX_SHOWN]!r}: pass {', '.join(PIPELINE_PARAMETERS)} or fields of "
                f"`GenerationConfig`."
            )
        images = [_image(image) for image in inputs] if isinstance(inputs, list) else _image(inputs)
        # the addresses of this machine's network are not for who sends requests
        return self.pipeline(
            images, generate_kwargs=generate_kwargs, timeout=TIMEOUT, allow_private_addresses=False, **options
        )


def _image(source: Any) -> Image.Image | bytes | str:
    """Return an input of the pipeline. A path is none: the files of this machine are not for those who send requests."""
    if isinstance(source, Image.Image | bytes):
        return source
    if not isinstance(source, str):
        raise ValueError(f"`inputs` holds a {type(source).__name__}: send an image as base64 or a URL.")
    if source[:32].lower().startswith(("http://", "https://", "data:")):
        return source
    try:
        return base64.b64decode("".join(source.split()), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(
            f"`inputs` holds {source[:MAX_SHOWN]!r}, no image: send an image as base64 or a URL."
        ) from None
