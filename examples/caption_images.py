"""
Write a sentence about each of your images: a folder, files or URLs.

    python examples/caption_images.py --model_name_or_path outputs/shapes --images photographs/ --output captions.csv

The sentences are printed, and written with their file names as CSV, JSONL or Parquet, by the ending of `--output`.
Files that cannot be read, or are not called images, are named, and the rest is done. `cnnrnn caption photographs/` does the same in one call.
"""

import sys

import torch
import transformers
from tqdm.auto import tqdm
from transformers import set_seed

from modeling_cnnrnn.cli.arguments import parse_arguments
from modeling_cnnrnn.cli.errors import user_errors
from modeling_cnnrnn.cli.memory import keep_heap
from modeling_cnnrnn.evaluation.arguments import CaptionImagesArguments, GenerationArguments
from modeling_cnnrnn.evaluation.captioners import load_captioner
from modeling_cnnrnn.evaluation.image_captions import caption_images, check_table, find_images, write_table
from modeling_cnnrnn.models.error_messages_cnnrnn import printable


def main():
    keep_heap()
    args, generation = parse_arguments([CaptionImagesArguments, GenerationArguments], __doc__)
    transformers.logging.disable_progress_bar()  # loading the weights takes no time
    set_seed(generation.seed)
    if args.output is not None:
        check_table(args.output)

    # 1. The images and the captioner
    sources = find_images(args.images)
    model, processor = load_captioner(args.model_name_or_path, args.model_revision)
    model = model.to(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))

    # 2. Sentences, batch by batch
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
    try:
        for item in tqdm(written, desc="Captions", unit="image", total=len(sources), file=sys.stderr):
            rows += item.rows()
            for caption in item.captions:
                tqdm.write(f"{printable(item.name)}: {caption}", file=sys.stdout)
            if item.error is not None:
                unreadable.append(item)

    # 3. The table, and what could not be read
    finally:  # what is done is kept, whatever ends the rest
        if args.output is not None and rows:
            write_table(args.output, rows)
            print(f"{len(rows)} captions of {len(sources) - len(unreadable)} images are in {args.output}")
    if unreadable:
        print(f"{len(unreadable)} of {len(sources)} images could not be read:", file=sys.stderr)
        for item in unreadable:
            print(f"    {printable(item.name)}: {item.error}", file=sys.stderr)
    if not rows:
        raise ValueError("None of the images could be read.")


if __name__ == "__main__":
    with user_errors():
        main()
