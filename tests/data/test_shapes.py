"""Promises of the drawn dataset `shapes` and of the checker that says whether a sentence describes a picture."""

import random

import numpy as np
import pytest

from modeling_cnnrnn.data.shapes import boxes_of, scenes_of
from modeling_cnnrnn.data.shapes.drawing import RGB, build_shapes, combinations, draw_scene, is_held_out, sample_scene
from modeling_cnnrnn.data.shapes.language import (
    ACTIONS,
    COLORS,
    RELATIONS,
    SENTENCES,
    SHAPES,
    Meaning,
    Thing,
    _readings,
    checker,
    describe,
    hallucination_scores,
    is_correct,
    named_things,
    parse_caption,
)


@pytest.fixture(scope="module")
def shapes():
    return build_shapes(num_train=400, num_validation=100, num_test=100, seed=3)


def meanings_of(dataset):
    return [Meaning.from_json(scene) for scene in dataset["scene"]]


def still(relation, *things):
    """A scene from words: `still("above", "large plain red circle", "small dotted blue square")`."""
    things = [Thing(color, kind, size, texture) for size, texture, color, kind in map(str.split, things)]
    roles = {"group": (things,), "between": (things[:1], things[1:])}.get(relation, ([thing] for thing in things))
    return Meaning(relation, tuple(map(tuple, roles)))


RED_CIRCLE, BLUE_SQUARE = "large plain red circle", "small dotted blue square"


def test_every_reference_is_correct_and_unambiguous(shapes):
    rng = random.Random(0)
    pairs = [(c, s) for split in shapes.values() for row in split for c in row["captions"] for s in [row["scene"]]]
    pairs += [(describe(s, rng), s) for s in (sample_scene(rng) for _ in range(400))]
    for caption, scene in pairs:
        assert is_correct(caption, scene), (caption, scene)
        assert len(set(_readings(" ".join(caption.rstrip(".").split())))) == 1, caption


def test_every_wording_is_used():
    rng = random.Random(0)
    seen = {scene.relation for scene in (sample_scene(rng) for _ in range(2000))}
    assert seen == set(SENTENCES) == {"group", "between", *RELATIONS, *ACTIONS}


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a red circle above a blue square", True),
        ("A red circle is above the blue square.", True),
        ("a blue square below a red circle", True),
        ("a small dotted blue square under a large red circle", True),
        ("a plain red circle above a spotted blue square", True),
        ("a blue square with dots below a big red circle", True),
        ("a blue square above a red circle", False),
        ("a red circle below a blue square", False),
        ("a blue circle above a red square", False),
        ("a red square above a blue circle", False),
        ("a red circle above a green square", False),
        ("a red circle left of a blue square", False),
        ("two red circles above a blue square", False),
        ("a small red circle above a blue square", False),
        ("a striped red circle above a blue square", False),
        ("a red circle above a plain blue square", False),
        ("a red circle", False),
        ("a red circle and a blue square", False),
        ("a red circle above a square", False),
        ("a red circle above a blue square square", False),
        ("above", False),
        ("", False),
    ],
)
def test_a_sentence_must_say_all_that_matters_and_nothing_false(caption, expected):
    assert is_correct(caption, still("above", RED_CIRCLE, BLUE_SQUARE)) is expected


