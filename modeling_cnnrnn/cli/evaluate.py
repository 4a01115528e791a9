"""`cnnrnn evaluate`: score a captioner on a dataset."""

from collections.abc import Sequence

from ..evaluation.arguments import EvaluationArguments
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
        (args,) = parse_arguments([EvaluationArguments], DESCRIPTION, arguments, "cnnrnn evaluate")
        evaluate(args)


def evaluate(args: EvaluationArguments) -> None:
    """
    Evaluate a captioner as the options say, and write all files into the output folder.

    Raises:
        ValueError: the dataset, its split or the captioner does not fit.
        OSError: the dataset or the captioner is not there.
    """
    import logging
    from dataclasses import asdict
    from pathlib import Path

    import torch
    import transformers
    from accelerate import Accelerator
    from accelerate.utils import set_seed

    from ..data.batching import CaptionDataset
    from ..data.loading import load_split
    from ..data.shapes import scenes_of
    from ..evaluation.captions import evaluate_captioner
    from ..evaluation.provenance import provenance
    from ..evaluation.results import score_evaluation, write_evaluation
    from ..models.modeling_cnnrnn import CnnRnnForConditionalGeneration
    from ..models.processing_cnnrnn import CnnRnnProcessor
    from ..training.features import compute_image_features

    logging.basicConfig(format="%(message)s")
    logger = logging.getLogger(__name__)
    # several processes do not find each other on a CPU unless it is named
    accelerator = Accelerator(cpu=not torch.accelerator.is_available(), mixed_precision=args.mixed_precision)
    logging.getLogger("modeling_cnnrnn").setLevel(logging.INFO if accelerator.is_main_process else logging.ERROR)
    transformers.logging.disable_progress_bar()  # loading the weights takes no time
    set_seed(args.seed)

    with accelerator.main_process_first():
        rows = load_split(args, args.split, args.max_eval_samples)
    references = rows["captions"][:]

    revision = {"revision": args.model_revision}
    processor = CnnRnnProcessor.from_pretrained(args.model_name_or_path, **revision)
    model = CnnRnnForConditionalGeneration.from_pretrained(args.model_name_or_path, dtype=torch.float32, **revision)
    model = accelerator.prepare_model(model, evaluation_mode=True).eval()

    features, broken = None, None
    if args.features_cache_dir is not None:
        with accelerator.main_process_first(), accelerator.autocast():
            features, broken = compute_image_features(model, processor, rows, args.features_cache_dir)
    captions_per_image = max(len(captions) for captions in references)
    dataset = CaptionDataset(rows, processor, captions_per_image, image_features=features, broken=broken)
    logger.info("%d images of %s, split %s.", len(dataset), args.dataset_name, args.split)

    evaluation = evaluate_captioner(
        model,
        dataset,
        accelerator,
        args.per_device_eval_batch_size,
        args.dataloader_num_workers,
        generation=args.generation(),
        with_attention=args.gallery_size > 0,
    )
    if not accelerator.is_main_process:
        return

    scored = dict(
        zip(args.num_beams, score_evaluation(evaluation, references, args.metrics, scenes_of(rows)), strict=True)
    )
    for num_beams, result in scored.items():
        logger.info(
            "\nBeam %d, %.0f images per second:\n%s", num_beams, result.content["images_per_second"], result.scores
        )
    protocol = {**asdict(args), **provenance(accelerator)}
    title = f"{Path(args.model_name_or_path).name} on {args.dataset_name}, {args.split}"
    files = write_evaluation(args.output_dir, dataset, evaluation, scored, protocol, args.gallery_size, title)
    logger.info("\nWritten: %s", " ".join(map(str, files)))
