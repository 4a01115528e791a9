"""
Equality with pycocoevalcap and Java. The golden file holds sentences of our own with the official tokens and scores;

    python tests/metrics/test_official.py

writes the official part anew, where Java and pycocoevalcap are installed.
"""

import contextlib
import importlib.util
import io
import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from modeling_cnnrnn.metrics import caption_metrics, ptb_tokenize
from modeling_cnnrnn.metrics.java import meteor


GOLDEN = Path(__file__).with_name("golden.json")

needs_java = pytest.mark.skipif(
    importlib.util.find_spec("pycocoevalcap") is None or shutil.which("java") is None,
    reason="needs pycocoevalcap and Java",
)


def official_tokens(captions):
    """The lines of coco-caption's tokenizer for `captions`, `{image: [caption, ...]}`."""
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    rows = {image: [{"caption": caption} for caption in texts] for image, texts in captions.items()}
    return PTBTokenizer().tokenize(rows)


def official_scores(predictions, references):
    """What `COCOEvalCap.evaluate` does, without METEOR and SPICE: corpus scores and scores of each image."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    references = official_tokens(references)
    predictions = official_tokens({image: [predictions[image]] for image in references})
    with contextlib.redirect_stdout(io.StringIO()):
        corpus, per_image = Bleu(4).compute_score(references, predictions)
    names = [f"BLEU-{n}" for n in range(1, 5)]
    scores = dict(zip(names, zip(corpus, per_image, strict=True), strict=True))
    scores["ROUGE-L"] = Rouge().compute_score(references, predictions)
    scores["CIDEr"] = Cider().compute_score(references, predictions)
    return (
        {name: float(corpus) for name, (corpus, _) in scores.items()},
        {name: [float(score) for score in per_image] for name, (_, per_image) in scores.items()},
    )


def golden():
    return json.loads(GOLDEN.read_text(encoding="utf-8"))


def assert_official(scores, corpus, per_image):
    assert scores == pytest.approx(corpus, rel=0, abs=1e-12)
    for name, expected in per_image.items():
        np.testing.assert_allclose(scores.per_image[name], expected, rtol=0, atol=1e-12, err_msg=name)


def test_scores_equal_the_official_ones():
    file = golden()
    assert_official(caption_metrics(file["predictions"], file["references"]), file["scores"], file["per_image"])


def test_tokens_equal_the_official_ones():
    file = golden()
    captions = [caption for captions in file["references"].values() for caption in captions]
    assert ptb_tokenize(captions) == [line for lines in file["tokens"].values() for line in lines]


def random_captions(rng, num_images, degenerate):
    """Sentences of our own: templates, noise of all kinds and odd captions."""
    things = ["dog", "cat", "bench", "boat", "hill", "2nd", "T-shirt", "café", "o'clock", "St.", "p.m.", "Mr.", "can't"]
    odd = [
        "",
        "a",
        "a a a a",
        "a\nb",
        "...",
        '"',
        "?!",
        "( x )",
        "<unk>",
        "Ελλάδα naïve 개",
        "\U0001f600",
        "K.",
        "22 3/4 inch",
    ]
    odd += [
        " ".join(rng.choices(things, k=200)),
        ":) ^_^",
        "x@y.z www.a.com",
        "’tis “fine” — no…",
        "1,000 -5 3.5",
        "U.S.",
    ]

    def sentence():
        if rng.random() < degenerate:
            return rng.choice(odd)
        words = ["a", rng.choice(things), "runs", rng.choice(["on", "near", "over"]), "the", rng.choice(things)]
        text = " ".join(rng.sample(words, rng.randint(1, 6)) if rng.random() < 0.3 else words)
        if rng.random() < 0.3:
            place = rng.randrange(len(text) + 1)
            text = text[:place] + rng.choice(".,;:!?'\"()-/&$%#@ 3T") + text[place:]
        return text.capitalize() if rng.random() < 0.5 else text

    references = {image: [sentence() for _ in range(rng.randint(1, 5))] for image in range(num_images)}
    return {image: sentence() for image in references}, references


@pytest.mark.java
@needs_java
@pytest.mark.parametrize(("num_images", "degenerate"), [(500, 0.0), (500, 0.4), (2, 0.0), (40, 1.0)])
def test_random_captions_score_as_in_pycocoevalcap(num_images, degenerate):
    predictions, references = random_captions(random.Random(num_images), num_images, degenerate)
    assert_official(caption_metrics(predictions, references), *official_scores(predictions, references))


@pytest.mark.java
@needs_java
def test_every_character_is_tokenized_as_by_java():
    line_breaks = "\n\r\v\f\u2028\u2029"
    characters = [chr(code) for code in range(0x30000) if not 0xD800 <= code < 0xE000 and chr(code) not in line_breaks]
    for context in ("a {} dog", "a d{}g", "two dogs{} run"):
        captions = [context.format(character) for character in characters]
        assert ptb_tokenize(captions) == official_tokens({0: captions})[0]


@pytest.mark.java
@needs_java
def test_meteor_equals_pycocoevalcap():
    from pycocoevalcap.meteor.meteor import Meteor

    file = golden()
    references = official_tokens(file["references"])
    predictions = official_tokens({image: [file["predictions"][image]] for image in references})
    expected, expected_per_image = Meteor().compute_score(references, predictions)
    tokens = [predictions[image][0] for image in references], list(references.values())
    score, per_image = meteor(*tokens, timeout=300)
    assert score == expected
    assert per_image.tolist() == expected_per_image


@pytest.mark.java
@needs_java
def test_golden_file_is_what_pycocoevalcap_gives():
    file = golden()
    assert (file["scores"], file["per_image"]) == official_scores(file["predictions"], file["references"])
    assert file["tokens"] == official_tokens(file["references"])


if __name__ == "__main__":
    file = golden()
    file["tokens"] = official_tokens(file["references"])
    file["scores"], file["per_image"] = official_scores(file["predictions"], file["references"])
    GOLDEN.write_text(json.dumps(file, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
