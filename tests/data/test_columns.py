"""Which columns hold the image, its captions and its id, and what captions are read from them."""

import datasets
import pytest

from modeling_cnnrnn.data.columns import CaptionColumns


TEXT = datasets.Value("string")


def test_numbered_captions_are_in_order():
    features = {"image": datasets.Image(), **{f"caption_{index}": TEXT for index in (10, 9, 0)}}
    wanted = ("caption_0", "caption_9", "caption_10")
    assert CaptionColumns.infer(features).captions == wanted
    assert CaptionColumns.infer(features, caption_column="caption_*").captions == wanted
    assert CaptionColumns.infer(features, caption_column="caption_9, caption_0").captions == wanted[1::-1]


def test_captions_in_a_field_of_a_struct():
    features = {"jpg": datasets.Image(), "json": {"title": TEXT, "key": TEXT}}
    columns = CaptionColumns.infer(features, caption_column="json.title", image_id_column="json.key")
    row = {"json": {"title": "A dog.", "key": "k"}}
    assert columns.read_captions(row) == ["A dog."]
    assert columns.read_image_id(row, "0") == "k"


@pytest.mark.parametrize(
    ("value", "texts"),
    [
        ("A dog.", ["A dog."]),
        (["A dog.", "A cat."], ["A dog.", "A cat."]),
        ({"raw": "A dog.", "tokens": ["a", "dog"]}, ["A dog."]),
        ({"raw": ["A dog.", "A cat."]}, ["A dog.", "A cat."]),
        ([{"raw": "A dog."}, {"raw": "A cat."}], ["A dog.", "A cat."]),
        ('["A dog.", "A cat."]', ["A dog.", "A cat."]),
        ("['A dog.', \"It's a cat.\"]", ["A dog.", "It's a cat."]),
        ("[laughs] A dog. [barks]", ["[laughs] A dog. [barks]"]),
        (b"Ein H\xc3\xbcndchen", ["Ein Hündchen"]),
        ("a\u2028b\tc", ["a b c"]),
        (None, []),
    ],
)
def test_captions_are_read_from_what_holds_them(value, texts):
    assert CaptionColumns("image", ("caption",)).read_captions({"caption": value}) == texts
