"""An index of photographs: what is embedded and when, what a search finds, and what cannot be."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_cnnrnn import load_image
from modeling_cnnrnn.evaluation.image_captions import images_below
from modeling_cnnrnn.retrieval import building
from modeling_cnnrnn.retrieval.building import build_index
from modeling_cnnrnn.retrieval.index import ImageIndex
from modeling_cnnrnn.retrieval.storage import DamagedIndexError, Manifest, Shard


SENTENCE = "a dog jumps over a green triangle"


@pytest.fixture
def build(photographs, tmp_path, aligner, tiny_processor):
    """`build(...)`: the index of the photographs in shards of four, made or brought up to date; returns what was done."""

    def run(folder=photographs, model=aligner, **options):
        options = {"rows_per_shard": 4, "batch_size": 1} | options  # a batch changes the last bits of its pictures
        return build_index(folder, tmp_path / "index", model, tiny_processor, **options)

    return run


@pytest.fixture
def open_index(tmp_path, aligner, tiny_processor):
    return lambda: ImageIndex(tmp_path / "index", aligner, tiny_processor)


@pytest.fixture
def embedded(monkeypatch) -> list[int]:
    """The numbers of pictures that were embedded, call by call."""
    numbers = []
    embed = building.embed_images

    def counted(model, pixel_values):
        numbers.append(len(pixel_values))
        return embed(model, pixel_values)

    monkeypatch.setattr(building, "embed_images", counted)
    return numbers


def contents(index: ImageIndex) -> dict[str, tuple[bytes, bytes]]:
    """What an index holds of each picture."""
    pictures = index.pictures
    return {
        pictures.name(i): (pictures.take("regions", [i]).tobytes(), pictures.take("pooled", [i]).tobytes())
        for i in range(len(pictures))
    }


def replace(path, color):
    """Put another picture in the place of a file, or a new one."""
    Image.new("RGB", (40, 32), color).save(path)
    os.utime(path, ns=(1, 1))


def test_a_search_finds_what_the_model_scores_highest(build, open_index, photographs, aligner, tiny_processor):
    build()
    paths = images_below(photographs)
    images = [load_image(path) for path in paths]
    pixel_values = tiny_processor(images=images, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        outputs = aligner(pixel_values, torch.tensor([tiny_processor.tokenizer(SENTENCE)["input_ids"]]))
    scores = (outputs.logits_per_image[:, 0] / aligner.model.logit_scale.exp()).detach()
    order = scores.argsort(descending=True).tolist()
    results = open_index().search(SENTENCE, top_k=len(paths))
    assert [result.path for result in results] == [paths[i] for i in order]
    np.testing.assert_allclose([result.score for result in results], scores[order], rtol=2e-3, atol=2e-3)  # of float16


def test_a_picture_finds_itself_first(build, open_index, photographs):
    build()
    for name in ("a.png", "trip/e.png"):
        results = open_index().search(image=photographs / name, top_k=2)
        assert results[0].path == str(photographs / name)
        assert results[0].score > results[1].score


def test_a_shortlist_is_of_the_nearest_pooled_vectors(build, open_index):
    build()
    index = open_index()
    query = index.embed(SENTENCE)
    nearest = np.argsort(-(index.pictures.pooled @ query.vector))[:4]
    every = [r for r in index.search_query(query, 10, None) if r.path in {index.path(i) for i in nearest}]
    assert index.search_query(query, top_k=4, shortlist_size=4) == every
    assert len(index.search_query(query, top_k=6, shortlist_size=2)) == 6  # as many as are asked for at least


def test_the_graph_finds_what_the_product_finds(build, open_index, tmp_path):
    build(approximate=True)
    index = open_index()
    assert (tmp_path / "index" / "pooled.usearch").exists()
    found = index.search(SENTENCE, top_k=3, shortlist_size=5)
    assert found == index.search(SENTENCE, top_k=3, shortlist_size=5, exact=True)


def test_the_graph_follows_the_folder(build, open_index, photographs, tmp_path):
    build(approximate=True)
    (photographs / "c.png").unlink()
    replace(photographs / "new.png", "red")
    replace(photographs / "a.png", "blue")
    build()
    index = open_index()
    assert index.manifest.has_graph
    assert np.array_equal(np.sort(np.asarray(index._graph.keys)), index.pictures.keys)
    vectors = index._graph.get(index.pictures.keys)
    np.testing.assert_allclose(vectors, index.pictures.pooled, rtol=1e-3, atol=1e-3)
    build(approximate=False)
    assert not (tmp_path / "index" / "pooled.usearch").exists()
    assert open_index().search(SENTENCE, shortlist_size=3, top_k=3)


def test_only_what_is_new_or_has_changed_is_embedded(build, open_index, photographs, embedded):
    update = build()
    assert (update.num_pictures, update.num_embedded, sum(embedded)) == (7, 7, 7)
    before = contents(open_index())
    (photographs / "b.png").unlink()
    replace(photographs / "c.png", "red")
    replace(photographs / "trip" / "z.png", "blue")
    embedded.clear()
    update = build()
    assert (update.num_pictures, update.num_embedded, update.num_removed, sum(embedded)) == (7, 2, 1, 2)
    after = contents(open_index())
    assert before.keys() - after.keys() == {"b.png"}
    assert after.keys() - before.keys() == {"trip/z.png"}
    assert {name for name in before.keys() & after.keys() if before[name] != after[name]} == {"c.png"}
    embedded.clear()
    assert build().num_embedded == sum(embedded) == 0


def test_an_updated_index_is_the_one_that_is_made_anew(build, open_index, photographs, tmp_path):
    """After many small updates too, which leave few shards."""
    build()
    (photographs / "b.png").unlink()
    for number in range(9):
        replace(photographs / f"new-{number}.png", (20 * number, 0, 0))
        replace(photographs / "c.png", (0, 20 * number, 0))
        build()
    updated = contents(open_index())
    shards = {path.name for path in (tmp_path / "index").glob("*.safetensors")}
    assert shards == Manifest.load(tmp_path / "index").shards.keys()
    assert len(shards) <= 2 * len(updated) / 4 + 1
    build(overwrite=True)
    assert contents(open_index()) == updated


def test_work_that_was_killed_resumes_after_the_last_whole_shard(build, open_index, embedded, monkeypatch):
    embed = building.embed_images

    def killed(*args):
        if sum(embedded) >= 6:
            os._exit(9)
        return embed(*args)

    if not (child := os.fork()):
        monkeypatch.setattr(building, "embed_images", killed)
        build()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    index = open_index()
    assert (len(index), index.manifest.is_complete) == (4, False)
    assert build().num_embedded == sum(embedded) == 3
    assert open_index().manifest.is_complete
    resumed = contents(open_index())
    build(overwrite=True)
    assert contents(open_index()) == resumed


def test_ctrl_c_keeps_what_was_embedded(build, open_index, monkeypatch):
    embed, calls = building.embed_images, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return embed(*args)

    with monkeypatch.context() as patch:
        patch.setattr(building, "embed_images", interrupted)
        with pytest.raises(KeyboardInterrupt):
            build(batch_size=3)
    assert len(open_index()) == 3


def test_broken_files_are_named_and_the_rest_is_indexed(build, open_index, photographs):
    (photographs / "broken.jpg").write_text("no picture")
    (photographs / "lost.png").symlink_to("nowhere.png")
    Image.new("RGB", (60_000, 1)).save(photographs / "line.png")  # too narrow to be resized
    update = build(batch_size=4)
    assert update.unreadable.keys() == {"broken.jpg", "line.png", "lost.png"}
    assert "is not an image that can be read" in update.unreadable["broken.jpg"]
    assert len(open_index()) == 7
    assert build().unreadable.keys() == {"broken.jpg", "line.png", "lost.png"}  # each time


def test_a_file_whose_name_is_no_text_is_found(build, open_index, photographs):
    path = os.fsencode(photographs) + b"/caf\xe9.png"
    os.rename(os.fsencode(photographs / "a.png"), path)
    build()
    assert os.fsdecode(path) in {result.path for result in open_index().search(SENTENCE)}


def test_pictures_of_different_numbers_of_regions_are_refused(build, photographs, tiny_processor):
    tiny_processor.image_processor.do_center_crop = False
    Image.new("RGB", (96, 40)).save(photographs / "wide.png")
    with pytest.raises(ValueError, match=r"The model makes \d+ regions of 'wide.png' and \d+ of other pictures"):
        build()


def test_a_folder_that_was_moved_is_not_embedded_again(build, open_index, photographs, tmp_path, embedded):
    build()
    photographs.rename(tmp_path / "moved")
    embedded.clear()
    assert build(tmp_path / "moved").num_pictures == 7
    assert sum(embedded) == 0
    assert open_index().search(SENTENCE)[0].path.startswith(str(tmp_path / "moved"))


def test_less_hub_bias_subtracts_the_mean_of_the_best_sentences_of_the_bank(build, open_index, monkeypatch):
    monkeypatch.setattr("modeling_cnnrnn.retrieval.embedding.BANK_TOP_K", 2)
    bank = ["a dog", "a red circle", "two blue circles", "a square below a triangle", "unheard-of"]
    build()
    assert build(query_bank=bank).num_unknown == 1
    index = open_index()
    plain = {result.path: result.score for result in index.search(SENTENCE)}
    known = [{result.path: result.score for result in index.search(sentence)} for sentence in bank[:4]]
    expected = {path: score - np.mean(sorted(scores[path] for scores in known)[-2:]) for path, score in plain.items()}
    results = index.search(SENTENCE, less_hub_bias=True)
    assert {result.path: result.score for result in results} == pytest.approx(expected, abs=1e-5)
    assert [result.path for result in results] == sorted(expected, key=expected.get, reverse=True)


def test_a_new_query_bank_embeds_no_picture_again(build, open_index, embedded):
    build(query_bank=["a dog"])
    first = open_index().search(SENTENCE, less_hub_bias=True)
    embedded.clear()
    build(query_bank=["a red circle"])
    assert sum(embedded) == 0
    second = open_index().search(SENTENCE, less_hub_bias=True)
    assert {result.path: result.score for result in first} != {result.path: result.score for result in second}
    build()  # the bank stays
    assert open_index().search(SENTENCE, less_hub_bias=True) == second


def test_an_index_is_built_and_opened_in_one_call(photographs, tmp_path, aligner, tiny_processor):
    index = ImageIndex.build(photographs, tmp_path / "other", aligner, tiny_processor)
    assert (len(index), index.update.num_embedded) == (7, 7)
    assert len(index.search(SENTENCE)) == 7


def test_shards_are_memory_mapped(build, tmp_path):
    build()
    shard = Shard.load(tmp_path / "index" / "00000.safetensors")
    assert isinstance(shard.regions, np.memmap)
    assert shard.regions.dtype == np.float16


# --------------------------------------------------------------------------------------------------------------------
# What cannot be
# --------------------------------------------------------------------------------------------------------------------


def test_a_folder_without_pictures_is_named_and_the_index_stays(build, open_index, photographs):
    build()
    before = contents(open_index())
    for path in images_below(photographs):
        os.unlink(path)
    with pytest.raises(ValueError, match="has no picture in it: pass another folder"):
        build()
    shutil.rmtree(photographs)
    with pytest.raises(FileNotFoundError, match="is no folder"):
        build()
    assert contents(open_index()) == before


def test_the_index_of_another_folder_or_model_is_not_touched(build, open_index, photographs, tmp_path, other_aligner):
    build()
    before = contents(open_index())
    shutil.copytree(photographs, tmp_path / "others")
    with pytest.raises(ValueError, match=r"is the index of '.*photographs', not of '.*others'"):
        build(tmp_path / "others")
    with pytest.raises(ValueError, match=r"was made by another model"):
        build(model=other_aligner)
    assert contents(open_index()) == before
    assert build(model=other_aligner, overwrite=True).num_embedded == 7
    with pytest.raises(ValueError, match=r"was made by another model"):
        open_index()


def test_a_folder_that_holds_something_else_is_not_touched(build, tmp_path):
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "thesis.txt").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match=r"holds something else than an index \('thesis.txt'\)"):
            build(overwrite=overwrite)
    assert os.listdir(tmp_path / "index") == ["thesis.txt"]


def test_an_empty_index_says_so(build, open_index, photographs):
    for path in images_below(photographs):
        with open(path, "w") as file:
            file.write("no picture")
    assert build(approximate=True).num_pictures == 0
    with pytest.raises(ValueError, match="is an empty index: run `cnnrnn index`"):
        open_index().search(SENTENCE)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"text": "unheard-of sesquipedalian"}, "has no word that the model knows"),
        ({"text": " "}, "has no word that the model knows"),
        ({}, "either `text` or `image`"),
        ({"text": SENTENCE, "image": "a.png"}, "either `text` or `image`"),
        ({"text": SENTENCE, "top_k": 0}, "`top_k` is 0"),
        ({"text": SENTENCE, "shortlist_size": 0}, "`shortlist_size` is 0"),
        ({"text": SENTENCE, "less_hub_bias": True}, "has no query bank"),
    ],
)
def test_a_query_that_makes_no_sense_is_named(build, open_index, options, sentence):
    build()
    with pytest.raises(ValueError, match=sentence):
        open_index().search(**options)


def test_words_that_are_not_known_are_left_to_the_caller_to_say(build, open_index):
    build()
    assert open_index().embed("a sesquipedalian dog").unknown_words == ["sesquipedalian"]


def test_a_query_bank_of_unknown_words_is_refused(build):
    with pytest.raises(ValueError, match="`query_bank` holds 2 sentences without a word that the model knows"):
        build(query_bank=["unheard-of", "sesquipedalian"])


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(path.read_bytes()[:-8]), lambda path: path.unlink()])
def test_a_damaged_shard_is_named_and_its_pictures_are_embedded_again(build, open_index, tmp_path, embedded, damage):
    build()
    before = contents(open_index())
    damage(tmp_path / "index" / "00000.safetensors")
    with pytest.raises(DamagedIndexError, match=r"00000.safetensors' is damaged .*: run `cnnrnn index` again"):
        open_index()
    embedded.clear()
    assert build().damaged == ["00000.safetensors"]
    assert sum(embedded) == 4
    assert contents(open_index()) == before


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        "{}",
        '{"format_version": 1, "folder": 3}',
        lambda manifest: manifest | {"shards": {"00000.safetensors": [99]}},
        lambda manifest: manifest | {"shards": {"../secret.safetensors": []}},
        lambda manifest: manifest | {"folder": 3},
    ],
)
def test_a_damaged_manifest_is_named(build, open_index, tmp_path, content):
    build()
    path = tmp_path / "index" / "index.json"
    path.write_text(json.dumps(content(json.loads(path.read_text()))) if callable(content) else content)
    for use in (open_index, build):
        with pytest.raises(DamagedIndexError, match=r"--overwrite_output_dir"):
            use()
    assert build(overwrite=True).num_pictures == 7


def test_what_a_later_version_has_written_is_not_called_damaged(build, open_index, tmp_path):
    build()
    path = tmp_path / "index" / "index.json"
    path.write_text(path.read_text().replace('"format_version": 1', '"format_version": 2'))
    with pytest.raises(ValueError, match=r"has format version 2, not 1"):
        open_index()


def test_a_folder_that_is_no_index_is_named(open_index):
    with pytest.raises(FileNotFoundError, match=r"is no index of pictures: make one with `cnnrnn index`"):
        open_index()


def test_a_damaged_graph_is_named_and_mended(build, open_index, tmp_path):
    build(approximate=True)
    expected = open_index().search(SENTENCE, shortlist_size=5, top_k=5)
    path = tmp_path / "index" / "pooled.usearch"
    for damage in (lambda: path.write_bytes(b"no graph"), path.unlink):
        damage()
        with pytest.raises(DamagedIndexError, match=r"pooled.usearch' is .*--exact"):
            open_index().search(SENTENCE, shortlist_size=5, top_k=5)
        assert open_index().search(SENTENCE, shortlist_size=5, top_k=5, exact=True) == expected
        build(approximate=True)
        assert open_index().search(SENTENCE, shortlist_size=5, top_k=5) == expected
