"""Captions of image files: which files of a folder are images, what is lost with one of them, and the table."""

import csv
import json
import os

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_cnnrnn.evaluation.image_captions import (
    caption_images,
    check_table,
    find_images,
    images_below,
    write_table,
)


@pytest.fixture
def photographs(tmp_path):
    """One photograph, one that is too narrow to be resized, one that is broken, and one more."""
    Image.radial_gradient("L").save(tmp_path / "a.png")
    Image.new("RGB", (1, 30000)).save(tmp_path / "b.png")
    (tmp_path / "c.jpg").write_text("no picture")
    Image.linear_gradient("L").save(tmp_path / "d.png")
    return tmp_path


def test_images_are_found_below_a_folder_in_order_and_hidden_ones_are_not(tmp_path):
    names = [
        "b.PNG",
        "a.jpg",
        "notes.txt",
        ".a.jpg",
        ".thumbnails/a.jpg",
        "2024/trip/c.heic",
        "2024/d.cr2",
        "2024/.e/f.png",
    ]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    expected = [str(tmp_path / name) for name in ("2024/d.cr2", "2024/trip/c.heic", "a.jpg", "b.PNG")]
    assert images_below(tmp_path) == expected
    assert find_images([str(tmp_path)]) == expected


def test_other_files_of_a_folder_are_counted_and_named(tmp_path, caplog):
    for number in range(12):
        (tmp_path / f"{number:02d}.mov").touch()
    (tmp_path / "a\x1b[31m.txt").touch()
    (tmp_path / "z.jpg").touch()
    assert find_images([str(tmp_path)]) == [str(tmp_path / "z.jpg")]
    assert "files that are not called images (13): '00.mov', " in caplog.text
    assert caplog.text.endswith("'09.mov' and 3 more.\n")
    (tmp_path / "z.jpg").unlink()
    with pytest.raises(ValueError, match="has no image in it"):
        find_images([str(tmp_path)])


@pytest.mark.parametrize("batch_size", [1, 4])
def test_an_image_that_cannot_be_read_or_processed_loses_no_other(model, tiny_processor, photographs, batch_size):
    options = {"batch_size": batch_size, "max_new_tokens": 3}
    done = list(caption_images(model, tiny_processor, images_below(photographs), prompt="a", **options))
    assert [os.path.basename(item.name) for item in done] == ["a.png", "b.png", "c.jpg", "d.png"]
    assert [len(item.captions) for item in done] == [1, 0, 0, 1]
    assert "crop it first" in done[1].error
    assert "c.jpg" in done[2].error
    inputs = tiny_processor(images=str(photographs / "d.png"), text="a", return_tensors="pt")
    alone = tiny_processor.batch_decode(model.generate(**inputs, max_new_tokens=3), skip_special_tokens=True)
    assert done[3].captions == alone


def test_a_name_that_is_not_utf8_can_be_written(model, tiny_processor, tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png")
    Image.radial_gradient("L").save(path)
    (item,) = caption_images(model, tiny_processor, [path], max_new_tokens=2)
    assert item.name.endswith("/caf\\xe9.png")
    rows = [{"file_name": item.name, "caption": 'a "red", ball'}]
    for ending in ("csv", "jsonl", "parquet"):
        write_table(tmp_path / f"table.{ending}", rows)
    with open(tmp_path / "table.csv", encoding="utf-8", newline="") as file:
        assert list(csv.DictReader(file)) == rows
    assert json.loads((tmp_path / "table.jsonl").read_text(encoding="utf-8")) == rows[0]


def test_a_table_that_cannot_be_written_is_found_before_the_work(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(OSError, match="pass another folder"):
        check_table(tmp_path / "file" / "table.csv")
    with pytest.raises(OSError, match=r"folder.csv' is a folder: pass the name of a file"):
        check_table(tmp_path / "folder.csv")
    assert check_table(tmp_path / "new" / "table.csv").parent.is_dir()


@pytest.mark.parametrize("prompt", [None, "a red"])
def test_words_have_the_log_probabilities_that_generate_gives(model, tiny_processor, tmp_path, prompt):
    Image.radial_gradient("L").save(tmp_path / "a.png")
    Image.linear_gradient("L").save(tmp_path / "b.png")
    search = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 6}
    items = list(
        caption_images(model, tiny_processor, images_below(tmp_path), prompt=prompt, with_words=True, **search)
    )
    inputs = tiny_processor(
        images=images_below(tmp_path), text=None if prompt is None else [prompt] * 2, return_tensors="pt"
    )
    found = model.generate(**inputs, **search, return_dict_in_generate=True, output_logits=True)
    steps = model.compute_transition_scores(found.sequences, found.logits, found.beam_indices, normalize_logits=True)
    eos = model.config.eos_token_id
    written = found.sequences[:, -steps.shape[1] :].tolist()
    for (words, scores), ids, expected in zip(
        [pair for item in items for pair in zip(item.words, item.word_scores, strict=True)], written, steps, strict=True
    ):
        length = ids.index(eos) + 1 if eos in ids else len(ids)
        assert words == tiny_processor.tokenizer.convert_ids_to_tokens(ids[:length])
        assert scores == pytest.approx(expected[:length].tolist(), abs=1e-5)
    rows = [row for item in items for row in item.rows()]
    assert [len(item.captions) for item in items] == [2, 2]
    assert rows[1]["score"] == pytest.approx(sum(items[0].word_scores[1]))
    write_table(tmp_path / "table.csv", rows)
    with open(tmp_path / "table.csv", encoding="utf-8", newline="") as file:
        assert [json.loads(row["words"]) for row in csv.DictReader(file)] == [row["words"] for row in rows]


def test_regions_of_a_detector_are_captioned_without_their_images(make_model, tiny_processor, tmp_path):
    model = make_model(feature_size=5, attention_type="up_down", num_hidden_layers=2, image_injection="none")
    generator = np.random.default_rng(0)
    for name, number in (("a", 3), ("b", 4), ("d", 0)):
        np.save(tmp_path / f"{name}.npy", generator.standard_normal((number, 5), np.float32))
    sources = [f"photographs/{name}.jpg" for name in "abcd"]
    options = {"max_new_tokens": 4, "num_beams": 2}
    done = list(caption_images(model, tiny_processor, sources, region_features=tmp_path, **options))
    for item in done[:2]:
        features = torch.from_numpy(np.load(tmp_path / f"{os.path.basename(item.name)[0]}.npy"))[None]
        alone = model.generate(image_features=features, **options)
        assert item.captions == tiny_processor.batch_decode(alone, skip_special_tokens=True)
    assert "there are no features of it in" in done[2].error
    assert done[3].error == "its features have the shape (0, 5), not (num_regions, num_channels)"
    with pytest.raises(ValueError, match="this captioner reads regions of a detector: pass `region_features`"):
        next(caption_images(model, tiny_processor, sources))


def test_regions_for_a_captioner_that_reads_images_are_refused(model, tiny_processor, tmp_path):
    np.save(tmp_path / "a.npy", np.ones((3, 5), np.float32))
    with pytest.raises(ValueError, match=r"`region_features` is .*, and this captioner reads images: leave it out"):
        next(caption_images(model, tiny_processor, ["a.jpg"], region_features=tmp_path))
