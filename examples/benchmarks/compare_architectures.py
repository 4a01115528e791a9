r"""
Train the captioners of the papers by one recipe, and put their scores, sizes and speed into one table:

    python examples/benchmarks/compare_architectures.py --dataset_name path/to/flickr8k \
        --encoder_name_or_path path/to/mobilenet-v2

All read the same stored features of a frozen CNN and the same words, in the same order, for the same epochs. The scores are
of greedy search on the validation images at the end of each training, the mean over the seeds with half of their range.
The times are CPU time of one thread with the features given: the captioners take turns at each image, and the medians over
the images are shown. A run that was stopped resumes with the same command, which also reads what is already trained.
"""

import json
import os


os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from modeling_cnnrnn import CnnRnnForConditionalGeneration, CnnRnnProcessor
from modeling_cnnrnn.cli.arguments import parse_arguments
from modeling_cnnrnn.cli.errors import RUN_AGAIN, user_errors
from modeling_cnnrnn.data.loading import load_caption_dataset
from modeling_cnnrnn.files import write_json, write_text


RECIPE = Path(__file__).parents[1] / "recipes" / "flickr8k_attention.json"
# plain features without augmentation, and layers that train in minutes
OPTIONS = ["--random_crop", "false", "--flip_probability", 0, "--num_feature_views", 1, "--ema_decay", 0]
OPTIONS += [
    "--captions_per_image",
    2,
    "--dropout",
    0.3,
    "--embedding_dropout",
    0.2,
    "--feature_dropout",
    0.2,
    "--learning_rate",
    0.001,
]
NUM_BEAMS = (1, 5)


@dataclass
class ComparisonArguments:
    """Name the data, the CNN, the captioners and their size."""

    dataset_name: str = field(metadata={"help": "Images with captions: a folder or a dataset of the Hub."})
    encoder_name_or_path: str = field(metadata={"help": "CNN trained on ImageNet: a folder or a model of the Hub."})
    output_dir: str = field(
        default="outputs/architectures", metadata={"help": "Folder of the trainings and the table."}
    )
    architectures: list[str] = field(
        default_factory=lambda: [
            "dvsa",
            "neuraltalk_rnn",
            "nic",
            "neuraltalk2",
            "fc",
            "show_attend_tell",
            "att2in",
            "adaptive",
            "up_down",
        ],
        metadata={"help": "Names of `ARCHITECTURES`."},
    )
    seeds: list[int] = field(default_factory=lambda: [42, 43], metadata={"help": "Seeds of the trainings."})
    size: int = field(default=256, metadata={"help": "Size of state and words; the attention's is half of it."})
    num_train_epochs: int = field(
        default=3, metadata={"help": "Epochs of each training, of two sentences of each image."}
    )
    num_timed_images: int = field(default=50, metadata={"help": "Validation images that the times are medians over."})
    features_cache_dir: str | None = field(
        default=None, metadata={"help": "Folder of the stored features; in `output_dir` by default."}
    )
    mixed_precision: str = field(default="bf16", metadata={"help": "Precision of the trainings: bf16 or no."})


def main():
    (args,) = parse_arguments([ComparisonArguments], __doc__)
    folders = {
        name: [Path(args.output_dir, name, f"seed-{seed}") for seed in args.seeds] for name in args.architectures
    }
    for number, seed in enumerate(args.seeds):  # a first seed of all, then a second
        for name in args.architectures:
            train(args, name, seed, folders[name][number])
        done = {name: own[: number + 1] for name, own in folders.items()}
        report(args, done)


def train(args: ComparisonArguments, name: str, seed: int, folder: Path) -> None:
    """Train a captioner if it is not done, in a process of its own, which gives its memory back."""
    if (folder / "training_results.json").exists():
        return
    words = ["train", RECIPE, *OPTIONS, "--architecture", name, "--seed", seed, "--output_dir", folder]
    words += ["--dataset_name", args.dataset_name, "--encoder_name_or_path", args.encoder_name_or_path]
    words += ["--hidden_size", args.size, "--embedding_size", args.size, "--attention_size", args.size // 2]
    words += ["--num_train_epochs", args.num_train_epochs, "--eval_epochs", args.num_train_epochs]
    words += ["--mixed_precision", args.mixed_precision]
    cache = args.features_cache_dir or Path(args.output_dir, "image_features")
    words += ["--features_cache_dir", cache, "--resume_from_checkpoint", "latest"]
    finished = subprocess.run([sys.executable, "-m", "modeling_cnnrnn", *map(str, words)])
    if finished.returncode:
        sys.exit(finished.returncode)


def report(args: ComparisonArguments, folders: dict[str, list[Path]]) -> None:
    """Write `architectures.json` and the table `architectures.md`, and print it."""
    models = {name: CnnRnnForConditionalGeneration.from_pretrained(own[0]).eval() for name, own in folders.items()}
    times = measure(args, models, CnnRnnProcessor.from_pretrained(folders[args.architectures[0]][0]))
    results = {}
    for name, model in models.items():
        runs = [
            json.loads((folder / "training_results.json").read_text())["evaluations"][-1] for folder in folders[name]
        ]
        results[name] = {
            "parameters": sum(p.numel() for key, p in model.named_parameters() if ".cnn." not in key),
            **{metric: [run[metric] for run in runs] for metric in ("CIDEr", "BLEU-4")},
            "milliseconds": times[name],
        }
    lines = [
        f"| architecture | parameters | CIDEr | BLEU-4 | {' | '.join(f'ms, beam {k}' for k in NUM_BEAMS)} |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, result in results.items():
        scores = [spread(result[metric]) for metric in ("CIDEr", "BLEU-4")]
        milliseconds = [f"{1000 * seconds:.1f}" for seconds in times[name].values()]
        lines.append(f"| `{name}` | {result['parameters'] / 1e6:.1f} M | {' | '.join(scores + milliseconds)} |")
    table = "\n".join(lines) + "\n"
    write_json(Path(args.output_dir) / "architectures.json", {"seeds": args.seeds, "results": results})
    write_text(Path(args.output_dir) / "architectures.md", table)
    print(table)


def spread(values: list[float]) -> str:
    """Format the mean of some scores and half of their range."""
    mean = f"{statistics.mean(values):.3f}"
    return f"{mean} ± {(max(values) - min(values)) / 2:.3f}" if len(values) > 1 else mean


@torch.inference_mode()
def measure(
    args: ComparisonArguments, models: dict[str, Any], processor: CnnRnnProcessor
) -> dict[str, dict[int, float]]:
    """Measure the seconds of a caption with its features given, for each captioner and number of beams."""
    torch.set_num_threads(1)
    images = load_caption_dataset(args.dataset_name)["validation"][: args.num_timed_images]["image"]
    encoder = models[args.architectures[0]].get_encoder()
    seconds: dict[str, dict[int, list[float]]] = {name: {beams: [] for beams in NUM_BEAMS} for name in models}
    for image in images:
        pixel_values = processor(images=image.convert("RGB"), return_tensors="pt")["pixel_values"]
        features, _ = encoder.get_image_features(pixel_values)
        for name, model in models.items():
            for num_beams in NUM_BEAMS:
                start = time.process_time()
                model.generate(image_features=features, num_beams=num_beams)
                seconds[name][num_beams].append(time.process_time() - start)
    return {name: {beams: statistics.median(own) for beams, own in kinds.items()} for name, kinds in seconds.items()}


if __name__ == "__main__":
    with user_errors(RUN_AGAIN):
        main()
