"""
Score a captioner on images that it has never seen, and make a page of them to look at.

    python examples/evaluate_captioner.py --model_name_or_path outputs/shapes --dataset_name shapes --split test \
        --output_dir outputs/shapes/evaluation

Writes into the output folder: eval_results.json, the scores with the whole protocol; captions_results.json and
captions_references.json in COCO's format, which `cnnrnn score` scores again; per_image.jsonl; gallery.html; pictures/, a few
of the best, the middle and the worst by CIDEr, for the model card. METEOR and SPICE (`--metrics bleu rouge cider meteor
spice`) need Java and `pip install modeling-cnnrnn[java]`. `cnnrnn evaluate` does the same in one call.
"""

import logging
from dataclasses import asdict
from typing import Any

import torch
from accelerate.utils import set_seed

from modeling_cnnrnn.cli.arguments import parse_arguments
from modeling_cnnrnn.cli.errors import user_errors
from modeling_cnnrnn.cli.memory import keep_heap
from modeling_cnnrnn.data.batching import CaptionDataset
from modeling_cnnrnn.data.loading import load_split
from modeling_cnnrnn.data.region_features import check_reader, open_region_features
from modeling_cnnrnn.data.shapes import scenes_of
from modeling_cnnrnn.evaluation.arguments import EvaluationArguments, SearchArguments
from modeling_cnnrnn.evaluation.captioners import load_captioner, title_of
from modeling_cnnrnn.evaluation.captions import evaluate_captioner
from modeling_cnnrnn.evaluation.processes import create_accelerator
from modeling_cnnrnn.evaluation.provenance import provenance
from modeling_cnnrnn.evaluation.results import score_evaluation, write_evaluation
from modeling_cnnrnn.files import check_writable
from modeling_cnnrnn.training.features import compute_image_features


logger = logging.getLogger("modeling_cnnrnn.examples.evaluate_captioner")


def main():
    keep_heap()
    args, search = parse_arguments([EvaluationArguments, SearchArguments], __doc__)
    logging.basicConfig(format="%(message)s")
    accelerator = create_accelerator(args.mixed_precision)
    set_seed(args.seed)
    check_writable(args.output_dir)

    # 1. The images and their references
    with accelerator.main_process_first():
        rows = load_split(args, args.split, args.max_eval_samples)
    references = rows["captions"][:]

    # 2. The captioner
    model, processor = load_captioner(args.model_name_or_path, args.model_revision, dtype=torch.float32)
    model = accelerator.prepare_model(model, evaluation_mode=True).eval()

    # 3. Examples with all captions of an image; with regions of a detector, or with features that a training has stored
    feature_size = getattr(model.config, "feature_size", None)
    features: Any = None if feature_size is None else open_region_features(rows, args.region_features)
    check_reader(feature_size, args.region_features, features)
    broken = None if features is None else features.missing
    if features is None and args.features_cache_dir is not None:
        with accelerator.main_process_first(), accelerator.autocast():
            features, broken = compute_image_features(model, processor, rows, args.features_cache_dir)
    captions_per_image = max(len(captions) for captions in references)
    dataset = CaptionDataset(rows, processor, captions_per_image, image_features=features, broken=broken)
    dataset.check(args.split)
    logger.info("%d images of %s, split %s.", len(dataset), args.dataset_name, args.split)

    # 4. One pass over the images: the loss, and sentences for each beam size
    evaluation = evaluate_captioner(
        model,
        dataset,
        accelerator,
        args.per_device_eval_batch_size,
        args.dataloader_num_workers,
        generation=args.generation(search, processor.tokenizer),
        with_attention=args.gallery_size > 0,
    )
    if not accelerator.is_main_process:
        return

    # 5. The scores, and all files
    scored = dict(
        zip(args.num_beams, score_evaluation(evaluation, references, args.metrics, scenes_of(rows)), strict=True)
    )
    for num_beams, result in scored.items():
        logger.info(
            "\nBeam %d, %.0f images per second:\n%s", num_beams, result.content["images_per_second"], result.scores
        )
    protocol = {
        **asdict(args),
        **args.preferences(model.generation_config),
        **asdict(search),
        **provenance(accelerator),
    }
    title = f"{title_of(args.model_name_or_path)} on {args.dataset_name}, {args.split}"
    files = write_evaluation(args.output_dir, dataset, evaluation, scored, protocol, args.gallery_size, title)
    logger.info("\nWritten: %s", " ".join(map(str, files)))


if __name__ == "__main__":
    with user_errors():
        main()
