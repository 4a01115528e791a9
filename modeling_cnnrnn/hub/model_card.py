"""
The model card: README.md of a captioner's repository, filled from what training and evaluation have written.

    python examples/train_captioner.py examples/recipes/shapes.json --output_dir outputs/shapes
    python examples/evaluate_captioner.py --model_name_or_path outputs/shapes --dataset_name shapes --split test \
        --num_beams 1 3 --output_dir outputs/shapes/evaluation
    python -m modeling_cnnrnn.hub.model_card --model_name_or_path outputs/shapes --repo_id me/shapes-captioner --license apache-2.0

Read are config.json, the weights' header, training_results.json, training_curves.png, codecarbon's emissions.csv and
evaluation/. What is not there has no heading. The code that the card shows is run before, with the weights of the folder: its
outputs are real, and what does not work is left out. Tokens and paths of this machine are taken out.
"""

import csv
import inspect
import io
import json
import logging
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.utils import validate_repo_id
from jinja2 import Environment, FileSystemLoader
from PIL import Image
from safetensors import safe_open

from ..cli.arguments import parse_arguments
from ..cli.errors import user_errors
from ..data.shapes.drawing import build_shapes
from ..files import whole_folder, write_text
from .redaction import Redaction
from .remote_code import AUTO_MAP, CUSTOM_PIPELINES


logger = logging.getLogger(__name__)

PICTURES = "card"  # folder of the card's pictures
PICTURE_SIZE = 192  # drawn pictures are enlarged to it, photographs made smaller
SCORES = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr", "SPICE", "accuracy")
PAPERS = {  # of what a configuration can be made of
    "first_token": "vinyals2015show",
    "initial_state": "xu2015show",
    "additive": "xu2015show",
    "bias_first_step": "karpathy2015deep",
    "bias_every_step": "karpathy2015deep",
}

# Ways to use a captioner: title, code, whether it needs the package. `{model}` is the repository; `picture` is defined before
USES = (
    (
        "`pipeline`, without installing anything but transformers and torch",
        """from transformers import pipeline

captioner = pipeline("image-to-text", model="{model}", trust_remote_code=True)
print(captioner(picture))
print(captioner(picture, generate_kwargs={{"num_beams": 3}}))
""",
        False,
    ),
    (
        "Auto classes, with all options of `generate`",
        """from transformers import AutoModelForImageTextToText, AutoProcessor

processor = AutoProcessor.from_pretrained("{model}", trust_remote_code=True)
model = AutoModelForImageTextToText.from_pretrained("{model}", trust_remote_code=True)
inputs = processor(images=picture, return_tensors="pt")
sequences = model.generate(**inputs, num_beams=3, num_return_sequences=2)
print(processor.batch_decode(sequences, skip_special_tokens=True))
""",
        False,
    ),
    (
        "transformers' own `image-text-to-text`, with an empty text",
        """from transformers import pipeline

captioner = pipeline("image-text-to-text", model="{model}", trust_remote_code=True)
print(captioner(picture, text=""))
""",
        False,
    ),
    (
        "With the package `modeling-cnnrnn` installed, no remote code",
        """from modeling_cnnrnn import pipeline

captioner = pipeline("image-to-text", model="{model}")
print(captioner(picture))
""",
        True,
    ),
)
# what it says about nothing
GREY_PICTURE = """from PIL import Image

picture = Image.new("RGB", (256, 256), "grey")
"""
GREY = """from transformers import AutoModelForImageTextToText, AutoProcessor

processor = AutoProcessor.from_pretrained("{model}", trust_remote_code=True)
model = AutoModelForImageTextToText.from_pretrained("{model}", trust_remote_code=True)
inputs = processor(images=picture, return_tensors="pt")
print(processor.batch_decode(model.generate(**inputs), skip_special_tokens=True)[0])
"""
# runs pieces of code with and without the package, and returns what they print or raise
RUNNER = """
import contextlib, io, json, sys
answers = []
for code, needs_package in json.load(sys.stdin):
    if needs_package:
        sys.modules.pop("modeling_cnnrnn", None)
    else:
        sys.modules["modeling_cnnrnn"] = None  # cannot be imported
    output = io.StringIO()
    try:
        with contextlib.redirect_stdout(output):
            exec(code, {})
        answers.append([output.getvalue().strip(), None])
    except Exception as error:
        answers.append([None, f"{type(error).__name__}: {error}"])
print(json.dumps(answers))
"""