@pytest.mark.parametrize(
    ("scene", "right", "wrong"),
    [
        (
            still("left of", RED_CIRCLE, BLUE_SQUARE),
            ["a blue square to the right of a red circle", "a red circle on the left and a blue square on the right"],
            ["a red circle to the right of a blue square", "a blue square on the left and a red circle on the right"],
        ),
        (
            still("in front of", RED_CIRCLE, BLUE_SQUARE),
            ["a blue square behind a red circle", "a blue square partly hidden by a red circle"],
            ["a red circle behind a blue square", "a blue square hides part of a red circle"],
        ),
        (
            still("inside", BLUE_SQUARE, RED_CIRCLE),
            ["a blue square in a red circle", "a red circle with a blue square with dots in it"],
            ["a red circle in a blue square", "a blue square contains a red circle"],
        ),
        (
            still("between", RED_CIRCLE, BLUE_SQUARE, BLUE_SQUARE),
            ["a red circle between two blue squares", "between two blue squares there is a red circle"],
            ["a red circle between three blue squares", "two red circles between two blue squares"],
        ),
        (
            still("group", RED_CIRCLE, RED_CIRCLE, RED_CIRCLE, BLUE_SQUARE),
            ["three red circles and a blue square", "there is one blue square and three large red circles"],
            ["three red circles", "two red circles and a blue square", "three blue squares and a red circle"],
        ),
        (
            Meaning("rolls down", ((Thing("red", "circle", texture="striped"),), (Thing("blue", "slope"),))),
            ["a red ball rolls down a blue slope", "down a blue ramp rolls a striped red circle"],
            [
                "a red ball rolls up a blue slope",
                "a blue ball rolls down a red slope",
                "a big red ball rolls down a blue slope",
            ],
        ),
    ],
    ids=lambda value: value.relation if isinstance(value, Meaning) else "",
)
def test_other_wordings_are_right_and_other_meanings_wrong(scene, right, wrong):
    assert [c for c in right if not is_correct(c, scene)] == []
    assert [c for c in wrong if is_correct(c, scene)] == []


def test_captions_are_checked_against_the_picture_of_their_row(shapes):
    rows = shapes["test"]
    is_right = checker(scenes_of(rows))
    assert all(is_right(caption, row) for row, captions in enumerate(rows["captions"]) for caption in captions)
    others = [is_right(captions[0], row - 1) for row, captions in enumerate(rows["captions"])]
    assert sum(others) < len(others) / 10
    assert scenes_of(rows.remove_columns("scene")) is None


def test_objects_that_are_not_there_are_counted():
    scene = still("above", RED_CIRCLE, "small plain blue star").to_json()
    captions = [
        "a red circle above a blue star",
        "a blue star above a red circle",  # wrong, but both are there
        "a red circle above a green star",
        "a a red",
    ]
    assert hallucination_scores(captions, [scene] * 4) == {"CHAIRs": 1 / 4, "CHAIRi": 1 / 6, "unreadable": 1 / 4}
    with pytest.raises(ValueError, match="`captions` is empty"):
        hallucination_scores([], [])


def test_a_change_of_meaning_is_noticed_in_every_sentence(shapes):
    """Swap two colors, two shapes or the roles, or change a count: what was right is wrong."""
    rng = random.Random(0)
    for scene in meanings_of(shapes["train"]):
        caption = describe(scene, rng)
        claim = parse_caption(caption)
        things = list(claim.things)
        recolored = caption.replace(things[0].color, next(c for c in COLORS if c not in {t.color for t in things}))
        assert not is_correct(recolored, scene)
        fewer = Meaning(scene.relation, (scene.roles[0][1:], *scene.roles[1:]))
        assert not is_correct(caption, fewer)
        if len(scene.roles) == 2:
            assert not is_correct(caption, Meaning(scene.relation, scene.roles[::-1]))


def test_the_same_words_can_mean_different_pictures(shapes):
    """No bag of words tells a picture from its twin; the checker does."""
    rng = random.Random(0)
    twins = 0
    for scene in meanings_of(shapes["test"]):
        if scene.relation not in RELATIONS:
            continue
        twin = Meaning(scene.relation, scene.roles[::-1])
        for caption in (describe(scene, rng) for _ in range(5)):
            claim = parse_caption(caption)
            for other in (describe(twin, rng) for _ in range(40)):
                if sorted(other.strip(".").split()) == sorted(caption.strip(".").split()):
                    twins += 1
                    assert claim != parse_caption(other)
                    assert is_correct(caption, scene)
                    assert not is_correct(other, scene)
    assert twins > 20


def test_test_combinations_never_occur_in_training(shapes):
    known = set().union(
        *(combinations(scene) for split in ("train", "validation") for scene in meanings_of(shapes[split]))
    )
    assert not any(map(is_held_out, known))
    for scene in meanings_of(shapes["test"]):
        assert combinations(scene) - known
    for table, name in ((COLORS, "color"), (SHAPES, "kind")):  # each part of a combination is well known
        counts = [
            sum(getattr(thing, name) == value for s in meanings_of(shapes["train"]) for thing in s.things)
            for value in table
        ]
        assert min(counts) > 50


