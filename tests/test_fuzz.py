"""The fuzzer finds what it is there to find, and makes each mutation again."""

import builtins

import pytest
from fuzz import outcomes
from fuzz.mutations import mutate_folder
from fuzz.outcomes import fuzz_folders, fuzz_pictures, load_by_classes, load_by_pipeline, outcome, random_of

from modeling_cnnrnn import CnnRnnProcessor


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two captioners, one of them with a processor that is not JSON."""
    folder = tmp_path_factory.mktemp("fuzz")
    outcomes.save_captioner(folder / "whole")
    outcomes.save_captioner(folder / "broken")
    (folder / "broken" / "processor_config.json").write_text("{")
    return folder


def raising(error: BaseException):
    def action(*_, **__):
        raise error

    return action


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("cat.png is empty: take another."), "refused"),
        (OSError("cat.png cannot be read: check its permissions."), "refused"),
        (ValueError("cannot be read"), "obscure"),
        (ValueError("cat.png is\nempty"), "obscure"),
        (ValueError("cat.png \x1b[31m"), "obscure"),
        (ValueError("cat.png is empty: " + "a" * 1000), "obscure"),
        (FileNotFoundError(2, "No such file or directory", "cat.png"), "obscure"),
        (KeyError("cat.png"), "raw"),
        (RuntimeError("cat.png"), "raw"),
        (MemoryError(), "raw"),
        (SystemExit("cat.png"), "raw"),
    ],
    ids=str,
)
def test_an_end_is_judged(error, expected):
    assert outcome(raising(error), ["cat.png"])[0] == expected


def test_a_question_is_raw_though_it_is_handled():
    def asks():
        try:
            builtins.input("Run the code? [y/N]")
        except Exception as error:
            raise ValueError("cat.png needs an answer") from error

    assert outcome(asks, ["cat.png"]) == ("raw", "AskedError: a question on the terminal")
    assert builtins.input.__module__ != outcomes.__name__


def test_an_endless_load_is_raw(monkeypatch):
    monkeypatch.setattr(outcomes, "SECONDS", 1)

    def runs_for_ever():
        while True:
            pass

    assert outcome(runs_for_ever, [])[0] == "raw"


@pytest.mark.parametrize("load", [load_by_classes, load_by_pipeline])
def test_whole_captioners_are_fine_and_broken_ones_refused(folder, load):
    assert outcome(lambda: load(folder / "whole"), ["whole"]) == ("fine", "")
    assert outcome(lambda: load(folder / "broken"), ["broken"])[0] == "refused"


@pytest.mark.parametrize("error", [KeyError("id"), ValueError("no")], ids=str)
def test_planted_faults_are_found(folder, monkeypatch, error):
    monkeypatch.setattr(CnnRnnProcessor, "from_pretrained", raising(error))
    report = fuzz_folders(range(3), 0, folder)
    assert report.counts.total() == 3
    assert [index for index, _ in report.found] == [0, 1, 2]


@pytest.mark.parametrize("load", [load_by_classes, load_by_pipeline])
def test_some_mutated_folders_are_fine_or_refused(folder, load):
    report = fuzz_folders(range(15), 5, folder, load)
    assert report.found == []
    assert min(report.counts["fine"], report.counts["refused"]) > 0


def test_some_mutated_pictures_are_fine_or_refused(tmp_path):
    report = fuzz_pictures(range(50), 5, tmp_path)
    assert report.found == []
    assert min(report.counts["fine"], report.counts["refused"]) > 0


def test_a_mutation_is_made_again_by_its_number(folder, tmp_path):
    made = [mutate_folder(folder / "whole", tmp_path / name, random_of(3, 8)) for name in "ab"]
    assert made[0] == made[1]
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    assert mutate_folder(folder / "whole", tmp_path / "c", random_of(3, 9)) != made[0]
