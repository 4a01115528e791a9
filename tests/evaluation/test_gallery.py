"""Promises of the gallery page."""

import base64
import io
import os
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from modeling_cnnrnn.evaluation.gallery import GalleryRow, write_gallery


def photograph(width=640, height=480, mode="RGB"):
    noise = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height)).convert(mode)


class Page(HTMLParser):
    """What a browser makes of the page: its elements with their attributes, and its text."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.text = [], ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def all(self, tag, css_class=None):
        return [
            a for t, a in self.elements if t == tag and (css_class is None or css_class in a.get("class", "").split())
        ]

    def pictures(self):
        urls = re.findall(r"data:image/\w+;base64,([\w+/=]+)", self.source)
        return [Image.open(io.BytesIO(base64.b64decode(url))) for url in urls]


def test_a_row_shows_sentence_probability_references_and_mark(tmp_path):
    row = GalleryRow(
        photograph(),
        "a dog runs",
        ["a brown dog", "a dog outside"],
        np.log([0.5, 0.5, 0.5, 0.5]).tolist(),
        True,
        name="dog.jpg",
    )
    page = Page(write_gallery(tmp_path / "new" / "gallery.html", [row], "Dogs", {"CIDEr": 0.52}))
    for text in (
        "Dogs",
        "CIDEr",
        "0.52",
        "a dog runs",
        "log-probability -2.77",
        "50 % per word",
        "a brown dog",
        "dog.jpg",
        "✓ right",
    ):
        assert text in page.text
    assert page.all("article")[0]["data-mark"] == "right"
    assert max(page.pictures()[0].size) == 256


def test_a_row_of_nothing_but_a_sentence(tmp_path):
    page = Page(
        write_gallery(tmp_path / "gallery.html", [GalleryRow(photograph(), "a dog"), GalleryRow(photograph(), "")])
    )
    assert len(page.all("article")) == 2
    assert "log-probability" not in page.text
    assert not page.all("select")  # nothing to choose by


def test_text_is_inert(tmp_path):
    evil = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)> {{ 7 * 7 }}"
    row = GalleryRow(
        photograph(), evil, [evil], is_correct=False, log_probs=[-1.0], name=evil, attentions=np.ones((99, 2, 2))
    )
    page = Page(write_gallery(tmp_path / "gallery.html", [row], title=evil, summary={evil: evil}))
    assert len(page.all("script")) == 1  # the page's own
    assert "alert" not in page.source.split("<script>")[1]
    assert not [a for _, a in page.elements if "onerror" in a or a.get("src") == "x"]
    assert page.text.count(evil) == 7  # title and heading, summary's name and value, caption, reference, name
    assert page.all("div", "picture")[0]["aria-label"] == evil


def test_the_page_asks_for_nothing(tmp_path):
    row = GalleryRow(photograph(), "a dog", attentions=np.ones((2, 7, 7)))
    page = Page(write_gallery(tmp_path / "gallery.html", [row]))
    assert not re.findall(r"https?:|@import|<link|url\((?!data:)", page.source)
    assert [a["src"][:11] for a in page.all("img")] == ["data:image/"] * 2  # the picture itself is in the style
    assert "default-src 'none'" in page.all("meta")[3]["content"]


def test_a_veil_is_clear_where_the_model_looks(tmp_path):
    attentions = np.zeros((3, 4, 4))
    attentions[0, 0, 0] = attentions[1, 3, 3] = 0.9  # top left, bottom right, and a map for the end token
    row = GalleryRow(photograph(), "two words", attentions=attentions, log_probs=np.log([0.25, 0.5, 1]).tolist())
    page = Page(write_gallery(tmp_path / "gallery.html", [row]))
    assert len(page.all("figure")) == 2
    first, second = ([np.asarray(veil)[y, x, 1] for y, x in ((3, 3), (28, 28))] for veil in page.pictures()[-2:])
    assert first[0] < 20 < 200 < first[1]
    assert second[1] < 20 < 200 < second[0]
    assert "25 %" in page.text
    assert "50 %" in page.text


@pytest.mark.parametrize(
    "attentions", [np.full((2, 3, 3), np.nan), np.zeros((2, 1, 1)), np.ones((2, 14, 10), np.float16)]
)
def test_any_attention_map_gives_a_veil(tmp_path, attentions):
    page = Page(
        write_gallery(tmp_path / "gallery.html", [GalleryRow(photograph(), "two words", attentions=attentions)])
    )
    assert len(page.all("figure")) == 2


@pytest.mark.parametrize("shape", [(2, 7, 7), (3, 49)])
def test_maps_that_do_not_fit_the_sentence_are_an_error(tmp_path, shape):
    with pytest.raises(ValueError, match="`attentions`"):
        write_gallery(
            tmp_path / "gallery.html", [GalleryRow(photograph(), "three whole words", attentions=np.ones(shape))]
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", ["L", "P", "1", "CMYK", "RGBA", "LA", "I;16"])
def test_pictures_of_any_mode(tmp_path, mode):
    image = photograph().convert("L").convert("I").convert("I;16") if mode == "I;16" else photograph(mode=mode)
    if "A" in mode:
        image.putalpha(0)
    thumbnail = Page(write_gallery(tmp_path / "gallery.html", [GalleryRow(image, "a dog")])).pictures()[0]
    assert thumbnail.mode == "RGB"
    if "A" in mode:
        assert thumbnail.getpixel((9, 9)) == (255, 255, 255)


def test_a_small_picture_keeps_its_pixels(tmp_path):
    image = photograph(64, 64)
    page = Page(write_gallery(tmp_path / "gallery.html", [GalleryRow(image, "a dog")]))
    assert page.pictures()[0].tobytes() == image.tobytes()
    assert page.all("div", "pixels")


def test_the_callers_picture_stays_as_it_is(tmp_path):
    image = photograph()
    write_gallery(tmp_path / "gallery.html", [GalleryRow(image, "a dog")])
    assert image.size == (640, 480)


def test_the_page_of_many_photographs_stays_small(tmp_path):
    rows = [
        GalleryRow(photograph(), "a dog runs over the grass", attentions=np.random.default_rng(0).random((6, 7, 7)))
    ] * 20
    path = write_gallery(tmp_path / "gallery.html", rows)
    assert path.stat().st_size < 20 * 45_000


def test_a_failed_page_leaves_the_old_one(tmp_path, monkeypatch):
    path = write_gallery(tmp_path / "gallery.html", [], title="old")

    def full_disk(*args):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_gallery(path, [], title="new")
    assert [p.name for p in tmp_path.iterdir()] == ["gallery.html"]
    assert "old" in path.read_text(encoding="utf-8")


def test_maps_belong_to_the_tokens_where_a_word_has_several(tmp_path):
    words = ["a", "man", "'s", "dog", "<eos>"]
    row = GalleryRow(photograph(), "a man's dog", log_probs=[-0.1] * 5, attentions=np.ones((5, 2, 2)), words=words)
    page = Page(write_gallery(tmp_path / "gallery.html", [row]))
    assert len(page.pictures()) == 1 + 5
    assert "'s" in page.text