def test_same_seed_same_bytes(shapes):
    def content(dataset):
        return [table.to_pylist() for table in (split.data.table for split in dataset.values())]

    again = build_shapes(num_train=400, num_validation=100, num_test=100, seed=3, num_proc=2)
    assert content(again) == content(shapes)
    other = build_shapes(num_train=20, num_validation=0, num_test=0, seed=4)
    assert not {row["image"]["bytes"] for row in content(other)[0]} & {
        row["image"]["bytes"] for row in content(shapes)[0]
    }


def test_splits_show_different_pictures_with_five_captions_each(shapes):
    pictures = [image.tobytes() for split in shapes.values() for image in split["image"]]
    assert len(set(pictures)) == len(pictures)
    assert {name: len(split) for name, split in shapes.items()} == {"train": 400, "validation": 100, "test": 100}
    for split in shapes.values():
        assert all(len(set(captions)) == 5 for captions in split["captions"])
        assert len(set(split["image_id"])) == len(split)
        assert all(image.size == (64, 64) and image.mode == "RGB" for image in split["image"])


@pytest.mark.parametrize("color", COLORS)
@pytest.mark.parametrize("kind", SHAPES)
def test_a_thing_is_drawn_in_its_color(kind, color):
    scene = Meaning("group", ((Thing(color, kind, "large", "plain"),),))
    pixels = np.asarray(draw_scene(scene, random.Random(0), image_size=64)).reshape(-1, 3).astype(int)
    near = np.abs(pixels - RGB[color]).max(axis=1) < 20
    assert 150 < near.sum() < 64 * 64 / 4


def test_any_size_of_image():
    rng_state = [random.Random(1) for _ in range(2)]
    scene = sample_scene(random.Random(0))
    small, large = (draw_scene(scene, rng, image_size=size) for rng, size in zip(rng_state, (32, 224), strict=True))
    assert (small.size, large.size) == ((32, 32), (224, 224))
    difference = np.abs(np.asarray(small, float) - np.asarray(large.reduce(7), float))
    assert difference.mean() < 4  # the same picture


def test_an_empty_split_has_the_same_columns():
    dataset = build_shapes(num_train=1, num_validation=0, num_test=0)
    assert dataset["validation"].features == dataset["train"].features


def test_the_box_of_each_object_holds_its_colour(shapes):
    """Every pixel of an object's colour is in one of its boxes, whose sides such pixels touch."""
    rows = shapes["train"].select(range(60))
    for row, boxes in zip(rows, boxes_of(rows), strict=True):
        pixels = np.asarray(row["image"]).astype(int)
        assert sorted(name for name, _ in boxes) == sorted(
            thing.name for thing in Meaning.from_json(row["scene"]).things
        )
        for color in {name.split()[0] for name, _ in boxes}:
            shown = np.abs(pixels - RGB[color]).max(axis=2) < 25
            places = [box for name, box in boxes if name.split()[0] == color]
            inside = np.zeros_like(shown)
            for left, top, right, bottom in (np.array(box) * 64 for box in places):
                inside[int(top) : round(bottom + 1), int(left) : round(right + 1)] = True
            assert not (shown & ~inside).any(), (row["scene"], color)
            assert all(0 <= left < right <= 1 and 0 <= top < bottom <= 1 for left, top, right, bottom in places)


def test_each_word_of_a_noun_phrase_says_something_of_its_object():
    said = named_things("There are two small red squares with stripes, and a ball rolls over it.")
    assert said[3:8] == [
        ("small", "size", "red square"),
        ("red", "color", "red square"),
        ("squares", "kind", "red square"),
        ("with", None, None),
        ("stripes", "pattern", "red square"),
    ]
    assert [
        word for word, slot, _ in said if slot is None
    ] == "There are two with and a ball rolls over it".lower().split()
    rng = random.Random(1)
    for scene in (sample_scene(rng) for _ in range(300)):
        caption = describe(scene, rng)
        assert {name for _, _, name in named_things(caption) if name} == {thing.name for thing in scene.things}, caption
