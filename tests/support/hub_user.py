"""
Somebody who has not installed this package uses captioners of the Hub, in a process of their own.

    python hub_user.py jobs.json

`jobs.json` names jobs: `{name: [function of this file, arguments]}`. What each returned, or the error that ended it, is
written to `jobs.out`. Each job is a fork of the process, so that no job knows the classes that another has loaded.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from PIL import Image
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForZeroShotImageClassification,
    AutoProcessor,
    AutoTokenizer,
    pipeline,
)


OURS = "modeling_cnnrnn"


class NotInstalled:
    """Finds nothing of this package, wherever it lies."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] == OURS:
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)


def picture() -> Image.Image:
    return Image.linear_gradient("L")


def write(model, processor) -> str:
    """The sentence of `generate`."""
    sequences = model.generate(**processor(images=picture(), return_tensors="pt"))
    return processor.batch_decode(sequences, skip_special_tokens=True)[0]


def auto_classes(repository: str, **options) -> dict:
    """What the six Auto classes load, and the sentence that comes of it."""
    classes = (AutoConfig, AutoProcessor, AutoModelForImageTextToText, AutoModel, AutoTokenizer, AutoImageProcessor)
    config, processor, model, base, tokenizer, image_processor = (
        auto.from_pretrained(repository, **options) for auto in classes
    )
    pixel_values = image_processor([picture().convert("RGB")], return_tensors="pt").pixel_values
    sequences = model.generate(pixel_values=pixel_values)
    state = {name.removeprefix("model."): tensor for name, tensor in model.state_dict().items()}
    return {
        "sentence": write(model, processor),
        "sentence of the parts": tokenizer.batch_decode(sequences, skip_special_tokens=True)[0],
        "same weights": all(torch.equal(tensor, state[name]) for name, tensor in base.state_dict().items()),
        "classes": [type(thing).__name__ for thing in (config, processor, model, base)],
        "modules": [type(thing).__module__.partition(".")[0] for thing in (config, processor, model, base)],
    }


def aligned(repository: str, sentence: str) -> dict:
    """What the Auto classes load of an alignment, how it divides a sentence, and what it thinks of two labels."""
    options = {"trust_remote_code": True}
    classes = (AutoConfig, AutoProcessor, AutoModelForZeroShotImageClassification, AutoModel)
    config, processor, model, base = (auto.from_pretrained(repository, **options) for auto in classes)
    classify = pipeline("zero-shot-image-classification", model=repository, **options)
    return {
        "snippets": model.align(picture(), sentence, processor),
        "scores": classify(picture().convert("RGB"), candidate_labels=["dog", "triangle"], hypothesis_template="a {}"),
        "classes": [type(thing).__name__ for thing in (config, processor, model, base)],
        "modules": [type(thing).__module__.partition(".")[0] for thing in (config, processor, model, base)],
    }


def each_branch(repository: str, branches: list[str], **options) -> dict[str, str]:
    """The sentence of the captioner on each branch; all have the same processor, and the same code."""
    options["code_revision"] = branches[0]
    processor = AutoProcessor.from_pretrained(repository, revision=branches[0], **options)
    return {
        branch: write(AutoModelForImageTextToText.from_pretrained(repository, revision=branch, **options), processor)
        for branch in branches
    }


def piped(task: str | None, repository: str, call: dict | None = None, **options) -> list:
    """Module of the pipeline's class, and what it writes."""
    pipe = pipeline(task, model=repository, **options)
    return [type(pipe).__module__.partition(".")[0], pipe(picture(), **(call or {}))]


def caption_of(codes: list[str], picture: str) -> str:
    """What imports and expressions make of a picture; the expressions are a pipeline's answer, or model and processor."""
    names: dict = {}
    values = []
    for code in codes:
        if code.startswith(("from ", "import ")):
            exec(code, names)
        else:
            values.append(eval(code, names))
    if len(values) == 1:
        return values[0][0]["generated_text"]
    model, processor = values
    sequences = model.generate(**processor(images=Image.open(picture), return_tensors="pt"))
    return processor.batch_decode(sequences, skip_special_tokens=True)[0]


def load(auto: str, repository: str, **options) -> str:
    return type(getattr(transformers, auto).from_pretrained(repository, **options)).__name__


def save_again(repository: str, model: str, pipe: str) -> None:
    """Push what was loaded as remote code: model and processor, and a whole pipeline."""
    AutoModelForImageTextToText.from_pretrained(repository, trust_remote_code=True).push_to_hub(model)
    AutoProcessor.from_pretrained(repository, trust_remote_code=True).push_to_hub(model)
    pipeline("image-to-text", model=repository, trust_remote_code=True).save_pretrained("pipe", push_to_hub=False)
    from huggingface_hub import HfApi

    HfApi().create_repo(pipe)
    HfApi().upload_folder(repo_id=pipe, folder_path="pipe")


def in_a_fork(job: Callable, arguments: dict):
    """What the job returns, `{"error": type and sentence}` if it raises."""
    reader, writer = os.pipe()
    if not (child := os.fork()):
        try:
            result = job(**arguments)
        except BaseException as error:
            result = {"error": f"{type(error).__name__}: {error}"}
        with os.fdopen(writer, "w") as file:
            json.dump(result, file)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        result = json.load(file)
    os.waitpid(child, 0)
    return result


if __name__ == "__main__":
    sys.meta_path.insert(0, NotInstalled())
    for name in OURS:
        try:
            __import__(name)
        except ModuleNotFoundError:
            continue
        sys.exit(f"{name} is installed")
    torch.set_num_threads(1)
    transformers.logging.disable_progress_bar()
    jobs = Path(sys.argv[1])
    results = {
        name: in_a_fork(globals()[job], arguments) for name, (job, arguments) in json.loads(jobs.read_text()).items()
    }
    jobs.with_suffix(".out").write_text(json.dumps(results))
