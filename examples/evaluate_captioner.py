"""
Score a captioner on images that it has never seen, and make a page of them to look at.

    python examples/evaluate_captioner.py --model_name_or_path outputs/shapes --dataset_name shapes --split test \
        --output_dir outputs/shapes/evaluation

Writes into the output folder: eval_results.json, the scores and the whole protocol beside them; captions_results.json and
captions_references.json in COCO's format (`python -m modeling_cnnrnn.metrics` scores them again); per_image.jsonl;
gallery.html; pictures/, a few of the best, the middle and the worst by CIDEr, for the model card. METEOR and SPICE: `--metrics bleu rouge cider meteor spice`, with Java and `pip install
modeling-cnnrnn[java]`.
"""

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import set_seed

from modeling_cnnrnn import CnnRnnForConditionalGeneration, CnnRnnProcessor
from modeling_cnnrnn.cli.arguments import parse_arguments
from modeling_cnnrnn.cli.errors import user_errors
from modeling_cnnrnn.data.batching import CaptionDataset, load_stored_image
from modeling_cnnrnn.data.loading import load_caption_dataset
from modeling_cnnrnn.data.shapes.language import checker, hallucination_scores
from modeling_cnnrnn.evaluation.captions import evaluate_captioner, score_captions
from modeling_cnnrnn.evaluation.gallery import GalleryRow, write_gallery
from modeling_cnnrnn.evaluation.provenance import provenance
from modeling_cnnrnn.files import whole_folder, write_json
from modeling_cnnrnn.training.features import compute_image_features


logger = logging.getLogger("evaluate_captioner")

NUM_PICTURES = 3  # of the best, of the middle, of the worst, and of the wrong ones where that is known
PICTURE_SIZE = 256


@dataclass
class EvaluationArguments:
    model_name_or_path: str = field(metadata={"help": "A captioner, of the Hub or a folder."})
    model_revision: str | None = None
    dataset_name: str = field(default="shapes", metadata={"help": "As in train_captioner.py, with the options below."})
    dataset_config_name: str | None = None
    dataset_revision: str | None = None
    data_dir: str | None = None
    image_dir: str | None = None
    image_column: str | None = None
    caption_column: str | None = None
    image_id_column: str | None = None
    split_column: str | None = None
    split: str = "test"
    max_eval_samples: int | None = None
    features_cache_dir: str | None = field(
        default=None, metadata={"help": "Keep what the CNN sees there, and use what a training has kept."}
    )
    output_dir: str = "outputs/evaluation"
    metrics: list[str] = field(default_factory=lambda: ["bleu", "rouge", "cider"])
    num_beams: list[int] = field(default_factory=lambda: [1], metadata={"help": "One or several beam sizes."})
    max_length: int = 24
    length_penalty: float = field(default=1.0, metadata={"help": "Above 0 prefers longer sentences, with beams."})
    no_repeat_ngram_size: int = 0
    per_device_eval_batch_size: int = 50
    dataloader_num_workers: int = 0
    gallery_size: int = field(default=200, metadata={"help": "Pictures on the page; 0 for no page."})
    mixed_precision: str = "no"
    seed: int = 42


