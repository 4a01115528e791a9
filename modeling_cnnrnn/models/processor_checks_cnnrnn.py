"""Check that a processor can work, by trying it, and belongs to the captioner beside it; and what it needs of a picture."""

import math
from os import PathLike
from typing import Any

import numpy as np
from PIL import Image
from tokenizers import Tokenizer
from transformers import AutoImageProcessor, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.image_processing_utils import get_size_dict

from .error_messages_cnnrnn import shown
from .loading_cnnrnn import CnnRnnLoadingError, Part


# options of `from_pretrained` that say where files are
HUB_KWARGS = ("cache_dir", "local_files_only", "revision", "subfolder", "token")
# An image of 1 x 10000 pixels whose shortest edge becomes 256 would have 655 million of them.
MAX_RESIZED_PIXELS = 2**24


def needed_side(image_processor: Any, margin: float, **options: Any) -> int | None:
    """
    Compute the side in pixels that a JPEG must keep when it is decoded at a part of its size.

    Args:
        image_processor: the image processor that resizes the decoded picture.
        margin: how many times as large as its result the decoded picture has to be: the larger, the nearer to exact.
        options: of the call, in place of those of the image processor.

    Returns:
        The side, or `None` if the size of pictures is left alone.
    """
    names = ("do_resize", "size", "crop_pct")
    option = {name: options.get(name, getattr(image_processor, name, None)) for name in names}
    if not option["do_resize"] or option["size"] is None:
        return None
    size = get_size_dict(option["size"], default_to_square=getattr(image_processor, "default_to_square", True))
    sides = [size.get(name) or 0 for name in ("height", "width", "shortest_edge", "longest_edge")]
    share = option["crop_pct"] or 1.0  # ConvNeXt cuts this share out of a larger image
    return math.ceil(margin * max(sides) / share) or None


def try_image_processor(image_processor: Any):
    """
    Process a picture, so that options which cannot work are found when they are loaded.

    Raises:
        ValueError: the size would fill the memory, or the picture becomes nothing that a CNN could read.
        Exception: whatever the image processor raises.
    """
    for name in ("size", "crop_size"):
        edges = [edge for edge in dict(getattr(image_processor, name, None) or {}).values() if edge is not None]
        if edges and max(edges) * max(edges) > MAX_RESIZED_PIXELS:
            raise ValueError(f"`{name}` is {shown(dict.fromkeys(edges), 80)} pixels, more than a picture needs")
    pixel_values = np.asarray(
        image_processor([Image.new("RGB", (64, 48), "gray")], return_tensors="np")["pixel_values"]
    )
    if pixel_values.ndim != 4 or min(pixel_values.shape) < 1 or not np.isfinite(pixel_values).all():
        raise ValueError(f"a picture becomes `pixel_values` of shape {pixel_values.shape} or not finite")


def try_tokenizer(tokenizer: Any):
    """Encode and decode a sentence, so that options which cannot work are found when they are loaded."""
    token_ids = tokenizer(["a dog"], add_special_tokens=False, split_special_tokens=True)["input_ids"][0]
    if not isinstance(tokenizer.decode(token_ids), str):
        raise ValueError("a sentence is decoded to something else")


def check_vocabulary(tokenizer: Any, place: str | PathLike, options: dict[str, Any]):
    """
    Refuse a tokenizer whose tokens are not those of the captioner beside it.

    Args:
        options: arguments of `from_pretrained` that say where files are.

    Raises:
        CnnRnnLoadingError: a token is outside the `vocab_size` of config.json, or a special token has another id there.
    """
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        return
    try:
        config, _ = PreTrainedConfig.get_config_dict(place, **options)
    except (OSError, ValueError):  # a processor alone
        return
    if not str(config.get("model_type")).startswith("cnnrnn"):  # or beside another model
        return
    remedy = "take config.json and the tokenizer from one captioner."
    largest, vocab_size = max(tokenizer.get_vocab().values()), config.get("vocab_size")
    if isinstance(vocab_size, int) and largest >= vocab_size:
        raise CnnRnnLoadingError(
            f"The tokenizer in {shown(place)} has the token {largest} and config.json a `vocab_size` of {vocab_size}: {remedy}"
        )
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        ids = config.get(name)
        if ids is not None and getattr(tokenizer, name) not in (ids if isinstance(ids, list) else [ids]):
            raise CnnRnnLoadingError(
                f"`{name}` is {shown(ids, 80)} in config.json of {shown(place)} and {getattr(tokenizer, name)} in its "
                f"tokenizer: {remedy}"
            )


PROCESSOR_PARTS = (
    Part(
        ("processor_config.json", "preprocessor_config.json", "config.json"),
        lambda folder: try_image_processor(AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)),
    ),
    Part(("tokenizer.json",), lambda folder: Tokenizer.from_file(str(folder / "tokenizer.json"))),
    Part(
        ("tokenizer_config.json", "tokenizer.json", "special_tokens_map.json", "added_tokens.json", "config.json"),
        lambda folder: try_tokenizer(AutoTokenizer.from_pretrained(folder, trust_remote_code=False)),
    ),
)


def check_image_size(image_size: int | tuple[int, int] | None):
    """Refuse an edge of less than a pixel, with a `ValueError`."""
    if image_size is not None and min(image_size if isinstance(image_size, tuple) else (image_size,)) < 1:
        raise ValueError(f"`image_size` is {image_size}: pass a positive number of pixels.")


def check_strings(texts: list, name: str):
    """Refuse an empty list and what is no string, with a `ValueError` that names the argument."""
    if not texts:
        raise ValueError(f"`{name}` is an empty list: pass strings, or leave it out.")
    for text in texts:
        if not isinstance(text, str):
            raise ValueError(f"`{name}` holds {text!r}: pass a string, or a list of strings.")


__all__ = [
    "HUB_KWARGS",
    "MAX_RESIZED_PIXELS",
    "PROCESSOR_PARTS",
    "check_image_size",
    "check_strings",
    "check_vocabulary",
    "needed_side",
    "try_image_processor",
    "try_tokenizer",
]
