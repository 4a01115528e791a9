r"""
Train the captioner that comes with the package again, `flickr8k-mobilenet`: hours on one core.

    python examples/train_pretrained.py --dataset_name path/to/flickr8k --encoder_name_or_path path/to/mobilenet-v2

For each seed, a decoder is trained by cross-entropy on what a frozen MobileNetV2 sees, then the upper half of the CNN with it,
then the decoder on the scores of its own sentences; and it is scored on the validation images. The best, by CIDEr with beam 3,
takes the place of the one in the package, in float16 and with its card. A run that was stopped resumes with the same command,
which `make pretrained` is too.
"""

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from safetensors.torch import load_file, save_file

from modeling_cnnrnn.cli.arguments import parse_arguments
from modeling_cnnrnn.cli.errors import RUN_AGAIN, user_errors
from modeling_cnnrnn.files import atomic_path, write_json
from modeling_cnnrnn.hub.model_card import write_model_card
from modeling_cnnrnn.pretrained import DEFAULT_CAPTIONER, FOLDERS


RECIPES = Path(__file__).parent / "recipes"
# a decoder of 7 MB in float16, which needs less dropout than one of twice the size
SMALL = ["--hidden_size", 376, "--embedding_size", 376, "--tie_word_embeddings", "true", "--attention_size", 128]
SMALL += ["--dropout", 0.4, "--embedding_dropout", 0.25, "--feature_dropout", 0.3, "--learning_rate", 0.001]
SMALL += ["--num_train_epochs", 14, "--eval_epochs", 2]
SELF_CRITICAL = ["--num_beams", 3, "--num_train_epochs", 4, "--eval_epochs", 1]
# what it is rewarded for makes it say a pair of words twice, which costs 0.018 CIDEr
GENERATION = {"no_repeat_ngram_size": 2}
FILES = ("config.json", "generation_config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json")
# entries of these files: code beside them, the classes that the CNN was trained on, the folders of the trainings
LEFT_OUT = ("auto_map", "custom_pipelines", "id2label", "label2id", "_name_or_path")
SOURCES = (
    "Photographs with five English sentences each. The vocabulary is of the training sentences; no photograph and no sentence "
    "is in the captioner. Its CNN, MobileNetV2 1.0, was trained on ImageNet: google-coral/test_data's "
    "`tf2_mobilenet_v2_1.0_224_ptq.tflite` (Apache-2.0), dequantised; its upper half is finetuned here."
)
# photographs of the validation split that it has described wrongly, in words of this project
SHOWN = {
    "463786229_b54c9a3436": "a bee at yellow blossoms",
    "2474092890_6c0781a8ed": "somebody on a bench who holds a camera",
    "2483792149_a9b4ffecec": "a child in a field of tulips",
    "2598012140_832863fcb9": "a dog and a cat on a sofa",
    "2480021389_dda9fb2818": "a climber on a rock at night",
    "2902486045_6298eb22ef": "two dogs at a hydrant",
}


@dataclass
class PretrainedArguments:
    """Name the data, the CNN and the folders."""

    dataset_name: str = field(metadata={"help": "Flickr8k: a folder or a dataset of the Hub."})
    encoder_name_or_path: str = field(
        metadata={"help": "MobileNetV2 trained on ImageNet: a folder or a model of the Hub."}
    )
    output_dir: str = field(default="outputs/pretrained", metadata={"help": "Folder of the trainings."})
    captioner_dir: str = field(
        default=str(FOLDERS[DEFAULT_CAPTIONER]),
        metadata={"help": "Folder of the best captioner; the package by default."},
    )
    seeds: list[int] = field(default_factory=lambda: [42, 43, 44], metadata={"help": "Seeds of the trainings."})
    num_feature_views: int = field(default=2, metadata={"help": "Stored features of each training image."})
    mixed_precision: str = field(
        default="bf16", metadata={"help": "Precision of the trainings: bf16, or no where the processor lacks it."}
    )


