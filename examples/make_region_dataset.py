"""
Make a dataset of regions and their words from a dataset of pictures and their captions, and train a captioner of regions.

    python examples/make_region_dataset.py --model_name_or_path outputs/alignment --dataset_name path/to/photographs \
        --output_dir outputs/regions
    cnnrnn train --dataset_name outputs/regions --encoder_name_or_path microsoft/resnet-50 --output_dir outputs/region_captioner
    python examples/caption_regions.py photo.jpg --model_name_or_path outputs/region_captioner --output regions.png

The alignment model divides each caption into snippets, each of which belongs to a box (a chain MRF,
https://arxiv.org/abs/1412.2306). Each box becomes a picture, with its snippets as captions.
"""

import sys
from pathlib import Path

from tqdm.auto import tqdm

from modeling_cnnrnn.cli.arguments import parse_arguments
from modeling_cnnrnn.cli.errors import user_errors
from modeling_cnnrnn.data.batching import load_stored_image
from modeling_cnnrnn.data.loading import load_split
from modeling_cnnrnn.evaluation.arguments import RegionDatasetArguments
from modeling_cnnrnn.evaluation.region_dataset import known_sentences, write_region_dataset
from modeling_cnnrnn.retrieval.embedding import load_model


def align_rows(model, processor, rows, args, unreadable):
    """Yield each picture with the snippets of its captions; the whole picture is no region."""
    for row in tqdm(rows, desc="Pictures", unit="image"):
        try:
            image = load_stored_image(row["image"])
        except (OSError, ValueError) as error:
            unreadable[row["image_id"]] = error
            continue
        snippets = []
        if captions := known_sentences(processor.tokenizer, row["captions"]):
            aligned = model.align_sentences(image, captions, processor, smoothness=args.smoothness, cells_only=True)
            snippets = [snippet for sentence in aligned for snippet in sentence]
        yield row["image_id"], image, snippets


def main():
    (args,) = parse_arguments([RegionDatasetArguments], __doc__)

    # 1. The alignment model
    model, processor = load_model(args.model_name_or_path, args.model_revision)

    # 2. The regions of each split
    for split in args.split:
        rows = load_split(args, split, args.max_samples)
        unreadable: dict[str, Exception] = {}
        pictures = align_rows(model, processor, rows, args, unreadable)
        folder = Path(args.output_dir) / split
        counts = write_region_dataset(folder, pictures, args.min_score, args.min_words, args.margin)
        print(
            f"{split}: {counts.num_regions} regions with {counts.num_snippets} snippets of {len(rows)} pictures "
            f"({counts.num_left_out} snippets left out, {counts.num_pictures_left_out} pictures without any): {folder}"
        )
        for name, error in unreadable.items():
            print(f"    {name} could not be read: {error}", file=sys.stderr)


if __name__ == "__main__":
    with user_errors():
        main()
