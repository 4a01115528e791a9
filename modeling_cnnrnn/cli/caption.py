"""`cnnrnn caption`: sentences about images, folders and URLs, or about each image of a dataset."""

import json
import sys
from collections.abc import Sequence
from typing import Any

from ..evaluation.arguments import CaptionDatasetArguments, CaptionImagesArguments, GenerationArguments
from .arguments import parse_arguments
from .errors import RUN_AGAIN, user_errors


DESCRIPTION = """
Write sentences about images: files, URLs, and folders with all images below them.

    cnnrnn caption photo.jpg
    cnnrnn caption photographs/ --model_name_or_path outputs/mine --output captions.csv

Without --model_name_or_path it is the captioner that comes with the package, flickr8k-mobilenet: trained on photographs
of Flickr8k, in English, for research and education. Captioners of one vocabulary write one sentence together:

    cnnrnn caption photo.jpg --model_name_or_path outputs/first,outputs/second

Standard output has the sentence, and nothing else; for several images `name: sentence` lines. The exit status is 1 if
an image could not be read. Files of a folder that are not called images are named. To caption a dataset:

    cnnrnn caption --dataset_name user/photographs --model_name_or_path user/captioner --output_dir outputs/captioned
    cnnrnn caption --dataset_name user/photographs --help
"""
DATASET_DESCRIPTION = """
Write sentences about each image of a dataset, of the Hub or a folder, with or without captions of its own.

    cnnrnn caption --dataset_name user/photographs --model_name_or_path user/captioner --output_dir outputs/captioned

The output folder is a dataset with the old columns and generated_text; score, its log-probability; image_error, why
there is no sentence. A run that was stopped resumes with the same command.
On several GPUs: accelerate launch -m modeling_cnnrnn caption --dataset_name ...
"""


def main(arguments: Sequence[str]) -> None:
    """Run the command with the words of the command line after `cnnrnn caption`."""
    program = "cnnrnn caption"
    if _names_dataset(arguments):
        from tqdm.contrib.logging import logging_redirect_tqdm

        with user_errors(RUN_AGAIN), logging_redirect_tqdm():  # lines of the log go above the bar
            kinds: list[Any] = [CaptionDatasetArguments, GenerationArguments]
            caption_dataset(*parse_arguments(kinds, DATASET_DESCRIPTION, arguments, program))
    else:
        with user_errors():
            status = caption_files(
                *parse_arguments([CaptionImagesArguments, GenerationArguments], DESCRIPTION, arguments, program)
            )
        sys.exit(status)


def _names_dataset(words: Sequence[str]) -> bool:
    """Whether the options, or those of a recipe, name a dataset."""
    if words and words[0].endswith(".json"):
        try:
            with open(words[0], encoding="utf-8") as file:
                if "dataset_name" in json.load(file):
                    return True
        except (OSError, ValueError):  # the parser names the error
            pass
    return any(word.partition("=")[0].replace("-", "_") == "__dataset_name" for word in words)


def caption_files(args: CaptionImagesArguments, generation: GenerationArguments) -> int:
    """
    Print sentences about images.

    Returns:
        The exit status: 1 if an image could not be read.

    Raises:
        ValueError: the options do not fit.
        OSError: an image or the captioner is not there.
    """
    import torch
    import transformers
    from tqdm.auto import tqdm

    from ..evaluation.captioners import load_captioner
    from ..evaluation.image_captions import caption_images, check_table, find_images, write_table
    from ..models.error_messages_cnnrnn import printable

    transformers.logging.disable_progress_bar()  # loading the weights takes no time
    transformers.set_seed(generation.seed)
    if args.output is not None:
        check_table(args.output)
    sources = find_images(args.images)
    model, processor = load_captioner(args.model_name_or_path, args.model_revision)
    model = model.to(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))

    rows, unreadable = [], []
    written = caption_images(
        model,
        processor,
        sources,
        args.batch_size,
        generation.prompt,
        generation.num_return_sequences,
        generation.consensus > 0,
        args.region_features,
        args.output is not None,
        **generation.generate_kwargs(processor.tokenizer),
    )
    is_one = len(sources) == 1
    try:
        for item in tqdm(written, "Captions", len(sources), unit="image", file=sys.stderr, disable=is_one):
            rows += item.rows()
            for caption in item.captions:
                tqdm.write(caption if is_one else f"{printable(item.name)}: {caption}", file=sys.stdout)
            if item.error is not None:
                unreadable.append(item)
                tqdm.write(f"{printable(item.name)} could not be read: {item.error}", file=sys.stderr)
    finally:  # what is done is kept, whatever ends the rest
        if args.output is not None and rows:
            write_table(args.output, rows)
    if args.output is not None or (unreadable and not is_one):
        done = f"{len(sources) - len(unreadable)} of {len(sources)} images are captioned"
        print(f"{done}: {args.output}" if args.output else f"{done}.", file=sys.stderr)
    return 1 if unreadable else 0


