"""Files of an evaluation: which pictures are chosen, ids as COCO writes them."""

import json

import pytest

from modeling_cnnrnn.evaluation.captions import GeneratedCaption
from modeling_cnnrnn.evaluation.results import choose_pictures, coco_id, write_coco_files


def test_the_best_the_middle_and_the_worst_are_chosen():
    scores = [0.3, 0.9, 0.1, 0.8, 0.5, 0.7, 0.2, 0.6, 0.4, 0.0]
    names = {name: scores[index] for index, name in choose_pictures(scores).items()}
    assert {group: [names[f"{group}-{place}.png"] for place in (1, 2, 3)] for group in ("best", "middle", "worst")} == {
        "best": [0.9, 0.8, 0.7],
        "middle": [0.6, 0.5, 0.4],
        "worst": [0.0, 0.1, 0.2],
    }


def test_few_images_are_chosen_once_each():
    assert choose_pictures([0.1, 0.3, 0.2, 0.0]) == {1: "best-1.png", 2: "middle-1.png", 3: "worst-1.png"}
    assert choose_pictures([0.5]) == {}


def test_wrong_captions_are_shown_that_are_not_shown_already():
    scores = [0.1, 0.9, 0.2, 0.8, 0.7]
    assert choose_pictures(scores, wrong=[0, 2, 3]) == {
        1: "best-1.png",
        4: "middle-1.png",
        0: "worst-1.png",
        2: "wrong-1.png",
        3: "wrong-2.png",
    }


@pytest.mark.parametrize(("image_id", "written"), [("42", 42), ("cat.jpg", "cat.jpg"), ("-1", "-1")])
def test_ids_are_numbers_where_coco_has_numbers(image_id, written):
    assert coco_id(image_id) == written


def test_coco_files_hold_the_images_that_could_be_read(tmp_path):
    captions = [GeneratedCaption(0, "a dog"), GeneratedCaption(2, "a cat")]
    write_coco_files(tmp_path, captions, [["dog", "a hound"], ["broken"], ["cat"]], ["7", "8", "cat.jpg"])
    results, references = (json.loads((tmp_path / f"captions_{n}.json").read_text()) for n in ("results", "references"))
    assert results == [{"image_id": 7, "caption": "a dog"}, {"image_id": "cat.jpg", "caption": "a cat"}]
    assert [image["id"] for image in references["images"]] == [7, "cat.jpg"]
    assert [(row["image_id"], row["caption"]) for row in references["annotations"]] == [
        (7, "dog"),
        (7, "a hound"),
        ("cat.jpg", "cat"),
    ]
