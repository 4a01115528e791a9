"""
Compute METEOR and SPICE by pycocoevalcap's Java programs.

Its Python code is not used: it has no time-out, and writes its files among the installed packages.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Timer

import numpy as np


# SPICE uses reflection on these; Java has closed them since version 17.
_OPEN_PACKAGES = ("java.lang", "java.math", "java.util", "java.util.concurrent", "java.net", "java.text")


class NotComputedError(RuntimeError):
    """A metric could not be computed; the message says why."""


def meteor(predictions: Sequence[str], references: Sequence[Sequence[str]], timeout: float) -> tuple[float, np.ndarray]:
    """
    Compute METEOR 1.5 (https://aclanthology.org/W14-3348).

    Args:
        predictions: one tokenized caption for each image.
        references: the tokenized references of each image.
        timeout: seconds.

    Returns:
        The score of the corpus, which is not a mean over images, and of each image, `(num_images,)`.

    Raises:
        NotComputedError: Java or pycocoevalcap is missing, Java fails, or it takes too long.
    """
    jar = _folder() / "meteor" / "meteor-1.5.jar"
    with _java(["-Xmx2G", "-jar", str(jar), "-", "-", "-stdio", "-l", "en", "-norm"], timeout) as process:
        # the program counts matches caption by caption, then turns all counts into scores
        pairs = zip(predictions, references, strict=True)
        counts = [_ask(process, "SCORE", *captions, prediction) for prediction, captions in pairs]
        scores = [float(_ask(process, "EVAL", *counts)), *(float(_answer(process)) for _ in predictions)]
    return scores[-1], np.array(scores[:-1])


def spice(predictions: Sequence[str], references: Sequence[Sequence[str]], timeout: float) -> tuple[float, np.ndarray]:
    """
    Compute SPICE (https://arxiv.org/abs/1607.08822).

    Its parser, `stanford-corenlp-3.6.0.jar` and `stanford-corenlp-3.6.0-models.jar`, is not part of pycocoevalcap; put the
    files into the folder named by the environment variable `CORENLP_HOME`, or into pycocoevalcap.

    Arguments and errors are those of `meteor`.

    Returns:
        The mean over images and the F-score of each image, `(num_images,)`.
    """
    folder = _folder() / "spice"
    libraries = [Path(os.environ.get("CORENLP_HOME", folder / "lib")), folder / "lib"]
    if not any((library / "stanford-corenlp-3.6.0-models.jar").exists() for library in libraries):
        raise NotComputedError("SPICE needs Stanford CoreNLP 3.6.0 with its models: set CORENLP_HOME to its folder.")
    class_path = os.pathsep.join([str(folder / "spice-1.0.jar"), *(str(library / "*") for library in libraries)])
    pairs = zip(predictions, references, strict=True)
    images = [{"image_id": i, "test": prediction, "refs": captions} for i, (prediction, captions) in enumerate(pairs)]
    with tempfile.TemporaryDirectory() as temporary:
        source, target = Path(temporary, "captions.json"), Path(temporary, "scores.json")
        source.write_text(json.dumps(images), encoding="utf-8")
        options = [f"--add-opens=java.base/{package}=ALL-UNNAMED" for package in _OPEN_PACKAGES]
        arguments = [str(source), "-cache", temporary, "-out", str(target), "-subset", "-silent"]
        with _java(
            ["-Xmx8G", *options, "-cp", class_path, "edu.anu.spice.SpiceScorer", *arguments], timeout
        ) as process:
            process.communicate()
            answers = json.loads(target.read_text(encoding="utf-8"))
            by_image = {answer["image_id"]: answer["scores"]["All"]["f"] for answer in answers}
            scores = np.array([by_image[i] for i in range(len(images))], dtype=float)
    return float(scores.mean()), scores


def _ask(process: subprocess.Popen[str], *fields: str) -> str:
    assert process.stdin is not None
    process.stdin.write(" ||| ".join(fields) + "\n")
    process.stdin.flush()
    return _answer(process)


def _answer(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def _folder() -> Path:
    """Find the folder of pycocoevalcap without importing it."""
    spec = importlib.util.find_spec("pycocoevalcap")
    if spec is None or not spec.submodule_search_locations:
        raise NotComputedError('pycocoevalcap is not installed: `pip install "modeling-cnnrnn[java]"`.')
    return Path(spec.submodule_search_locations[0])


@contextmanager
def _java(arguments: Sequence[str], timeout: float) -> Iterator[subprocess.Popen[str]]:
    """Run Java, end it with the block or after `timeout` seconds, and turn errors into `NotComputedError`."""
    java = shutil.which("java")
    if java is None:
        raise NotComputedError("there is no `java` on the PATH.")
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        process = subprocess.Popen(
            [java, "-Dfile.encoding=UTF-8", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            encoding="utf-8",
        )
        timed_out = Event()

        def stop() -> None:
            timed_out.set()
            process.kill()

        timer = Timer(timeout, stop)
        timer.start()
        try:
            yield process
        except (OSError, ValueError, KeyError, TypeError) as error:
            process.kill()
            process.wait()
            errors.seek(0)
            lines = [line.strip() for line in errors if line.strip()]
            lines = [line for line in lines if "Error" in line or "Exception" in line] or lines or [str(error)]
            reason = f"took more than {timeout:g} seconds." if timed_out.is_set() else f"failed: {lines[-1]}"
            raise NotComputedError(f"Java {reason}") from error
        finally:
            timer.cancel()
            process.kill()
            process.wait()
            for pipe in process.stdin, process.stdout:
                if pipe is not None:
                    with suppress(OSError):  # buffered input of a program that has ended
                        pipe.close()
