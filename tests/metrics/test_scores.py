"""`caption_metrics`, its command, its `evaluate` module, and the metrics without references."""

import json
import math
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from support.nursery import run_python
from support.paths import EXAMPLES

import modeling_cnnrnn.metrics
from modeling_cnnrnn.metrics import __main__ as command
from modeling_cnnrnn.metrics import caption_health, caption_metrics, group_by_image, perplexity, retrieval_metrics
from modeling_cnnrnn.metrics.java import NotComputedError, meteor, spice
from modeling_cnnrnn.metrics.retrieval import less_hubs


PREDICTIONS = ["A dog runs on grass.", "two men on a bench"]
REFERENCES = [["a dog is running", "The dog runs on the grass"], ["Two men sit on a bench", "men, on a bench"]]


def test_dicts_score_as_lists_whatever_the_order_of_predictions():
    by_list = caption_metrics(PREDICTIONS, REFERENCES)
    by_image = caption_metrics({"y": PREDICTIONS[1], "x": PREDICTIONS[0]}, {"x": REFERENCES[0], "y": REFERENCES[1]})
    assert by_image == by_list
    assert by_image.image_ids == ["x", "y"]
    assert list(by_list) == ["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr"]
    assert all(len(values) == 2 for values in by_list.per_image.values())


def test_rows_of_one_caption_are_grouped_by_image():
    rows = [("x", "a dog"), ("y", "a cat"), ("x", "the dog")]
    assert group_by_image(rows) == {"x": ["a dog", "the dog"], "y": ["a cat"]}


@pytest.mark.parametrize(
    ("predictions", "references", "error", "message"),
    [
        (["a"], [["a"], ["b"]], ValueError, "1 predictions for the references of 2 images"),
        ({1: "a"}, {1: ["a"], 2: ["b"]}, ValueError, r"1 \(such as 2\) without a prediction, none without references"),
        ({1: "a", 3: "c"}, {1: ["a"]}, ValueError, r"none without a prediction, 1 \(such as 3\) without references"),
        (["a", "b"], [["a"], []], ValueError, "image 1 has no references"),
        (["a", None], [["a"], ["b"]], TypeError, "prediction of image 1 is None"),
        (["a", ["b"]], [["a"], ["b"]], TypeError, r"prediction of image 1 is \['b'\]"),
        (["a", "b"], [["a"], "b"], TypeError, "references of image 1 are one string"),
        (["a", "b"], [["a"], ["b", 3]], TypeError, "image 1 has 3 among its references"),
        ({1: "a"}, [["a"]], TypeError, "both be keyed by image or both be lists"),
        ([], [], ValueError, "no predictions"),
    ],
)
def test_wrong_input_is_refused(predictions, references, error, message):
    with pytest.raises(error, match=message):
        caption_metrics(predictions, references)


def test_unknown_metric_is_refused():
    with pytest.raises(ValueError, match="'blue'"):
        caption_metrics(PREDICTIONS, REFERENCES, metrics=["blue"])


def test_cider_of_one_image_warns():
    with pytest.warns(UserWarning, match="CIDEr of one image is 0"):
        assert caption_metrics(["a dog"], [["a dog"]])["CIDEr"] == 0