def main():
    (args,) = parse_arguments([EvaluationArguments], __doc__)
    logging.basicConfig(format="%(message)s")
    # several processes do not find each other on a CPU unless it is named
    accelerator = Accelerator(cpu=not torch.accelerator.is_available(), mixed_precision=args.mixed_precision)
    for name in ("evaluate_captioner", "modeling_cnnrnn"):
        logging.getLogger(name).setLevel(logging.INFO if accelerator.is_main_process else logging.ERROR)
    transformers.logging.disable_progress_bar()  # of weights, which are read in no time
    set_seed(args.seed)
    output_dir = Path(args.output_dir)

    # 1. The images and their references
    with accelerator.main_process_first():
        splits = load_caption_dataset(
            args.dataset_name,
            dataset_config_name=args.dataset_config_name,
            dataset_revision=args.dataset_revision,
            data_dir=args.data_dir,
            image_dir=args.image_dir,
            image_column=args.image_column,
            caption_column=args.caption_column,
            image_id_column=args.image_id_column,
            split_column=args.split_column,
        )
    if args.split not in splits:
        raise ValueError(f"`split` is '{args.split}', but the dataset has the splits {list(splits)}.")
    rows = splits[args.split]
    rows = rows.select(range(min(len(rows), args.max_eval_samples or len(rows))))
    references = rows["captions"][:]
    scenes = rows["scene"][:] if "scene" in rows.column_names else None

    # 2. The captioner
    processor = CnnRnnProcessor.from_pretrained(args.model_name_or_path, revision=args.model_revision or "main")
    model = CnnRnnForConditionalGeneration.from_pretrained(
        args.model_name_or_path, revision=args.model_revision or "main", dtype=torch.float32
    )
    model = accelerator.prepare_model(model, evaluation_mode=True).eval()
    stored: dict = {}
    if args.features_cache_dir is not None:
        with accelerator.main_process_first(), accelerator.autocast():
            features, broken = compute_image_features(model, processor, rows, args.features_cache_dir)
        stored = {"image_features": features, "broken": broken}
    dataset = CaptionDataset(rows, processor, max(len(captions) for captions in references), **stored)

    # 3. Loss and sentences, for each beam size
    logger.info("%d images of %s, split %s.", len(dataset), args.dataset_name, args.split)
    generation = [
        {
            "num_beams": num_beams,
            "max_length": args.max_length,
            "length_penalty": args.length_penalty,
            "no_repeat_ngram_size": args.no_repeat_ngram_size,
        }
        for num_beams in args.num_beams
    ]
    evaluation = evaluate_captioner(
        model,
        dataset,
        accelerator,
        args.per_device_eval_batch_size,
        args.dataloader_num_workers,
        generation,
        with_attention=args.gallery_size > 0,
    )
    results: dict = {"loss": evaluation.loss, "perplexity": math.exp(evaluation.loss)}
    for num_beams, captions, seconds in zip(args.num_beams, evaluation.captions, evaluation.seconds, strict=True):
        scores, right = score_captions(captions, references, args.metrics, checker(scenes) if scenes else None)
        results[f"beam {num_beams}"] = dict(scores) | {
            "seconds": seconds,
            "images_per_second": len(captions) / seconds,
            "not_computed": scores.not_computed,
        }
        if scenes is not None:
            results[f"beam {num_beams}"] |= hallucination_scores(
                [caption.caption for caption in captions], [scenes[caption.row] for caption in captions]
            )
        logger.info("\nBeam %d, %.0f images per second:\n%s", num_beams, len(captions) / seconds, scores)
    if not accelerator.is_main_process:
        return
    broken = [dataset.image_ids[row] for row in evaluation.broken]
    if broken:
        logger.warning("%d images could not be read and were left out: %s", len(broken), ", ".join(broken))

    # 4. Files: scores with their protocol, sentences, a page to look at. Of several beam sizes, the last one
    output_dir.mkdir(parents=True, exist_ok=True)
    protocol = asdict(args) | {
        "num_images": len(captions),
        "num_references": sum(len(references[caption.row]) for caption in captions),
        "broken_images": broken,
        "tokenizer_of_the_metrics": "PTB, as coco-caption",
        **provenance(accelerator),
    }
    write_json(output_dir / "eval_results.json", {"results": results, "protocol": protocol})
    coco_id = {c.row: int(i) if (i := dataset.image_ids[c.row]).isdecimal() else i for c in captions}
    write_json(
        output_dir / "captions_results.json",
        [{"image_id": coco_id[caption.row], "caption": caption.caption} for caption in captions],
    )
    write_json(
        output_dir / "captions_references.json",
        {
            "images": [{"id": image_id} for image_id in coco_id.values()],
            "annotations": [
                {"id": number, "image_id": coco_id[row], "caption": text}
                for number, (row, text) in enumerate((row, text) for row in coco_id for text in references[row])
            ],
        },
    )
    wrong = [i for i in range(len(captions)) if right is not None and not right[i]]
    wrong.sort(key=lambda index: -captions[index].log_probability)
    pictures = choose_pictures(scores.per_image.get("CIDEr", []), wrong)
    with whole_folder(output_dir / "pictures") as folder:
        for index, name in pictures.items():
            image = load_stored_image(dataset.images[captions[index].row]["image"])
            image.thumbnail((PICTURE_SIZE, PICTURE_SIZE))
            image.save(folder / name)
    with open(output_dir / "per_image.jsonl", "w", encoding="utf-8") as file:
        for index, caption in enumerate(captions):
            row = {"image_id": coco_id[caption.row], "caption": caption.caption}
            row |= {"log_probability": caption.log_probability, "references": references[caption.row]}
            row |= {name: float(values[index]) for name, values in scores.per_image.items()}
            row |= {"is_correct": right[index]} if right is not None else {}
            row |= {"picture": f"pictures/{pictures[index]}"} if index in pictures else {}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    if args.gallery_size > 0:
        write_gallery(
            output_dir / "gallery.html",
            (
                GalleryRow(
                    load_stored_image(dataset.images[caption.row]["image"]),
                    caption.caption,
                    references[caption.row],
                    [math.log(max(p, 1e-12)) for p in caption.word_probabilities],
                    right[index] if right is not None else None,
                    caption.attention,
                    dataset.image_ids[caption.row],
                    caption.words,
                )
                for index, caption in enumerate(captions[: args.gallery_size])
            ),
            title=f"{Path(args.model_name_or_path).name} on {args.dataset_name}, {args.split}",
            summary={name: f"{value:.4f}" for name, value in scores.items() if value is not None},
        )
    files = ["eval_results.json", "captions_results.json", "captions_references.json", "per_image.jsonl"]
    logger.info("\nWritten: %s", " ".join(str(output_dir / name) for name in files))
    if args.gallery_size > 0:
        logger.info("Look at %s in a browser.", output_dir / "gallery.html")


def choose_pictures(scores: Sequence[float], wrong: Sequence[int] = ()) -> dict[int, str]:
    """
    File names for a few images, by their place in `scores`: the best, the middle, the worst and the first of `wrong`, those
    of which the model was surest.
    """
    order = sorted(range(len(scores)), key=lambda index: -scores[index])
    count = min(NUM_PICTURES, len(order) // 3)
    middle = (len(order) - count) // 2
    groups = {
        "best": order[:count],
        "middle": order[middle : middle + count],
        "worst": order[len(order) - count :][::-1],
    }
    chosen = {index: f"{name}-{place}.png" for name, group in groups.items() for place, index in enumerate(group, 1)}
    others = [index for index in wrong if index not in chosen][:NUM_PICTURES]
    return chosen | {index: f"wrong-{place}.png" for place, index in enumerate(others, 1)}


if __name__ == "__main__":
    with user_errors():
        main()