@dataclass
class CardArguments:
    model_name_or_path: str = field(metadata={"help": "The folder that a training, and an evaluation, have filled."})
    repo_id: str | None = field(default=None, metadata={"help": "The captioner's name on the Hub, user/name."})
    output_dir: str | None = field(default=None, metadata={"help": "Where the card goes, by default the same folder."})
    license: str | None = field(default=None, metadata={"help": "Of the weights, such as apache-2.0."})
    language: str | None = field(default=None, metadata={"help": "Of the sentences, such as en."})
    tags: list[str] | None = field(default=None, metadata={"help": "More tags."})
    base_model: str | None = field(default=None, metadata={"help": "The trained CNN, by its name on the Hub."})
    dataset_id: str | None = field(default=None, metadata={"help": "Name on the Hub of the data learned from."})
    dataset_title: str | None = field(default=None, metadata={"help": "What people call the data: Flickr8k."})
    dataset_license: str | None = None
    dataset_description: str | None = field(default=None, metadata={"help": "Where the data come from; a sentence."})


def write_model_card(
    folder: str | os.PathLike,
    repo_id: str | None = None,
    output_dir: str | os.PathLike | None = None,
    license: str | None = None,
    language: str | None = None,
    tags: list[str] | None = None,
    base_model: str | None = None,
    dataset_id: str | None = None,
    dataset_title: str | None = None,
    dataset_license: str | None = None,
    dataset_description: str | None = None,
    command: str | None = None,
) -> Path:
    """
    Write README.md and its pictures, the folder card/.

    Args:
        folder: a captioner with what `train_captioner.py` and `evaluate_captioner.py` (in evaluation/) wrote beside it.
        repo_id: what the captioner is called on the Hub; by default the card calls it as `folder` does.
        output_dir: where the card goes, by default `folder`.
        license, language, tags, base_model: metadata of the Hub. `base_model` is by default the CNN that the training began
            with, if it came from the Hub.
        dataset_id, dataset_title, dataset_license, dataset_description: facts on the data that were learned from.
        command: how to make the card again, for its last line.

    Returns:
        The path of README.md.

    Raises:
        FileNotFoundError: `folder` holds no captioner.
        HFValidationError: `repo_id` is no name of the Hub.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise FileNotFoundError(
            f"`folder` is '{folder}', which holds no config.json with model.safetensors: pass the `output_dir` of a training."
        )
    if repo_id is not None:
        validate_repo_id(repo_id)
    output_dir = folder if output_dir is None else Path(output_dir)
    shown = Redaction(folder, repo_id)
    config = _read_json(folder / "config.json")
    training = shown.redact(_read_json(folder / "training_results.json"))
    evaluation = shown.redact(_read_json(folder / "evaluation" / "eval_results.json"))
    data = training.get("data", {})
    base_model = base_model or _hub_name(training.get("model", {}).get("encoder_name_or_path"))
    dataset = {
        "name": data.get("dataset_name") or evaluation.get("protocol", {}).get("dataset_name"),
        "id": dataset_id or _hub_name(data.get("dataset_name")),
        "license": dataset_license,
        "description": shown.redact(dataset_description),
    }
    names = [Path(name).stem for name in (dataset["name"] or "").split(",")]
    dataset["title"] = dataset_title or dataset["id"] or ", ".join(names)
    if dataset["name"] == "shapes":
        dataset |= {"shapes": _facts_of_shapes(), "license": dataset_license or "apache-2.0"}
        language = language or "en"
    rows = _read_rows(folder / "evaluation" / "per_image.jsonl")

    output_dir.mkdir(parents=True, exist_ok=True)
    with whole_folder(output_dir / PICTURES) as pictures:
        groups = _copy_pictures(folder / "evaluation", rows, pictures)
        if (folder / "training_curves.png").is_file():
            shutil.copyfile(folder / "training_curves.png", pictures / "training_curves.png")
        first = next(iter(groups.values()))[0]["file"] if groups else None
        usage = _run_uses(folder, repo_id, shown.model, pictures / Path(first).name if first else None)
        facts = {
            "model": shown.model,
            "output_dir": shown.redact(str(output_dir)),
            "repo_id": repo_id,
            "title": (repo_id or shown.model).split("/")[-1],
            "size": _size(folder),
            "config": config,
            "image_size": _read_json(folder / "processor_config.json").get("image_processor", {}).get("size", {}),
            "training": training,
            "options": {
                k: v for part in ("data", "model", "training", "stages") for k, v in training.get(part, {}).items()
            },
            "curves": f"{PICTURES}/training_curves.png" if (pictures / "training_curves.png").exists() else None,
            "energy": _energy(folder / "emissions.csv", training),
            "results": _beams(evaluation),
            "evaluation": evaluation,
            "protocol": evaluation.get("protocol", {}),
            "scores": SCORES,
            "groups": groups,
            "first_picture": first,
            "different": len({row["caption"] for row in rows}),
            "most_frequent": Counter(row["caption"] for row in rows).most_common(1),
            "dataset": dataset,
            "license": license,
            "language": language,
            "base_model": base_model,
            "papers": {
                PAPERS[config[name]] for name in ("image_injection", "attention_type") if config[name] in PAPERS
            },
            "command": shown.redact({"command": command})["command"],
            **usage,
        }
        environment = Environment(
            loader=FileSystemLoader(Path(__file__).parent),
            trim_blocks=True,
            lstrip_blocks=True,
        )
        environment.filters |= {"cell": _cell, "duration": _duration, "wrapped": _wrapped}
        body = environment.get_template("model_card.md.jinja").render(facts)
    metadata = _metadata(facts, tags or [])
    body = re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t]+\n", "\n", body)).strip()
    text = f"---\n{metadata.to_yaml()}\n---\n\n{body}\n"
    path = output_dir / "README.md"
    write_text(path, text)
    return path


def _metadata(facts: dict, tags: list[str]) -> ModelCardData:
    """What the Hub files the model under, with the results as its `model-index`."""
    config, dataset, protocol = facts["config"], facts["dataset"], facts["protocol"]
    first = next(iter(facts["groups"].values()))[0] if facts["groups"] else None
    evaluated_on = protocol.get("dataset_name")
    title = dataset["title"] if evaluated_on == dataset["name"] else evaluated_on
    eval_results = [
        EvalResult(
            task_type="image-to-text",
            task_name="Image captioning",
            dataset_type=_hub_name(evaluated_on) or re.sub(r"[^\w.-]+", "-", str(title)).lower(),
            dataset_name=str(title),
            dataset_config=protocol.get("dataset_config_name"),
            dataset_revision=protocol.get("dataset_revision"),
            dataset_split=protocol["split"],
            metric_type=re.sub(r"-\w+$", "", name).lower(),
            metric_name=f"{name} (beam {beam})",
            metric_value=round(scores[name], 4),
        )
        for beam, scores in facts["results"].items()
        for name in facts["scores"]
        if scores.get(name) is not None
    ]
    metrics = dict.fromkeys(result.metric_type for result in eval_results)
    optional: dict[str, Any] = {}
    if first is not None:
        optional["widget"] = [{"src": first["file"], "output": {"text": first["caption"]}}]
    if facts["base_model"] is not None:
        optional["base_model_relation"] = "finetune"
    if facts["energy"].get("grams"):
        optional["co2_eq_emissions"] = {
            name: value
            for name, value in {
                "emissions": facts["energy"]["grams"],
                "source": "codecarbon",
                "training_type": "fine-tuning" if facts["base_model"] else "pre-training",
                "geographical_location": facts["energy"]["country"],
                "hardware_used": facts["energy"]["hardware"],
            }.items()
            if value
        }
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="image-to-text",
        license=facts["license"],
        language=facts["language"],
        base_model=facts["base_model"],
        datasets=[dataset["id"]] if dataset["id"] else None,
        metrics=list(metrics) or None,
        tags=list(dict.fromkeys(["image-captioning", "cnn", config["rnn_type"], *tags])),
        model_name=facts["title"],
        eval_results=eval_results or None,
        **optional,
    )


def _run_uses(folder: Path, repo_id: str | None, model: str, picture: Path | None) -> dict:
    """
    Run what the card shows, as somebody would who has the captioner and nothing else.

    Returns:
        `uses`, a title and the code with its output of each that works, and `grey`, what is said about nothing.
    """
    with TemporaryDirectory() as temporary:
        ours = Path(temporary) / "captioner"
        _link_repository(folder, ours, is_pushed=repo_id is not None)
        given = f"picture = {str(picture.resolve())!r}\n" if picture else GREY_PICTURE
        codes = [(given + code.format(model=ours), needs_package) for _, code, needs_package in USES]
        codes.append((GREY_PICTURE + GREY.format(model=ours), False))
        package = Path(inspect.getfile(write_model_card)).parents[2]
        completed = subprocess.run(
            [sys.executable, "-c", RUNNER],
            input=json.dumps(codes),
            capture_output=True,
            text=True,
            cwd=temporary,
            env=os.environ
            | {
                "HF_HUB_OFFLINE": "1",
                "HF_MODULES_CACHE": f"{temporary}/modules",  # the code of this folder, not of one of the same name
                "PYTHONPATH": os.pathsep.join(filter(None, [str(package), os.environ.get("PYTHONPATH")])),
            },
        )
    if completed.returncode:
        raise RuntimeError(f"The code of the card could not be run:\n{completed.stderr[-2000:]}")
    answers = json.loads(completed.stdout.splitlines()[-1])
    for (title, _, _), (_, error) in zip(USES, answers[:-1], strict=False):
        if error:
            logger.warning("Left out of the card, for it does not work (%s): %s", error.splitlines()[0], title)
    uses = [
        {"title": title, "code": _with_output(code.format(model=model), output)}
        for (title, code, _), (output, error) in zip(USES, answers[:-1], strict=False)
        if error is None
    ]
    return {"uses": uses, "grey": answers[-1][0]}


def _link_repository(folder: Path, ours: Path, is_pushed: bool) -> None:
    """The captioner under another name; `is_pushed` with what a push adds to its configuration."""
    ours.mkdir()
    for path in folder.iterdir():
        if path.is_file():
            (ours / path.name).symlink_to(path.resolve())
    if is_pushed:
        config = _read_json(folder / "config.json")
        config["auto_map"] = config.get("auto_map", {}) | AUTO_MAP
        config["custom_pipelines"] = CUSTOM_PIPELINES
        (ours / "config.json").unlink()
        (ours / "config.json").write_text(json.dumps(config), encoding="utf-8")


def _with_output(code: str, output: str) -> str:
    """What each `print` of the code gave, as a comment behind it; each prints one line."""
    outputs: Iterator[str] = iter(output.splitlines())
    return "\n".join(f"{line}\n# {next(outputs)}" if line.startswith("print(") else line for line in code.splitlines())


def _copy_pictures(evaluation: Path, rows: list[dict], pictures: Path) -> dict[str, list[dict]]:
    """
    The evaluation's pictures, in the size that the card shows them in.

    Returns:
        From the name of a group, such as "best", to its rows, with `file` added.
    """
    groups: dict[str, list[dict]] = {}
    for row in sorted(rows, key=lambda row: row.get("picture") or ""):
        if "picture" not in row or not (evaluation / row["picture"]).is_file():
            continue
        image = Image.open(evaluation / row["picture"]).convert("RGB")
        name = Path(row["picture"])
        if scale := PICTURE_SIZE // max(image.size):
            image = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
        else:
            image.thumbnail((PICTURE_SIZE, PICTURE_SIZE))
            name = name.with_suffix(".jpg")
        image.save(pictures / name.name, optimize=True)
        groups.setdefault(name.stem.split("-")[0], []).append(row | {"file": f"{PICTURES}/{name.name}"})
    return groups


def _size(folder: Path) -> dict[str, float]:
    """Numbers in the weights, as the Hub counts them, and bytes of their files."""
    files = sorted(folder.glob("*.safetensors"))
    numbers = {"cnn": 0, "decoder": 0}
    for file in files:
        with safe_open(file, "pt") as weights:
            for name in weights.keys():  # noqa: SIM118  not a dictionary
                part = "cnn" if name.startswith("model.encoder.cnn.") else "decoder"
                numbers[part] += math.prod(weights.get_slice(name).get_shape())
    return {**numbers, "total": sum(numbers.values()), "bytes": sum(file.stat().st_size for file in files)}


def _beams(evaluation: dict) -> dict[str, dict]:
    """Scores by beam size."""
    results = evaluation.get("results", {})
    return {name.removeprefix("beam "): scores for name, scores in results.items() if name.startswith("beam ")}


def _energy(emissions: Path, training: dict) -> dict[str, Any]:
    """Of all runs that codecarbon has written into a file, or what the training itself says."""
    if not emissions.is_file():
        return {"kwh": training["energy_kwh"]} if training.get("energy_kwh") is not None else {}
    runs = list(csv.DictReader(io.StringIO(emissions.read_text(encoding="utf-8"))))
    if not runs:
        return {}
    return {
        "kwh": sum(float(run["energy_consumed"]) for run in runs),
        "grams": round(1000 * sum(float(run["emissions"]) for run in runs), 3),
        "country": runs[-1].get("country_name"),
        "hardware": runs[-1].get("gpu_model") or runs[-1].get("cpu_model"),
    }


def _facts_of_shapes() -> dict[str, int]:
    return {name: parameter.default for name, parameter in inspect.signature(build_shapes).parameters.items()}


def _hub_name(name: str | None) -> str | None:
    """The name if it is one of the Hub and not a path."""
    name = (name or "").split("@")[0]
    is_name = re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", name) and not Path(name).exists()
    return name if is_name and not name.endswith((".json", ".csv", ".parquet", ".tar")) else None


def _cell(text: str) -> str:
    """Any text, as it stands, in a cell of a Markdown table."""
    return " ".join(re.sub(r"([\\|*_`\[\]])", r"\\\1", text).replace("&", "&amp;").replace("<", "&lt;").split())


def _wrapped(command: str) -> str:
    """A command on several lines, each option with its values on one."""
    lines = [""]
    for part in re.split(r" (?=--)", command):
        if lines[-1] and len(lines[-1]) + len(part) > 100:
            lines.append("   ")
        lines[-1] += f" {part}" if lines[-1] else part
    return " \\\n".join(lines)


def _duration(seconds: float) -> str:
    """`3 min 29 s`."""
    minutes, hours = round(seconds) // 60, round(seconds) // 3600
    if hours:
        return f"{hours} h {minutes % 60} min"
    return f"{minutes} min {round(seconds) % 60} s" if minutes else f"{seconds:.1f} s"


def _read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _read_rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def main():
    (args,) = parse_arguments([CardArguments], __doc__)
    logging.basicConfig(format="%(message)s")
    logger.setLevel(logging.INFO)
    options = asdict(args)
    command = shlex.join(["python", "-m", "modeling_cnnrnn.hub.model_card", *sys.argv[1:]])
    path = write_model_card(options.pop("model_name_or_path"), **options, command=command)
    logger.info("Written: %s and %s", path, path.parent / PICTURES)


if __name__ == "__main__":
    with user_errors():
        main()