def caption_dataset(args: CaptionDatasetArguments, generation: GenerationArguments) -> None:
    """
    Caption a dataset as the options say, and leave it in the output folder.

    Raises:
        ValueError: the options do not fit each other, the dataset or the output folder.
        OSError: the dataset or the captioner is not there.
    """
    import logging
    import time
    from datetime import timedelta
    from pathlib import Path

    import datasets
    import torch
    from accelerate import InitProcessGroupKwargs
    from tqdm.auto import tqdm

    from ..evaluation.captioners import load_captioner
    from ..evaluation.dataset_captions import caption_parts, find_missing_parts, load_image_rows, open_regions
    from ..evaluation.processes import create_accelerator
    from ..hub.push_dataset import check_dataset_options, finish_dataset
    from ..models.pipeline_cnnrnn import ImageToTextPipeline

    logging.basicConfig(format="%(message)s")
    logger = logging.getLogger(__name__)
    # processes wait for the first to have read the dataset, and at the end for the slowest
    waiting = InitProcessGroupKwargs(timeout=timedelta(days=1))
    accelerator = create_accelerator(args.mixed_precision, kwargs_handlers=[waiting])
    if not accelerator.is_main_process:
        datasets.disable_progress_bars()
    check_dataset_options(args, generation)
    output_dir = Path(args.output_dir)

    with accelerator.main_process_first():
        rows = load_image_rows(args, generation.num_return_sequences)
    sizes = ", ".join(f"{split} ({len(split_rows)} rows)" for split, split_rows in rows.splits.items())
    logger.info("%s: images from `%s`; %s.", args.dataset_name, rows.column, sizes)

    model, processor = load_captioner(args.model_name_or_path, args.model_revision, dtype=torch.float32)
    captioner = ImageToTextPipeline(model, processor, device=accelerator.device)

    regions = open_regions(rows, captioner, args.region_features)
    missing = find_missing_parts(output_dir, rows, captioner, args, generation, accelerator)
    if done := len(rows.parts(args.rows_per_part)) - len(missing):
        logger.info("%d of %d parts are there already.", done, done + len(missing))
    mine = missing[accelerator.process_index :: accelerator.num_processes]

    started = time.perf_counter()
    share = f", process 1 of {accelerator.num_processes}" if accelerator.num_processes > 1 else ""
    total = sum(part.last - part.first for part in mine)
    bar = tqdm(desc=f"Captions{share}", total=total, unit="image", disable=not accelerator.is_main_process)
    datasets.disable_progress_bars()  # from here on it would show one for each small file
    for num_rows in caption_parts(output_dir, rows, mine, captioner, args, generation, accelerator, regions):
        bar.update(num_rows)
    bar.close()
    accelerator.wait_for_everyone()
    if not accelerator.is_main_process:
        return

    if missing:
        seconds, num_rows = time.perf_counter() - started, sum(part.last - part.first for part in missing)
        logger.info("%d rows in %.0f s, %.1f images per second.", num_rows, seconds, num_rows / seconds)
    finish_dataset(output_dir, rows, args, generation, accelerator)