@pytest.mark.parametrize(
    ("predictions", "references", "reason"),
    [
        (["...", "", " "], [["a dog"], ["a cat"], ["a bird"]], "no prediction has a word"),
        (["", "ein Hund läuft"], [["a cat"], ["a dog runs"]], r"'ein hund läuft' and 'a dog runs' of image 1"),
        (["x " * 500, "y"], [["a dog"], ["a cat"]], r"such as '(x )+x?\.\.\. and 'a dog'"),
    ],
)
@pytest.mark.parametrize("metrics", [["bleu", "rouge", "cider"], ["rouge"], ["cider", "spice"]])
def test_scores_that_are_all_0_are_said_with_the_likely_reason(predictions, references, reason, metrics, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.warns(UserWarning, match=f"^Every score is 0: .*{reason}") as warned:
        caption_metrics(predictions, references, metrics)
    assert len(warned) == 1
    assert len(str(warned[0].message)) < 500


@pytest.mark.filterwarnings("error:Every score")
@pytest.mark.parametrize(
    ("predictions", "references"),
    [
        (["a", "b"], [["a dog runs on grass"], ["the cat"]]),  # BLEU-1 is not 0, BLEU-4 is
        (PREDICTIONS, REFERENCES),
    ],
)
def test_a_score_above_0_is_no_reason_to_warn(predictions, references):
    assert caption_metrics(predictions, references)["BLEU-1"] > 0


@pytest.mark.filterwarnings("error:Every score", "ignore:CIDEr of one image")
def test_a_cider_that_is_0_by_definition_is_not_said_twice():
    assert caption_metrics(["a dog"], [["a dog"]], ["cider"])["CIDEr"] == 0


def test_without_java_meteor_is_not_computed_rather_than_0(monkeypatch):
    monkeypatch.setenv("PATH", "")
    scores = caption_metrics(PREDICTIONS, REFERENCES, metrics=["bleu", "meteor", "spice"])
    assert scores["METEOR"] is None
    assert scores["SPICE"] is None
    assert set(scores.not_computed) == {"METEOR", "SPICE"}
    assert "METEOR" not in scores.per_image
    assert "not computed" in str(scores)


@pytest.fixture
def fake_java(tmp_path, monkeypatch):
    """Puts a `java` that runs the given Python lines on the PATH, and a pycocoevalcap folder on the module path."""
    (tmp_path / "modules" / "pycocoevalcap" / "spice" / "lib").mkdir(parents=True)
    (tmp_path / "modules" / "pycocoevalcap" / "spice" / "lib" / "stanford-corenlp-3.6.0-models.jar").touch()
    monkeypatch.syspath_prepend(tmp_path / "modules")
    monkeypatch.delitem(sys.modules, "pycocoevalcap", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)

    def install(code):
        program = tmp_path / "java"
        program.write_text(f"#!{sys.executable}\n{code}\n")
        program.chmod(program.stat().st_mode | stat.S_IEXEC)

    return install


def test_meteor_asks_for_counts_and_then_for_scores(fake_java):
    fake_java(
        "import sys\n"
        "for line in sys.stdin:\n"
        "    kind, *fields = line.strip('\\n').split(' ||| ')\n"
        "    answers = [f'{fields[-1]}/{len(fields)}'] if kind == 'SCORE' else ['.5' if '/' in f else 'x' for f in fields] + ['.25']\n"
        "    print(*answers, sep='\\n', flush=True)"
    )
    score, per_image = meteor(["a dog", "café"], [["a dog"], ["b", "c"]], timeout=60)
    assert (score, per_image.tolist()) == (0.25, [0.5, 0.5])


def test_spice_gives_the_f_score_of_each_image_in_order(fake_java):
    fake_java(
        "import json, sys\n"
        "source = next(a for a in sys.argv if a.endswith('captions.json'))\n"
        "images = json.load(open(source))\n"
        "scores = [{'image_id': i['image_id'], 'scores': {'All': {'f': len(i['refs']) / 4}}} for i in reversed(images)]\n"
        "json.dump(scores, open(sys.argv[sys.argv.index('-out') + 1], 'w'))"
    )
    score, per_image = spice(["a", "b"], [["a"], ["b", "c"]], timeout=60)
    assert (score, per_image.tolist()) == (0.375, [0.25, 0.5])


@pytest.mark.parametrize("metric", [meteor, spice])
def test_java_that_fails_says_why(fake_java, metric):
    fake_java("import sys; sys.exit('no memory left')")
    with pytest.raises(NotComputedError, match="Java failed: no memory left"):
        metric(["a"], [["a"]], timeout=60)


@pytest.mark.parametrize("metric", [meteor, spice])
def test_java_that_hangs_is_ended(fake_java, metric):
    fake_java("import time; time.sleep(60)")
    start = time.monotonic()
    with pytest.raises(NotComputedError, match=r"more than 0\.5 seconds"):
        metric(["a"], [["a"]], timeout=0.5)
    assert time.monotonic() - start < 30


def test_import_needs_neither_torch_nor_transformers():
    # the package around it imports both: load the sub-package under another name
    folder = Path(modeling_cnnrnn.metrics.__file__).parents[1]
    code = (
        "import sys, types\n"
        "package = types.ModuleType('modeling_cnnrnn'); package.__path__ = [sys.argv[1]]\n"
        "sys.modules['modeling_cnnrnn'] = package\n"
        "import modeling_cnnrnn.metrics\n"
        "print([name for name in ('torch', 'transformers', 'evaluate', 'datasets') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# The command


def coco_files(folder, results=None, references=None):
    images = [{"id": 7}, {"id": 3}]
    annotations = [
        {"image_id": image, "id": i, "caption": caption}
        for i, (image, caption) in enumerate(zip([3, 7, 7, 3], [*REFERENCES[1], *REFERENCES[0]], strict=True))
    ]
    results = (
        [{"image_id": 3, "caption": PREDICTIONS[0]}, {"image_id": 7, "caption": PREDICTIONS[1]}]
        if results is None
        else results
    )
    references = {"images": images, "annotations": annotations} if references is None else references
    for name, content in ("results", results), ("references", references):
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / f"{name}.json").write_text(text, encoding="latin-1")
    return ["--results", str(folder / "results.json"), "--references", str(folder / "references.json")]


def test_command_prints_a_table_and_writes_all_scores(tmp_path):
    arguments = [*coco_files(tmp_path), "--training_captions", str(tmp_path / "references.json")]
    command = [sys.executable, "-m", "modeling_cnnrnn.metrics", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    written = json.loads((tmp_path / "results_scores.json").read_text())
    references = {7: [REFERENCES[1][1], REFERENCES[0][0]], 3: [REFERENCES[1][0], REFERENCES[0][1]]}
    expected = caption_metrics({3: PREDICTIONS[0], 7: PREDICTIONS[1]}, references)
    assert written["scores"] == expected
    assert [image["image_id"] for image in written["images"]] == [7, 3]
    assert written["images"][0]["CIDEr"] == expected.per_image["CIDEr"][0]
    assert written["health"]["novel"] == 1.0
    for name, value in expected.items():
        assert f"{name:8}{value:8.4f}" in done.stdout


@pytest.fixture
def run_command(monkeypatch):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["metrics", *arguments])
        command.main()

    return run


def test_command_scores_a_subset_when_asked_to(tmp_path, run_command, capsys):
    run_command(*coco_files(tmp_path, results=[{"image_id": 3, "caption": "a dog"}]), "--subset")
    printed = capsys.readouterr()
    assert "1 images" in printed.out
    assert "warning: CIDEr of one image" in printed.err


@pytest.mark.parametrize(
    ("results", "references", "message"),
    [
        ([{"image_id": 3, "caption": "a"}], None, "1 (such as 7) without a prediction"),
        ([{"image_id": i, "caption": "a"} for i in (3, 7, 7)], None, "2 predictions for image 7"),
        ([{"image_id": 7, "caption": "a"}, {"image_id": "7", "caption": "b"}], None, "2 predictions for image 7"),
        ([{"image_id": 3}], None, "entry 0 of its captions is {'image_id': 3}"),
        ([{"image_id": 3, "caption": "a"}, {"image_id": [7], "caption": "a"}], None, "entry 1 of its captions"),
        ([{"image_id": 3, "caption": "a"}, ["x" * 10_000]], None, "...,"),
        ({"3": "a", "7": "b"}, None, "not in COCO format: it must be a list"),
        ("[" * 100_000, None, "nested too deep"),
        ("[" + "9" * 5000 + "]", None, "not a JSON file"),
        (b"[\xe9]".decode("latin-1"), None, "not a JSON file"),
        (
            None,
            {"images": [{"id": "7"}, {"id": "07"}], "annotations": [{"image_id": 7, "caption": "a"}]},
            "'7' or '07'",
        ),
        ([{"image_id": 3, "caption": 5}, {"image_id": 7, "caption": "a"}], None, "prediction of image 3 is 5"),
        ("{", None, "not a JSON file"),
        (None, [], "no list of"),
        (None, {"images": [{"id": 3}, {"id": 7}], "annotations": [{"image_id": 3, "caption": "a"}]}, "image 7 has no"),
        (None, {"images": [3], "annotations": []}, "each image is"),
    ],
)
def test_command_says_in_one_line_what_is_wrong(tmp_path, run_command, results, references, message):
    with pytest.raises(SystemExit, match=r"^error: [^\n]*$") as exit_info:
        run_command(*coco_files(tmp_path, results, references))
    assert message in str(exit_info.value.code)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_command_reads_json_as_editors_save_it(tmp_path, run_command, capsys, encoding):
    arguments = coco_files(tmp_path)
    run_command(*arguments)
    expected = capsys.readouterr().out
    for name in ("results.json", "references.json"):
        text = (tmp_path / name).read_text(encoding="utf-8")
        (tmp_path / name).write_text(text, encoding=encoding)
    run_command(*arguments)
    assert capsys.readouterr().out == expected


SPELLINGS = [(int, str), (str, int), (float, str), (str, "{:012d}".format), ("{:012d}".format, int), (float, int)]


@pytest.mark.parametrize(("spell_result", "spell_image"), SPELLINGS)
@pytest.mark.parametrize("spell_annotation", [int, str])
def test_command_matches_ids_that_are_a_number_here_and_a_string_there(
    tmp_path, run_command, spell_result, spell_image, spell_annotation
):
    run_command(*coco_files(tmp_path))
    expected = json.loads((tmp_path / "results_scores.json").read_text())
    captions = list(zip([3, 7, 7, 3], [*REFERENCES[1], *REFERENCES[0]], strict=True))
    references = {
        "images": [{"id": spell_image(7)}, {"id": spell_image(3)}],
        "annotations": [{"image_id": spell_annotation(image), "caption": caption} for image, caption in captions],
    }
    predictions = zip([3, 7], PREDICTIONS, strict=True)
    results = [{"image_id": spell_result(image), "caption": caption} for image, caption in predictions]
    run_command(*coco_files(tmp_path, results, references))
    written = json.loads((tmp_path / "results_scores.json").read_text())
    assert written["scores"] == expected["scores"]
    assert [image["image_id"] for image in written["images"]] == [spell_image(7), spell_image(3)]


def test_command_keeps_apart_ids_that_the_references_keep_apart(tmp_path, run_command):
    ids = [7, "7", "07"]
    references = {
        "images": [{"id": image} for image in ids],
        "annotations": [{"image_id": image, "caption": f"a dog {place}"} for place, image in enumerate(ids)],
    }
    results = [{"image_id": image, "caption": f"a dog {place}"} for place, image in enumerate(ids)]
    run_command(*coco_files(tmp_path, results, references))
    assert json.loads((tmp_path / "results_scores.json").read_text())["scores"]["ROUGE-L"] == 1


def test_command_says_that_a_subset_has_no_image(tmp_path, run_command):
    results = [{"image_id": "dog.jpg", "caption": "a"}]
    with pytest.raises(
        SystemExit, match=r"^error: no image of .* \(such as 'dog.jpg'\) is an image of .* \(such as 7\)"
    ):
        run_command(*coco_files(tmp_path, results), "--subset")


def test_command_names_the_missing_file(tmp_path, run_command):
    missing = str(tmp_path / "none.json")
    with pytest.raises(SystemExit, match=r"^error: there is no file .*none\.json\.$"):
        run_command("--results", missing, "--references", missing)


@pytest.mark.slow
def test_evaluate_module_gives_the_same_numbers(tmp_path):
    code = (
        "import json, sys, evaluate\n"
        "metric = evaluate.load(sys.argv[1])\n"
        "print(json.dumps(metric.compute(predictions=json.loads(sys.argv[2]), references=json.loads(sys.argv[3]))))"
    )
    folder = EXAMPLES / "evaluate_metric" / "cnnrnn_caption_metrics.py"
    words = ["-c", code, folder, json.dumps(PREDICTIONS), json.dumps(REFERENCES)]
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1"}
    done = run_python(*words, env=environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == caption_metrics(PREDICTIONS, REFERENCES)


# Without references


def test_health_counts_what_a_reader_would():
    captions = ["A dog runs .", "a dog runs", "A man with a", "a <unk> on a bench", ""]
    health = caption_health(captions, training_captions=["a dog runs!", "a cat"])
    assert health["captions"] == 5
    assert health["vocabulary"] == 8  # a dog runs man with <unk> on bench
    assert health["mean_length"] == pytest.approx((3 + 3 + 4 + 5 + 0) / 5)
    assert health["unique"] == pytest.approx(4 / 5)
    assert health["distinct-1"] == pytest.approx(8 / 15)
    assert health["distinct-4"] == pytest.approx(3 / 3)
    assert health["novel"] == pytest.approx(3 / 5)
    assert health["unfinished"] == pytest.approx(2 / 5)
    assert health["unknown"] == pytest.approx(1 / 5)
    assert "novel" not in caption_health(captions)


def plain_retrieval(scores, per_image):
    """Ranks by counting, one pair at a time."""
    num_images, num_captions = scores.shape
    to_text = []
    for i in range(num_images):
        own = range(i * per_image, (i + 1) * per_image)
        best = max(scores[i, j] for j in own)
        to_text.append(sum(scores[i, j] >= best for j in range(num_captions) if j not in own))
    to_image = [
        sum(scores[i, j] >= scores[j // per_image, j] for i in range(num_images) if i != j // per_image)
        for j in range(num_captions)
    ]
    return {
        name: {f"R@{k}": 100 * np.mean([r < k for r in ranks]) for k in (1, 5, 10)}
        | {"median_rank": math.floor(np.median(ranks)) + 1}
        for name, ranks in (("image_to_text", to_text), ("text_to_image", to_image))
    }


@pytest.mark.parametrize("per_image", [1, 5])
def test_retrieval_equals_counting(per_image):
    scores = np.random.default_rng(per_image).integers(0, 40, (30, 30 * per_image))  # with many ties
    expected = plain_retrieval(scores, per_image)
    measured = retrieval_metrics(scores, per_image)
    for direction in expected:
        assert measured[direction] == pytest.approx(expected[direction])


def test_retrieval_ties_count_against_the_model():
    measured = retrieval_metrics(np.zeros((20, 100)))
    assert measured["image_to_text"] == {"R@1": 0.0, "R@5": 0.0, "R@10": 0.0, "median_rank": 96.0}
    assert measured["text_to_image"] == {"R@1": 0.0, "R@5": 0.0, "R@10": 0.0, "median_rank": 20.0}


def test_images_may_have_different_numbers_of_captions():
    """Copies of an image's captions, which tie with them, change no rank of the images."""
    scores = np.random.default_rng(0).normal(size=(12, 24))
    counts = [1, 3] * 6
    own = np.repeat(np.arange(12), counts)
    measured = retrieval_metrics(scores, counts)
    best = np.array([scores[i, own == i].max() for i in range(12)])
    ranks = [(scores[i, own != i] >= best[i]).sum() for i in range(12)]
    assert measured["image_to_text"]["R@1"] == pytest.approx(100 * np.mean(np.array(ranks) < 1))
    assert measured["image_to_text"]["median_rank"] == math.floor(np.median(ranks)) + 1
    ranks = [(np.delete(scores[:, j], own[j]) >= scores[own[j], j]).sum() for j in range(24)]
    assert measured["text_to_image"]["R@5"] == pytest.approx(100 * np.mean(np.array(ranks) < 5))


def test_a_caption_that_fits_everything_loses_its_lead():
    scores = np.eye(4) + np.array([0.0, 0.0, 0.0, 2.0])  # the last caption comes first for each image
    others = np.random.default_rng(0).normal(scale=0.01, size=(20, 4)) + np.array([0.0, 0.0, 0.0, 2.0])
    assert retrieval_metrics(scores, 1)["image_to_text"]["R@1"] == 25.0
    corrected = less_hubs(scores, others)
    assert retrieval_metrics(corrected, 1)["image_to_text"]["R@1"] == 100.0
    assert (corrected.argsort(axis=0) == scores.argsort(axis=0)).all()
    expected = [np.sort(others[:, j])[-10:].mean() for j in range(4)]
    np.testing.assert_allclose(scores - corrected, np.tile(expected, (4, 1)))
    of_images = less_hubs(scores.T, others, 3, weight=0.5).T
    expected = [0.5 * np.sort(others[:, i])[-3:].mean() for i in range(4)]
    np.testing.assert_allclose(scores - of_images, np.tile(expected, (4, 1)).T)
    with pytest.raises(ValueError, match="pass those of 10 images or more with the same 4 captions"):
        less_hubs(scores, others[:9])


def test_retrieval_folds_are_scored_apart():
    scores = np.random.default_rng(0).normal(size=(40, 200))
    folds = [retrieval_metrics(scores[i : i + 20, 5 * i : 5 * i + 100]) for i in (0, 20)]
    measured = retrieval_metrics(scores, fold_size=20)
    for direction, values in measured.items():
        assert values == pytest.approx({name: np.mean([fold[direction][name] for fold in folds]) for name in values})


@pytest.mark.parametrize(
    ("scores", "fold_size", "message"),
    [
        (np.zeros((3, 14)), None, r"shape \(3, 14\)"),
        (np.full((2, 10), np.nan), None, "NaN"),
        (np.zeros((4, 20)), 3, "divides the 4 images"),
    ],
)
def test_retrieval_refuses_wrong_scores(scores, fold_size, message):
    with pytest.raises(ValueError, match=message):
        retrieval_metrics(scores, fold_size=fold_size)


def test_perplexity_is_over_all_tokens_of_the_corpus():
    log_probs = [np.log([[0.5, 0.25, 0.9]]), np.log([[0.125]])]
    labels = [np.array([[4, 2, -100]]), np.array([[2]])]
    assert perplexity(log_probs, labels) == pytest.approx((0.5 * 0.25 * 0.125) ** (-1 / 3))


@pytest.mark.parametrize(
    ("log_probs", "labels", "message"),
    [
        ([np.zeros(3)], [np.zeros(2)], "differ in shape"),
        ([np.array([0.3])], [np.array([1])], "positive or NaN"),
        ([np.array([-0.3])], [np.array([-100])], "no label counts"),
    ],
)
def test_perplexity_refuses_wrong_input(log_probs, labels, message):
    with pytest.raises(ValueError, match=message):
        perplexity(log_probs, labels)
