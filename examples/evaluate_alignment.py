"""
Score alignments on images that they have never seen: retrieval in both directions, and a page to look at.

    python examples/evaluate_alignment.py --model_name_or_path outputs/alignment --dataset_name photographs --split test \
        --output_dir outputs/alignment/evaluation

Several models are an ensemble, whose scores are averaged. `--hub_split train` lowers the scores of captions that fit many images
of that split (CSLS), which changes the order of captions alone; then those of images that fit many of its captions.
`--captioner_name_or_path` ranks the first hundred results of each query again by a captioner. `--fold_size 1000` is the 1K
protocol on COCO's 5,000 images, without it 5K.

Writes into the output folder: eval_results.json, the scores with the whole protocol, and gallery.html, each image with the
caption that comes first for it.
"""

import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import set_seed

from modeling_cnnrnn import (
    CnnRnnAlignmentProcessor,
    CnnRnnForConditionalGeneration,
    CnnRnnForImageTextRetrieval,
    CnnRnnProcessor,
)
from modeling_cnnrnn.cli.arguments import parse_arguments
from modeling_cnnrnn.cli.errors import user_errors
from modeling_cnnrnn.data.arguments import DatasetArguments
from modeling_cnnrnn.data.batching import CaptionDataset, load_stored_image
from modeling_cnnrnn.data.loading import load_split
from modeling_cnnrnn.evaluation.alignment_scores import flat_metrics, score_dataset
from modeling_cnnrnn.evaluation.gallery import GalleryRow, write_gallery
from modeling_cnnrnn.evaluation.processes import create_accelerator
from modeling_cnnrnn.evaluation.provenance import provenance
from modeling_cnnrnn.evaluation.reranking import caption_log_probs, first_of, reranked_metrics
from modeling_cnnrnn.files import write_json
from modeling_cnnrnn.metrics.retrieval import less_hubs
from modeling_cnnrnn.training.features import compute_image_features


CAPTIONS_NEAR_AN_IMAGE, IMAGE_WEIGHT = 50, 0.5  # what a common image is worth less: half, as in CSLS, of its mean score

logger = logging.getLogger("modeling_cnnrnn.examples.evaluate_alignment")


