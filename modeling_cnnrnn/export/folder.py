"""The folder of an exported captioner."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..evaluation.image_captions import find_images
from ..files import whole_folder, write_text
from ..models.modeling_cnnrnn import CnnRnnForConditionalGeneration
from ..models.processing_cnnrnn import CnnRnnProcessor
from .browser import write_page
from .graphs import export_graphs
from .onnx_model import generation_options, onnx_config
from .preprocessing import bytes_alone, check_pixels, measure_values, read_geometry
from .quantization import quantize_computation, quantize_weights
from .words import check_texts, token_texts


MAX_CALIBRATION_IMAGES = 128


def export_captioner(
    model_name_or_path: str,
    output_dir: str | Path,
    dtype: str | None = None,
    calibration_images: Sequence[str] = (),
    web: bool = False,
    revision: str = "main",
) -> Path:
    """
    Write a captioner as ONNX graphs with `captioner.py`, which writes its sentences without torch.

    Args:
        model_name_or_path: a captioner, of the Hub or a folder.
        output_dir: a folder that is new, empty or of an earlier export, which is replaced when all went well.
        dtype: `"float32"`, the default; `"int8"`, the computation in 8 bits; `"int8-weights"`, the weights alone, the
            default with `web`.
        calibration_images: files and folders of photographs, of which `"int8"` learns the ranges of the CNN's values. At
            most 128 of them are read, evenly spread.
        web: whether to write the page for browsers.

    Returns:
        The folder.

    Raises:
        ValueError: the folder holds something else; the model is no captioner, or its image processor, tokenizer or
            generation config is none that an export knows; `"int8"` without images.
        OSError: the model or an image cannot be read, the folder cannot be written, or onnxruntime-web not be downloaded.
    """
    output_dir = Path(output_dir)
    dtype = dtype or ("int8-weights" if web else "float32")
    check_folder(output_dir)
    if dtype == "int8" and not calibration_images:
        raise ValueError(
            "`dtype` is int8, and `calibration_images` names no photographs: pass some 100 that are like those to be captioned."
        )
    images = find_images(calibration_images)
    images = images[:: -(-len(images) // MAX_CALIBRATION_IMAGES) or 1]
    processor = CnnRnnProcessor.from_pretrained(model_name_or_path, revision=revision)
    model = CnnRnnForConditionalGeneration.from_pretrained(model_name_or_path, revision=revision, dtype=torch.float32)
    model.eval()
    with whole_folder(output_dir) as folder:
        write_captioner(model, processor, folder, dtype)
        from .captioner import Captioner

        captioner = Captioner(folder)
        check_pixels(captioner, CnnRnnProcessor.from_pretrained(folder), processor)
        check_texts(captioner, processor)
        if dtype == "int8":
            pixels = (captioner.load_pixels(image) for image in images)
            quantize_computation(folder / "encoder.onnx", folder / "decoder.onnx", pixels)
        if web:
            write_page(folder)
    return output_dir


def check_folder(folder: Path) -> None:
    """Raise a `ValueError` if a folder holds something else than an earlier export."""
    if not folder.exists():
        return
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else [folder.name]
    if names and not (folder / "captioner.json").is_file():
        raise ValueError(
            f"`output_dir` '{folder}' holds something else ({', '.join(names[:3])}{', ...' if names[3:] else ''}): pass a new "
            "folder, or that of an earlier export."
        )


def write_captioner(
    model: CnnRnnForConditionalGeneration, processor: CnnRnnProcessor, folder: Path, dtype: str = "float32"
) -> None:
    """Write the graphs, `captioner.py`, `captioner.json` and what `from_pretrained` reads."""
    generation = generation_options(model.generation_config)
    geometry = read_geometry(processor)
    image_size = geometry["crop_size"] or geometry["size"]
    if isinstance(image_size, int):
        raise ValueError(
            f"`image_processor` resizes the shortest edge to {image_size} and does not crop, so that images have different "
            "sizes: an export needs `do_center_crop=True`, or a height and a width."
        )
    height, width = image_size
    export_graphs(model, (height, width), *measure_values(processor), folder)
    if dtype == "int8-weights":
        for name in ("encoder.onnx", "decoder.onnx"):
            quantize_weights(folder / name)
    settings: dict[str, Any] = {
        "dtype": dtype,
        **geometry,
        "image_size": [height, width],
        "cell_centers": [
            [round(center, 5) for center in axis.tolist()] for axis in model.get_encoder().cell_centers(height, width)
        ],
        "generation": generation,
        **token_texts(processor, model.config.vocab_size),
    }
    write_text(folder / "captioner.json", json.dumps(settings, ensure_ascii=False))
    onnx_config(model.config).save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    beside = bytes_alone(processor)
    for part in (beside.image_processor, beside.tokenizer):  # without the code of a repository
        part.save_pretrained(folder)
    shutil.copyfile(Path(__file__).with_name("captioner.py"), folder / "captioner.py")
