"""Try mutated pictures and mutated model folders, and say what comes of each."""

import builtins
import random
import re
import resource
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from fuzz.mutations import mutate_folder, mutate_picture, sample_pictures
from PIL import Image
from tqdm.auto import tqdm
from transformers import BitImageProcessorPil, ResNetConfig, set_seed

from modeling_cnnrnn import (
    CnnRnnConfig,
    CnnRnnForConditionalGeneration,
    CnnRnnProcessor,
    ImageToTextPipeline,
    build_tokenizer,
    load_image,
    pipeline,
)


OUTCOMES = ("fine", "refused", "obscure", "raw")
LONGEST_SENTENCE = 1000
SECONDS = 60  # after which a mutation counts as raw
MEMORY = 2**34  # bytes of address space that a mutation may ask for: no silly size takes the machine down


class AskedError(BaseException):
    """A question on the terminal, which no handler of `Exception` may swallow."""


@dataclass
class Report:
    """
    Count the outcomes of many mutations.

    Attributes:
        counts: number of mutations by outcome.
        found: the obscure and raw ones: `(number of the mutation, what was done and the error)`.
        sentences: the refused ones, likewise.
    """

    counts: Counter = field(default_factory=Counter)
    found: list[tuple[int, str]] = field(default_factory=list)
    sentences: list[tuple[int, str]] = field(default_factory=list)

    def add(self, index: int, how: str, outcome: str, error: str) -> None:
        self.counts[outcome] += 1
        if outcome != "fine":
            (self.sentences if outcome == "refused" else self.found).append((index, f"{how}: {error}"))


def save_captioner(folder: Path) -> None:
    """Save a captioner of a few thousand parameters with all files of a real one."""
    set_seed(0)
    tokenizer = build_tokenizer(["a dog jumps over a bar", "two cats sleep on the red sofa"], min_frequency=1)
    cnn = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic")
    sizes = {"hidden_size": 10, "embedding_size": 8, "attention_size": 6}
    config = CnnRnnConfig.from_tokenizer(tokenizer, encoder=cnn, attention_type="additive", **sizes)
    model = CnnRnnForConditionalGeneration(config).eval()
    model.generation_config.max_length = 8
    model.save_pretrained(folder)
    image_processor = BitImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CnnRnnProcessor(image_processor, tokenizer).save_pretrained(folder)


def load_by_classes(folder: Path) -> None:
    processor = CnnRnnProcessor.from_pretrained(folder)
    model = CnnRnnForConditionalGeneration.from_pretrained(folder)
    _caption(ImageToTextPipeline(model, processor=processor, device="cpu"))


def load_by_pipeline(folder: Path) -> None:
    _caption(pipeline("image-to-text", model=str(folder), device="cpu"))


def _caption(pipe) -> None:
    record = pipe(Image.linear_gradient("L"), return_scores=True)[0]
    assert isinstance(record["generated_text"], str)
    assert -1e9 < record["score"] <= 0, "the sentence has no probability"


def outcome(action: Callable[[], object], names: list[str]) -> tuple[str, str]:
    """
    Run an action and judge its end.

    Args:
        action: loads a picture or a captioner.
        names: file and folder names, of which a sentence has to name one.

    Returns:
        One of `OUTCOMES`, and the error's text.
    """
    try:
        with _bounds():
            action()
    except (ValueError, OSError) as error:
        text = str(error)
        is_sentence = "\n" not in text.strip() and len(text) <= LONGEST_SENTENCE and text.isprintable()
        is_of_python = re.match(r"\[Errno \d+\]", text)  # which says no remedy
        is_clear = is_sentence and any(name in text for name in names) and not is_of_python
        return "refused" if is_clear else "obscure", f"{type(error).__name__}: {text}"
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return "raw", f"{type(error).__name__}: {error}"
    return "fine", ""


@contextmanager
def _bounds() -> Iterator[None]:
    """Bound the time and the memory of an action, and let nobody be asked."""

    def time_out(*_):
        raise AskedError(f"not done after {SECONDS} seconds")

    def ask(*_):
        raise AskedError("a question on the terminal")

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    original, builtins.input = builtins.input, ask
    signal.signal(signal.SIGALRM, time_out)
    signal.alarm(SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.alarm(0)
        builtins.input = original


def random_of(seed: int, index: int) -> random.Random:
    """Make the source of one mutation, which can be made again without those before it."""
    return random.Random(f"{seed}-{index}")


def fuzz_pictures(indices: range, seed: int, folder: Path) -> Report:
    report = Report()
    samples = sample_pictures()
    for index in tqdm(indices, desc="Pictures", unit="picture"):
        ending, content, how = mutate_picture(samples, random_of(seed, index))
        path = folder / f"picture{ending}"
        path.write_bytes(content)
        report.add(index, how, *outcome(lambda path=path: load_image(path), [path.name]))
    return report


def fuzz_folders(indices: range, seed: int, folder: Path, load: Callable[[Path], None] = load_by_classes) -> Report:
    report = Report()
    if not (folder / "whole").exists():
        save_captioner(folder / "whole")
    for index in tqdm(indices, desc="Folders", unit="folder"):
        mutated = folder / f"captioner-{index}"
        how = mutate_folder(folder / "whole", mutated, random_of(seed, index))
        # a captioner's folder has the same names as any other: a file's name alone must be one of those below
        names = [mutated.name]
        report.add(index, how, *outcome(lambda mutated=mutated: load(mutated), names))
        shutil.rmtree(mutated)
    return report
