"""`cnnrnn index` and `cnnrnn search`: what they print and write, and what they say where something is wrong."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.command import cnnrnn

from modeling_cnnrnn import CnnRnnAlignmentConfig, CnnRnnForImageTextRetrieval
from modeling_cnnrnn.retrieval.embedding import load_model
from modeling_cnnrnn.retrieval.index import ImageIndex


SENTENCE = "a dog jumps over a green triangle"


@pytest.fixture
def aligner(tmp_path, tiny_encoder_config, tiny_processor) -> Path:
    torch.manual_seed(0)
    sizes = {"vocab_size": 20, "hidden_size": 14, "embedding_size": 12, "word_embedding_size": 10}
    config = CnnRnnAlignmentConfig(encoder=tiny_encoder_config.to_dict(), initializer_range=0.5, **sizes)
    CnnRnnForImageTextRetrieval(config).save_pretrained(tmp_path / "aligner")
    tiny_processor.save_pretrained(tmp_path / "aligner")
    return tmp_path / "aligner"


@pytest.fixture
def photographs(tmp_path) -> Path:
    """Three photographs, one in a folder below, and a file that is none."""
    folder = tmp_path / "photographs"
    (folder / "trip").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.png", "trip/c.png"):
        Image.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(folder / name)
    (folder / "broken.jpg").write_text("no picture")
    return folder


@pytest.fixture
def index(aligner, photographs, tmp_path, capfd) -> Path:
    """The index of the photographs, and the command that made it has been read."""
    (photographs / "broken.jpg").unlink()
    assert cnnrnn("index", photographs, "--model_name_or_path", aligner, "--output_dir", tmp_path / "index") == 0
    assert capfd.readouterr().err.splitlines()[-1] == (
        f"3 pictures are indexed (3 embedded, 0 gone, 0 unreadable): {tmp_path / 'index'}"
    )
    return tmp_path / "index"


def test_a_sentence_finds_pictures_best_first(index, aligner, capfd):
    assert cnnrnn("search", *SENTENCE.split(), "--index_dir", index, "--top_k", 2) == 0
    printed = capfd.readouterr()
    results = ImageIndex(index, *load_model(str(aligner))).search(SENTENCE, top_k=2)
    assert printed.out.splitlines() == [f"{result.score:.3f}  {result.path}" for result in results]
    assert printed.err == ""


def test_a_picture_finds_itself(index, photographs, tmp_path, capfd):
    table = tmp_path / "results.jsonl"
    words = ["--image", photographs / "b.png", "--index_dir", index, "--output", table]
    assert cnnrnn("search", *words) == 0
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    assert [row.keys() for row in rows] == 3 * [{"file_name", "score"}]
    assert rows[0]["file_name"] == str(photographs / "b.png")
    assert len(capfd.readouterr().out.splitlines()) == 3


def test_results_are_written_as_a_page(index, photographs, tmp_path):
    (photographs / "a.png").rename(photographs / "b & <b>.png")
    page = tmp_path / "new" / "results.html"
    assert cnnrnn("search", SENTENCE, "--index_dir", index, "--page", page) == 0
    text = page.read_text()
    assert text.count("data:image/png;base64,") == 2
    assert text.count("this picture is gone") == 1
    assert f"<h1>{SENTENCE}</h1>" in text
    assert text.index("1 · score") < text.index("2 · score") < text.index("3 · score")


def test_the_page_of_similar_pictures_shows_the_one_that_was_searched_for(index, photographs, tmp_path):
    page = tmp_path / "results.html"
    assert cnnrnn("search", "--image", photographs / "a.png", "--index_dir", index, "--page", page) == 0
    text = page.read_text()
    assert "Similar to a.png" in text
    assert text.count("data:image/png;base64,") == 4


def test_pictures_that_are_gone_are_counted(index, photographs, capfd):
    (photographs / "a.png").unlink()
    assert cnnrnn("search", SENTENCE, "--index_dir", index) == 0
    assert "1 of these pictures are gone: run `cnnrnn index` again to forget them." in capfd.readouterr().err


def test_broken_pictures_are_named_and_the_rest_is_indexed(aligner, photographs, tmp_path, capfd):
    words = [photographs, "--model_name_or_path", aligner, "--output_dir", tmp_path / "index"]
    assert cnnrnn("index", *words) == 1
    printed = capfd.readouterr()
    assert printed.out == ""
    assert "broken.jpg could not be read: " in printed.err
    assert "3 pictures are indexed (3 embedded, 0 gone, 1 unreadable)" in printed.err


def test_words_that_the_model_does_not_know_are_named(index, capfd):
    assert cnnrnn("search", "a sesquipedalian dog", "--index_dir", index) == 0
    assert capfd.readouterr().err == "The model does not know: sesquipedalian.\n"


def test_an_index_that_is_not_finished_says_so(index, capfd):
    manifest = json.loads((index / "index.json").read_text())
    (index / "index.json").write_text(json.dumps(manifest | {"is_complete": False}))
    assert cnnrnn("search", SENTENCE, "--index_dir", index) == 0
    assert "is not finished: run `cnnrnn index` again to resume it." in capfd.readouterr().err


def test_a_query_bank_is_read_line_by_line(index, aligner, photographs, tmp_path, capfd):
    bank = tmp_path / "captions.txt"
    bank.write_text("a dog\n\na red circle\nsesquipedalian\n")
    words = ["index", photographs, "--model_name_or_path", aligner, "--output_dir", index, "--query_bank", bank]
    assert cnnrnn(*words) == 0
    assert "1 sentences of the query bank have no known word." in capfd.readouterr().err
    assert json.loads((index / "index.json").read_text())["bank"] == ["a dog", "a red circle", "sesquipedalian"]
    assert cnnrnn("search", SENTENCE, "--index_dir", index, "--less_hub_bias") == 0


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["search"], "Pass a sentence, as in `cnnrnn search"),
        (["search", "a dog", "--image", "a.png"], "but not both"),
        (["search", "a dog", "--index_dir", "nowhere"], "'nowhere' is no index of pictures: make one with `cnnrnn index`"),
        (["search", "--image", "nowhere.png", "--index_dir", "{index}"], "nowhere.png') does not exist"),
        (["search", "sesquipedalian", "--index_dir", "{index}"], "has no word that the model knows: use other words"),
        (["search", "a dog", "--index_dir", "{index}", "--output", "a.txt"], "`output` is 'a.txt'"),
        (["search", "a dog", "--index_dir", "{index}", "--top_k", "0"], "`top_k` is 0"),
        (["search", "a dog", "--index_dir", "{index}", "--shortlist_size", "-1"], "`shortlist_size` is -1"),
        (["search", "a dog", "--index_dir", "{index}", "--less_hub_bias"], "has no query bank"),
        (["search", "a dog", "--index_dir", "{index}", "--model_name_or_path", "{index}"], "{index}"),
        (["index", "nowhere", "--model_name_or_path", "{aligner}", "--output_dir", "{index}"], "which is no folder"),
        (["index", "{aligner}", "--model_name_or_path", "{aligner}", "--output_dir", "{new}"], "has no picture in it"),
        (["index", "{photographs}", "--model_name_or_path", "{aligner}", "--output_dir", "{aligner}"], "holds something else"),
        (["index", "{photographs}", "--model_name_or_path", "{photographs}", "--output_dir", "{new}"], "{photographs}"),
        (["index", "{photographs}", "--model_name_or_path", "{aligner}", "--output_dir", "{aligner}/config.json"], "a file"),
        (["index", "{photographs}", "--model_name_or_path", "{aligner}", "--query_bank", "{index}/a.txt"], "a.txt"),
    ],
)  # fmt: skip
def test_a_mistake_ends_in_one_sentence(words, sentence, index, aligner, photographs, tmp_path, capfd):
    places = {"index": index, "aligner": aligner, "photographs": photographs, "new": tmp_path / "new"}
    before = {path: path.read_bytes() for path in index.rglob("*") if path.is_file()}
    assert cnnrnn(*(word.format(**places) for word in words)) == 1
    printed = capfd.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines()[-1].startswith("Error: ")
    assert sentence.format(**places) in printed.err
    assert "Traceback" not in printed.err
    assert {path: path.read_bytes() for path in index.rglob("*") if path.is_file()} == before


def test_a_captioner_in_place_of_an_alignment_model_is_named(model, tiny_processor, photographs, tmp_path, capfd):
    model.save_pretrained(tmp_path / "captioner")
    tiny_processor.save_pretrained(tmp_path / "captioner")
    words = [photographs, "--model_name_or_path", tmp_path / "captioner", "--output_dir", tmp_path / "index"]
    assert cnnrnn("index", *words) == 1
    assert capfd.readouterr().err.splitlines()[-1].startswith("Error: ")