def main():
    (args,) = parse_arguments([PretrainedArguments], __doc__)
    results = {}
    for seed in args.seeds:
        folder = train(args, seed)
        evaluation = folder / "evaluation"
        if not (evaluation / "eval_results.json").exists():
            options = ["--features_cache_dir", cache(args), "--mixed_precision", args.mixed_precision]
            evaluate(args, folder, evaluation, *options, *(f"--{name}={value}" for name, value in GENERATION.items()))
        results[folder] = json.loads((evaluation / "eval_results.json").read_text())["results"]["beam 3"]["CIDEr"]
        print(f"Seed {seed}: CIDEr {results[folder]:.4f} with beam 3")
    best = max(results, key=lambda folder: results[folder])
    pack(best, Path(args.captioner_dir))
    # the scores on the card are those of the packed weights, and from images, not from stored features
    evaluate(args, args.captioner_dir, best / "evaluation")
    write_card(best, Path(args.captioner_dir))


def train(args: PretrainedArguments, seed: int) -> Path:
    """Train one seed in three stages, each only if it is not done; returns the folder of the captioner."""
    first, second, third = (
        Path(args.output_dir) / f"seed-{seed}" / stage for stage in ("cross_entropy", "finetuned", "self_critical")
    )
    views = ["--num_feature_views", args.num_feature_views, "--features_cache_dir", cache(args)]
    start: dict[Path, list] = {
        first: ["flickr8k_attention.json", "--encoder_name_or_path", args.encoder_name_or_path, *SMALL, *views],
        second: ["flickr8k_finetuned.json", "--model_name_or_path", first],
        third: ["flickr8k_self_critical.json", "--model_name_or_path", second, *SELF_CRITICAL, *views],
    }
    for folder, (recipe, *options) in start.items():
        if (folder / "training_results.json").exists():
            continue
        options += ["--mixed_precision", args.mixed_precision, "--dataset_name", args.dataset_name, "--seed", seed]
        cnnrnn("train", RECIPES / recipe, *options, "--output_dir", folder, "--resume_from_checkpoint", "latest")
    return third


def cache(args: PretrainedArguments) -> Path:
    return Path(args.output_dir) / "image_features"


def evaluate(args: PretrainedArguments, captioner: str | Path, output_dir: Path, *more: object) -> None:
    """Score a captioner on the validation images, without a page of them."""
    data = ["--dataset_name", args.dataset_name, "--split", "validation", "--gallery_size", 0]
    place = ["--model_name_or_path", captioner, "--output_dir", output_dir]
    cnnrnn("evaluate", *place, *data, "--num_beams", 1, 3, *more)


def cnnrnn(*words: object) -> None:
    """Run a command of the package in a process of its own, which gives its memory back."""
    finished = subprocess.run([sys.executable, "-m", "modeling_cnnrnn", *map(str, words)])
    if finished.returncode:
        sys.exit(finished.returncode)


def pack(captioner: Path, target: Path) -> None:
    """
    Write a captioner as a package holds it: weights in float16, which load as float32; no code, which the package has.

    Args:
        captioner: folder of a training.
        target: folder of the packed captioner; other files there stay.
    """
    for name in FILES:
        content = json.loads((captioner / name).read_text(encoding="utf-8"))
        for part in (content, *(value for value in content.values() if isinstance(value, dict))):
            for entry in LEFT_OUT:
                part.pop(entry, None)
        if name == "config.json":
            content["dtype"] = "float32"
        if name == "generation_config.json":
            content |= GENERATION
        write_json(target / name, content)
    weights = load_file(captioner / "model.safetensors")
    halved = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
    with atomic_path(target / "model.safetensors") as path:
        save_file(halved, path, metadata={"format": "pt"})


def write_card(results: Path, captioner: Path) -> None:
    """Write the card of the packed captioner from the files of its training and evaluation."""
    lines = (results / "evaluation" / "per_image.jsonl").read_text(encoding="utf-8").splitlines()
    captions = {str(row["image_id"]): row["caption"] for row in map(json.loads, lines)}
    write_model_card(
        results,
        repo_id=DEFAULT_CAPTIONER,
        output_dir=captioner,
        repository=captioner,
        license="other",
        license_name="research-and-education",
        license_link="LICENSE",
        language="en",
        dataset_title="Flickr8k",
        dataset_license="for research and education (Hodosh, Young and Hockenmaier, 2013)",
        dataset_description=SOURCES,
        show_pictures=False,  # the photographs belong to those who took them
        limits=[f'About {shown} it writes "{captions[key]}".' for key, shown in SHOWN.items() if key in captions],
        command="make pretrained FLICKR8K=path/to/flickr8k MOBILENET=path/to/mobilenet-v2",
    )


if __name__ == "__main__":
    with user_errors(RUN_AGAIN):
        main()
