"""`cnnrnn evaluate`: score a captioner on a dataset."""

import logging
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from ..evaluation.arguments import EvaluationArguments, SearchArguments
from .arguments import parse_arguments
from .errors import user_errors


DESCRIPTION = """
Score a captioner on images that it has never seen, and make a page of them to look at.

    cnnrnn evaluate --model_name_or_path outputs/shapes --dataset_name shapes --split test \\
        --num_beams 1 3 --output_dir outputs/shapes/evaluation

The output folder gets eval_results.json (scores and protocol), captions_results.json and captions_references.json
(for cnnrnn score), per_image.jsonl, gallery.html, and pictures/ for the model card.
On several GPUs: accelerate launch -m modeling_cnnrnn evaluate ...
"""


def main(arguments: Sequence[str]) -> None:
    """Run the command with the words of the command line after `cnnrnn evaluate`."""
    with user_errors():
        kinds: list[Any] = [EvaluationArguments, SearchArguments]
        evaluate(*parse_arguments(kinds, DESCRIPTION, arguments, "cnnrnn evaluate"))


def evaluate(args: EvaluationArguments, search: SearchArguments) -> None:
    """
    Evaluate a captioner as the options say, and write all files into the output folder.

    Raises:
        ValueError: the dataset, its split or the captioner does not fit.
        OSError: the dataset or the captioner is not there.
    """
    import torch
    from accelerate.utils import set_seed

    from ..data.batching import CaptionDataset
    from ..data.loading import load_split
    from ..data.shapes import scenes_of
    from ..evaluation.captioners import load_captioner, title_of
    from ..evaluation.captions import evaluate_captioner
    from ..evaluation.processes import create_accelerator
    from ..evaluation.provenance import provenance
    from ..evaluation.results import score_evaluation, write_evaluation
    from ..files import check_writable

    logging.basicConfig(format="%(message)s")
    logger = logging.getLogger(__name__)
    accelerator = create_accelerator(args.mixed_precision)
    set_seed(args.seed)
    check_writable(args.output_dir)

    with accelerator.main_process_first():
        rows = load_split(args, args.split, args.max_eval_samples)
    references = rows["captions"][:]

    model, processor = load_captioner(args.model_name_or_path, args.model_revision, dtype=torch.float32)
    model = accelerator.prepare_model(model, evaluation_mode=True).eval()

    stored = _stored_features(model, processor, rows, args, accelerator)
    dataset = CaptionDataset(rows, processor, max(map(len, references)), **stored)
    dataset.check(args.split)
    logger.info("%d images of %s, split %s.", len(dataset), args.dataset_name, args.split)

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

    results = score_evaluation(evaluation, references, args.metrics, scenes_of(rows))
    scored = dict(zip(args.num_beams, results, strict=True))
    for num_beams, result in scored.items():
        speed = result.content["images_per_second"]
        logger.info("\nBeam %d, %.0f images per second:\n%s", num_beams, speed, result.scores)
    protocol = {
        **asdict(args),
        **args.preferences(model.generation_config),
        **asdict(search),
        **provenance(accelerator),
    }
    title = f"{title_of(args.model_name_or_path)} on {args.dataset_name}, {args.split}"
    files = write_evaluation(args.output_dir, dataset, evaluation, scored, protocol, args.gallery_size, title)
    logger.info("\nWritten: %s", " ".join(map(str, files)))


def _stored_features(model, processor, rows, args: EvaluationArguments, accelerator) -> dict[str, Any]:
    """Open the regions that a detector has found, or what the CNN sees in the images, which is computed and stored once."""
    from ..data.region_features import check_reader, open_region_features

    feature_size = getattr(model.config, "feature_size", None)  # an ensemble has none
    regions = open_region_features(rows, args.region_features) if feature_size is not None else None
    check_reader(feature_size, args.region_features, regions)
    if regions is not None:
        return {"image_features": regions, "broken": regions.missing}
    if not args.features_cache_dir:
        return {}
    from ..training.features import compute_image_features

    with accelerator.main_process_first(), accelerator.autocast():
        features, broken = compute_image_features(model, processor, rows, str(args.features_cache_dir))
    return {"image_features": features, "broken": broken}
