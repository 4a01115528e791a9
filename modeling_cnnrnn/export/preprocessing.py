"""What an image processor does to pictures, as numbers that a program without transformers can follow."""

from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.image_processing_utils import get_size_dict

from ..models.processing_cnnrnn import DRAFT_MARGIN, CnnRnnProcessor
from ..models.processor_checks_cnnrnn import needed_side


# the flags of the image processors of transformers that change values, not places
VALUE_FLAGS = ("do_rescale", "do_normalize", "include_top", "rescale_offset")


def read_geometry(processor: CnnRnnProcessor) -> dict[str, Any]:
    """
    Read how an image processor resizes and crops.

    Returns:
        `size`, height and width or the length of the shortest edge; `crop_size`, height and width or `None`; `resample`,
        the filter of PIL; `min_side`, the length of side that a JPEG file keeps when it is decoded at a part of its size.

    Raises:
        ValueError: it resizes in another way.
    """
    image_processor = processor.image_processor
    size = dict(
        get_size_dict(image_processor.size, default_to_square=getattr(image_processor, "default_to_square", True))
    )
    crop = getattr(image_processor, "crop_size", None) if getattr(image_processor, "do_center_crop", False) else None
    crop = [crop["height"], crop["width"]] if crop else None
    crop_pct, edge = getattr(image_processor, "crop_pct", None), size.get("shortest_edge")
    is_square = False
    if crop_pct and edge:  # ConvNeXt
        is_square = edge >= 384
        crop, edge = (None, edge) if is_square else ([edge, edge], int(edge / crop_pct))
    if not getattr(image_processor, "do_resize", True) or not (edge or size.get("height")):
        raise ValueError(
            f"`image_processor` resizes to {size}: an export needs a height and a width, or the length of the shortest edge "
            "with a crop."
        )
    shape = edge if edge and not is_square else [size.get("height") or edge, size.get("width") or edge]
    return {
        "size": shape,
        "crop_size": crop,
        "resample": int(getattr(image_processor, "resample", None) or 2),
        "min_side": needed_side(image_processor, DRAFT_MARGIN),
    }


def measure_values(processor: CnnRnnProcessor) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Measure what an image processor makes of the values of pixels: `pixel_values` are `scale * byte + offset`.

    Returns:
        Scale and offset of each channel, `(3,)`.
    """
    black, white = (
        processor(images=Image.new("RGB", (64, 64), color), return_tensors="pt").pixel_values[0].double()
        for color in ("black", "white")
    )
    offset = black.mean(dim=(1, 2))
    return ((white.mean(dim=(1, 2)) - offset) / 255).float(), offset.float()


def bytes_alone(processor: CnnRnnProcessor) -> CnnRnnProcessor:
    """Make a processor that resizes and crops as another one, and leaves the values of the pixels as they are."""
    image_processor = type(processor.image_processor).from_dict(processor.image_processor.to_dict())
    for flag in VALUE_FLAGS:
        if hasattr(image_processor, flag):
            setattr(image_processor, flag, False)
    return CnnRnnProcessor(image_processor, processor.tokenizer)


def check_pixels(captioner: Any, processor: CnnRnnProcessor, whole: CnnRnnProcessor) -> None:
    """
    Compare the pixels of an exported captioner with those of its processors.

    Args:
        captioner: the exported captioner.
        processor: the processor beside it, of [`bytes_alone`].
        whole: the processor of the model.

    Raises:
        ValueError: they differ: the image processor does more than resize, crop and normalize.
    """
    scale, offset = measure_values(whole)
    noise = np.random.default_rng(0).integers(0, 256, (91, 157, 3), dtype=np.uint8)
    for image in (Image.fromarray(noise), Image.fromarray(noise.transpose(1, 0, 2))):
        pixels = captioner.load_pixels(image)
        bytes_beside = processor(images=image, return_tensors="np").pixel_values[0].transpose(1, 2, 0)
        expected = whole(images=image, return_tensors="np").pixel_values[0].transpose(1, 2, 0)
        computed = pixels * scale.numpy() + offset.numpy()
        is_equal = pixels.shape == expected.shape and np.abs(computed - expected).max() < 1e-4 * np.abs(expected).max()
        if not is_equal or not np.array_equal(pixels, bytes_beside):
            raise ValueError(
                f"`image_processor` is a {type(whole.image_processor).__name__} that does more than resize, crop at the "
                "centre and normalize: use `CnnRnnProcessor.from_image_size`, or caption with transformers."
            )
