"""Phrases and boxes in the layout of Flickr30k Entities."""

from pathlib import Path

import pytest

from modeling_cnnrnn.data.phrase_boxes import parse_sentence, read_phrase_boxes


SENTENCES = """[/EN#1/people/other Two young guys] with [/EN#2/bodyparts shaggy hair] look at [/EN#0/notvisual it] .
A [/EN#3/scene garden] .
"""
ANNOTATIONS = """<annotation><filename>7.jpg</filename><size><width>50</width><height>40</height><depth>3</depth></size>
<object><name>1</name><bndbox><xmin>1</xmin><ymin>3</ymin><xmax>20</xmax><ymax>40</ymax></bndbox></object>
<object><name>1</name><name>2</name><bndbox><xmin>30</xmin><ymin>2</ymin><xmax>50</xmax><ymax>9</ymax></bndbox></object>
<object><name>3</name><scene>1</scene><nobox>0</nobox></object></annotation>
"""


@pytest.fixture
def folder(tmp_path) -> Path:
    for name, ending, content in (("Sentences", "txt", SENTENCES), ("Annotations", "xml", ANNOTATIONS)):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"7.{ending}").write_text(content)
    return tmp_path


def test_phrases_stand_in_the_sentence_without_their_marks(folder):
    (image,) = read_phrase_boxes(folder)
    first, second = image.sentences
    assert first.text == "Two young guys with shaggy hair look at it ."
    assert [first.text[phrase.start : phrase.end] for phrase in first.phrases] == [
        "Two young guys",
        "shaggy hair",
        "it",
    ]
    assert [(phrase.entity, phrase.kinds) for phrase in first.phrases] == [
        ("1", ("people", "other")),
        ("2", ("bodyparts",)),
        ("0", ("notvisual",)),
    ]
    assert second.text == "A garden ."


def test_boxes_hold_their_last_pixels(folder):
    (image,) = read_phrase_boxes(folder, ["7"])
    assert (image.image_id, image.width, image.height) == ("7", 50, 40)
    assert image.boxes == {"1": [(0, 2, 20, 40), (29, 1, 50, 9)], "2": [(29, 1, 50, 9)]}


@pytest.mark.parametrize("line", ["[/EN#1/people Two guys look", "see [/EN#1/people two [/EN#2/other red] hats]"])
def test_a_phrase_that_is_not_closed_is_named(line):
    with pytest.raises(ValueError, match=r"7\.txt, line 3 has a phrase that is not closed"):
        parse_sentence(line, "7.txt, line 3")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("<annotation><size>", "7.xml.? cannot be read as annotations"),
        (ANNOTATIONS.replace("<width>50</width>", ""), "<size/width> is missing"),
        (ANNOTATIONS.replace("<xmax>20<", "<xmax>many<"), "many"),
        (ANNOTATIONS.replace("<xmax>20<", "<xmax>0<"), "has no area in 50 x 40 pixels"),
        ("<!DOCTYPE a [<!ENTITY b 'c'>]>" + ANNOTATIONS, "7.xml.? declares a document type"),
    ],
)
def test_annotations_that_are_none_are_named(folder, content, reason):
    (folder / "Annotations" / "7.xml").write_text(content)
    with pytest.raises(ValueError, match=reason):
        read_phrase_boxes(folder)


def test_missing_files_are_named(folder):
    with pytest.raises(FileNotFoundError, match=r"8.txt.* is not in .*Sentences"):
        read_phrase_boxes(folder, ["8"])
    (folder / "Annotations" / "7.xml").unlink()
    with pytest.raises(FileNotFoundError, match=r"7.xml.* is not in .*Annotations"):
        read_phrase_boxes(folder)
    (folder / "Annotations").rmdir()
    with pytest.raises(FileNotFoundError, match="has no folder Annotations"):
        read_phrase_boxes(folder)
