"""Run the code that a model card shows, so that its outputs are real."""

import inspect
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from . import run_snippets


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Use:
    """
    A way to use a captioner.

    Args:
        title: what the card calls it.
        code: the code, with `{model}` for the repository; `picture` is defined before. Each `print` prints one line.
        needs_package: whether the code imports this package.
    """

    title: str
    code: str
    needs_package: bool = False


USES = (
    Use(
        "`pipeline`, without installing anything but transformers and torch",
        """from transformers import pipeline

captioner = pipeline("image-to-text", model="{model}", trust_remote_code=True)
print(captioner(picture))
print(captioner(picture, generate_kwargs={{"num_beams": 3}}))
""",
    ),
    Use(
        "Auto classes, with all options of `generate`",
        """from transformers import AutoModelForImageTextToText, AutoProcessor

processor = AutoProcessor.from_pretrained("{model}", trust_remote_code=True)
model = AutoModelForImageTextToText.from_pretrained("{model}", trust_remote_code=True)
inputs = processor(images=picture, return_tensors="pt")
sequences = model.generate(**inputs, num_beams=3, num_return_sequences=2)
print(processor.batch_decode(sequences, skip_special_tokens=True))
""",
    ),
    Use(
        "transformers' own `image-text-to-text`, with an empty text",
        """from transformers import pipeline

captioner = pipeline("image-text-to-text", model="{model}", trust_remote_code=True)
print(captioner(picture, text=""))
""",
    ),
    Use(
        "With the package `modeling-cnnrnn` installed, no remote code",
        """from modeling_cnnrnn import pipeline

captioner = pipeline("image-to-text", model="{model}")
print(captioner(picture))
""",
        needs_package=True,
    ),
)
GREY_PICTURE = """from PIL import Image

picture = Image.new("RGB", (256, 256), "grey")
"""
# the caption of a picture that shows nothing
GREY = Use(
    "A grey picture",
    """from modeling_cnnrnn import pipeline

print(pipeline("image-to-text", model="{model}")(picture)[0]["generated_text"])
""",
    needs_package=True,
)


def run_uses(repository: Path, model: str, picture: Path | None) -> dict[str, Any]:
    """
    Run the code of a card as somebody would who has the captioner and nothing else.

    Args:
        repository: folder of the captioner.
        model: the captioner's name in the code that the card shows.
        picture: the picture to describe, by default a grey one.

    Returns:
        `uses`, the title and the code with its output of each use that works, and `grey`, the caption of a grey picture.

    Raises:
        RuntimeError: the process that runs the code has ended with an error.
    """
    with TemporaryDirectory() as temporary:
        ours = Path(temporary) / "captioner"
        _link_repository(repository, ours)
        given = f"picture = {str(picture.resolve())!r}\n" if picture else GREY_PICTURE
        snippets = [(given + use.code.format(model=ours), use.needs_package) for use in USES]
        snippets.append((GREY_PICTURE + GREY.code.format(model=ours), GREY.needs_package))
        *answers, (grey, _) = _run(snippets, temporary)
    uses = []
    for use, (output, error) in zip(USES, answers, strict=True):
        if output is None:
            logger.warning("Left out of the card, because it fails (%s): %s", str(error).partition("\n")[0], use.title)
        else:
            uses.append({"title": use.title, "code": _with_output(use.code.format(model=model), output)})
    return {"uses": uses, "grey": grey}


def _run(snippets: Sequence[tuple[str, bool]], folder: str) -> list[tuple[str | None, str | None]]:
    """Run pieces of code in a process that works in `folder`, and return what each printed or raised."""
    package = Path(inspect.getfile(run_snippets)).parents[2]
    completed = subprocess.run(
        [sys.executable, "-P", run_snippets.__file__],
        input=json.dumps(snippets),
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ
        | {
            "HF_HUB_OFFLINE": "1",
            "HF_MODULES_CACHE": f"{folder}/modules",  # the code of this folder, not of one of the same name
            "PYTHONPATH": os.pathsep.join(filter(None, [str(package), os.environ.get("PYTHONPATH")])),
        },
    )
    if completed.returncode:
        raise RuntimeError(f"The code of the card could not be run:\n{completed.stderr[-2000:]}")
    return json.loads(completed.stdout.splitlines()[-1])


def _link_repository(repository: Path, ours: Path) -> None:
    """Link the captioner under a neutral name."""
    ours.mkdir()
    for path in repository.iterdir():
        if path.is_file():
            (ours / path.name).symlink_to(path.resolve())


def _with_output(code: str, output: str) -> str:
    """Write the output of each `print` as a comment behind it."""
    outputs: Iterator[str] = iter(output.splitlines())
    return "\n".join(f"{line}\n# {next(outputs)}" if line.startswith("print(") else line for line in code.splitlines())
