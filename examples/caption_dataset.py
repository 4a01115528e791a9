"""
Write a sentence about each image of a dataset: of the Hub, a folder, any that train_captioner.py takes, with or without
captions of its own.

    python examples/caption_dataset.py --model_name_or_path outputs/shapes --dataset_name user/photographs \
        --output_dir outputs/captioned

On several GPUs `accelerate launch --multi_gpu examples/caption_dataset.py ...`, on several processes of a CPU `torchrun
--nproc_per_node 2 examples/caption_dataset.py ...`: the same rows in the same order. A run that was stopped or killed resumes
with the same command, on any number of processes. `--push_to_hub --hub_dataset_id user/name` pushes the result.
`cnnrnn caption --dataset_name user/photographs` does the same in one call.

The output folder is a dataset, `datasets.load_dataset("outputs/captioned")`, with the columns of the old one and
`generated_text`; `score`, its log-probability; `image_error`, why there is no sentence; and with `--num_return_sequences`
above 1 `generated_texts` and `scores`, best first.
"""

import logging
import time
from datetime import timedelta
from pathlib import Path

import datasets
import torch
from accelerate import InitProcessGroupKwargs
from tqdm.auto import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from modeling_cnnrnn import CnnRnnForConditionalGeneration, CnnRnnProcessor, ImageToTextPipeline
from modeling_cnnrnn.cli.arguments import parse_arguments
from modeling_cnnrnn.cli.errors import RUN_AGAIN, user_errors
from modeling_cnnrnn.cli.memory import keep_heap
from modeling_cnnrnn.evaluation.arguments import CaptionDatasetArguments, GenerationArguments
from modeling_cnnrnn.evaluation.dataset_captions import (
    caption_parts,
    find_missing_parts,
    load_image_rows,
    open_regions,
)
from modeling_cnnrnn.evaluation.processes import create_accelerator
from modeling_cnnrnn.hub.push_dataset import check_dataset_options, finish_dataset


logger = logging.getLogger("modeling_cnnrnn.examples.caption_dataset")


def main():
    keep_heap()
    args, generation = parse_arguments([CaptionDatasetArguments, GenerationArguments], __doc__)
    logging.basicConfig(format="%(message)s")
    # processes wait for the first to have read the dataset, and at the end for the slowest
    waiting = InitProcessGroupKwargs(timeout=timedelta(days=1))
    accelerator = create_accelerator(args.mixed_precision, kwargs_handlers=[waiting])
    if not accelerator.is_main_process:
        datasets.disable_progress_bars()
    check_dataset_options(args, generation)
    output_dir = Path(args.output_dir)

    # 1. The rows as they are, and the column of their images
    with accelerator.main_process_first():
        rows = load_image_rows(args, generation.num_return_sequences)
    sizes = ", ".join(f"{split} ({len(split_rows)} rows)" for split, split_rows in rows.splits.items())
    logger.info("%s: images from `%s`; %s.", args.dataset_name, rows.column, sizes)

    # 2. The captioner
    revision = {"revision": args.model_revision}
    processor = CnnRnnProcessor.from_pretrained(args.model_name_or_path, **revision)
    model = CnnRnnForConditionalGeneration.from_pretrained(args.model_name_or_path, dtype=torch.float32, **revision)
    captioner = ImageToTextPipeline(model.eval(), processor, device=accelerator.device)

    # 3. The parts that are not there yet, shared by the processes
    regions = open_regions(rows, captioner, args.region_features)
    missing = find_missing_parts(output_dir, rows, captioner, args, generation, accelerator)
    if done := len(rows.parts(args.rows_per_part)) - len(missing):
        logger.info("%d of %d parts are there already.", done, done + len(missing))
    mine = missing[accelerator.process_index :: accelerator.num_processes]

    # 4. Sentences, batch by batch
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

    # 5. The whole: a card that names the splits, the images that could not be read, the Hub
    if missing:
        seconds, num_rows = time.perf_counter() - started, sum(part.last - part.first for part in missing)
        logger.info("%d rows in %.0f s, %.1f images per second.", num_rows, seconds, num_rows / seconds)
    finish_dataset(output_dir, rows, args, generation, accelerator)


if __name__ == "__main__":
    with user_errors(RUN_AGAIN), logging_redirect_tqdm():  # lines of the log go above the bar
        main()