@dataclass
class AlignmentEvaluationArguments(DatasetArguments):
    """Options of the evaluation."""

    model_name_or_path: list[str] = field(
        kw_only=True, metadata={"help": "Alignments to score, of the Hub or folders; several are an ensemble."}
    )
    split: str = field(default="test", metadata={"help": "Split to evaluate on."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Evaluate on this many images at most."})
    fold_size: int | None = field(default=None, metadata={"help": "Average over folds of this many images."})
    hub_split: str | None = field(
        default=None, metadata={"help": "Split that tells which captions and images fit everything."}
    )
    hub_samples: int = field(default=500, metadata={"help": "Images of `hub_split` to use."})
    captioner_name_or_path: str | None = field(
        default=None, metadata={"help": "Captioner that ranks the first results again, of the Hub or a folder."}
    )
    captioner_weights: list[float] = field(
        default_factory=lambda: [0.003, 0.01],
        metadata={"help": "Weights of a nat of the captioner's beside the scores: of image to text, of text to image."},
    )
    num_reranked: int = field(default=100, metadata={"help": "Results of a query that the captioner ranks again."})
    features_cache_dir: str | None = field(default=None, metadata={"help": "Folder to keep the image features in."})
    gallery_size: int = field(default=200, metadata={"help": "Pictures on the page gallery.html; 0 writes no page."})
    per_device_eval_batch_size: int = field(default=50, metadata={"help": "Images in a batch on each device."})
    mixed_precision: str = field(default="no", metadata={"help": "Precision of the computation: no, bf16 or fp16."})
    output_dir: str = field(default="outputs/evaluation", metadata={"help": "Folder of the results."})
    seed: int = field(default=42, metadata={"help": "Seed of all random numbers."})


def main():
    (args,) = parse_arguments([AlignmentEvaluationArguments], __doc__)
    logging.basicConfig(format="%(message)s")
    accelerator = create_accelerator(args.mixed_precision)
    set_seed(args.seed)

    # 1. The images, all captions of each, and images that tell which captions fit everything
    rows = load_split(args, args.split, args.max_eval_samples)
    others = load_split(args, args.hub_split, args.hub_samples) if args.hub_split else None

    # 2. Each model scores all images with all captions; the scores of several are averaged
    scored = [score(args, accelerator, name, rows, others) for name in args.model_name_or_path]
    dataset, found, _ = scored[-1]
    total: Any = np.mean([scores.scores for _, scores, _ in scored], axis=0)
    counts = found.captions_per_image
    texts = [caption for row in found.rows for caption in rows["captions"][row]]
    if len(texts) != total.shape[1]:
        raise ValueError(
            "A caption has no word that the models know: leave it out of the dataset, to compare with others."
        )

    # 3. The metrics; then again with the order of captions corrected, and with the captioner's opinion
    results: dict[str, Any] = {"alignment": flat_metrics(total, counts, args.fold_size)}
    if others is not None:
        total = less_hubs(total, np.mean([hubs["images"] for _, _, hubs in scored], axis=0))
        results["less hubs"] = flat_metrics(total, counts, args.fold_size)
        near = np.mean([hubs["captions"] for _, _, hubs in scored], axis=0)
        total = less_hubs(total.T, near.T, min(CAPTIONS_NEAR_AN_IMAGE, near.shape[1]), IMAGE_WEIGHT).T
        results["less hubs both ways"] = flat_metrics(total, counts, args.fold_size)
    if args.captioner_name_or_path:
        reader = CnnRnnProcessor.from_pretrained(args.captioner_name_or_path)
        captioner = CnnRnnForConditionalGeneration.from_pretrained(args.captioner_name_or_path)
        captioner = captioner.to(accelerator.device).eval()
        pairs = np.logical_or(*first_of(total, args.num_reranked).values())
        images = prepare(args, accelerator, rows, captioner, reader)
        with accelerator.autocast():
            log_probs = caption_log_probs(captioner, images, found.rows, texts, pairs)
        results["reranked"] = reranked_metrics(total, log_probs, counts, args.captioner_weights, args.num_reranked)
    for name, values in results.items():
        logger.info("%s: %s", name, ", ".join(f"{metric} {value:.1f}" for metric, value in values.items()))

    # 4. The files
    if not accelerator.is_main_process:
        return
    content = {**results, "num_images": len(counts), "num_captions": len(texts), "left_out": found.broken}
    write_json(Path(args.output_dir) / "eval_results.json", content | asdict(args) | provenance(accelerator))
    if args.gallery_size:
        title = f"The caption of {len(texts)} that comes first for each image"
        page = [gallery_row(i, dataset, found, total[i], texts) for i in range(min(len(counts), args.gallery_size))]
        write_gallery(Path(args.output_dir) / "gallery.html", page, title, results["alignment"])


def prepare(args: AlignmentEvaluationArguments, accelerator, rows, model, processor) -> CaptionDataset:
    """Make the examples of a model: all captions of each image, which it sees or whose stored features it reads."""
    features, broken = None, None
    if args.features_cache_dir is not None:
        with accelerator.main_process_first(), accelerator.autocast():
            features, broken = compute_image_features(model, processor, rows, args.features_cache_dir)
    most = max(len(captions) for captions in rows["captions"][:])
    return CaptionDataset(rows, processor, most, max_length=1000, image_features=features, broken=broken)


def score(args: AlignmentEvaluationArguments, accelerator, name: str, rows, others) -> tuple:
    """Score images with their captions by a model; if there are others, other images with the captions, and the reverse."""
    processor = CnnRnnAlignmentProcessor.from_pretrained(name)
    model = CnnRnnForImageTextRetrieval.from_pretrained(name, dtype=torch.float32).to(accelerator.device).eval()
    dataset = prepare(args, accelerator, rows, model, processor)
    found = score_dataset(model, dataset, accelerator, args.per_device_eval_batch_size)
    if others is None:
        return dataset, found, None
    dataset_of_others = prepare(args, accelerator, others, model, processor)
    captions = [caption for row in found.rows for caption in dataset.labels[row]]
    captions_of_others = [caption for row in dataset_of_others.labels for caption in row]
    hubs = {}
    for name, examples, texts in (("images", dataset_of_others, captions), ("captions", dataset, captions_of_others)):
        scores = score_dataset(model, examples, accelerator, args.per_device_eval_batch_size, captions=texts)
        hubs[name] = scores.scores
    return dataset, found, hubs


def gallery_row(index: int, dataset: CaptionDataset, found, scores: np.ndarray, texts: list[str]) -> GalleryRow:
    """Make the row of an image on the page: the caption with the highest score, and whether it is one of its own."""
    row, best = found.rows[index], int(scores.argmax())
    start = sum(found.captions_per_image[:index])
    own = range(start, start + found.captions_per_image[index])
    image = load_stored_image(dataset.images[row]["image"])
    references = [texts[caption] for caption in own]
    return GalleryRow(image, texts[best], references, is_correct=best in own, name=dataset.image_ids[row])


if __name__ == "__main__":
    with user_errors():
        main()
