"""
Draw `shapes`, small pictures with five sentences each: a captioning dataset that needs no download.

A picture shows one to four objects, alone, in a relation ("a red circle above a blue square") or in an action that a
still picture can show ("a yellow ball rolls down a green slope"). The objects alone do not determine the sentence: the
mirror image of a picture has the same objects and another meaning.

**Unseen combinations.** Some pairs of objects ("blue square" and "red circle") are held out: no picture of `train` and
`validation` shows both objects of such a pair, in whatever relation, role, number, size or texture, and every picture
of `test` shows such a pair. Where a picture has one kind of object only, its number belongs to the combination
("three red circles"). Which combinations are held out depends on their names alone, so it is the same for every seed.
"""

import cmath
import functools
import hashlib
import io
import itertools
import json
import math
import multiprocessing
import random
from collections.abc import Sequence

import datasets
from PIL import Image, ImageChops, ImageDraw

from .language import ACTIONS, COLORS, RELATIONS, SHAPES, SIZES, Meaning, Thing, describe


Point = tuple[float, float]
Box = tuple[float, float, float, float]  # left, top, right, bottom
Color = tuple[int, int, int]

# topics of the pictures and their weights; pictures of a single object teach its name
TOPICS = {"single": 3, "count": 3, "group": 4, "relation": 8, "between": 3, "action": 4}
TEXTURE_WEIGHTS = {"plain": 2, "striped": 1, "dotted": 1}
NUM_CAPTIONS = 5
HELD_OUT = 0.12  # share of combinations that only `test` shows

RGB = {
    "red": (215, 35, 40),
    "green": (40, 155, 60),
    "blue": (35, 85, 215),
    "yellow": (250, 215, 35),
    "purple": (125, 45, 165),
}
INK = (70, 70, 75)  # color of the lines that show motion
RADIUS = {"small": (0.125, 0.14), "large": (0.19, 0.21)}  # in image widths
INSIDE_RADII = ((0.14, 0.16), (0.37, 0.41))  # of the inner and the outer object
SUPERSAMPLING = 4


def build_shapes(
    num_train: int = 8000,
    num_validation: int = 500,
    num_test: int = 500,
    image_size: int = 64,
    seed: int = 0,
    num_proc: int = 1,
) -> datasets.DatasetDict:
    """
    Draw the dataset. The same arguments give the same bytes, whatever `num_proc`.

    Columns: `image` (PNG), `image_id`, `captions` (five sentences), `scene` (JSON, for
    [`~modeling_cnnrnn.data.shapes.language.is_correct`]) and `scene_boxes` (JSON, where each object is, see
    [`~modeling_cnnrnn.data.shapes.boxes_of`]). Splits: `train`, `validation`, and `test` with combinations of objects
    that neither of them shows.
    """
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "image_id": datasets.Value("string"),
            "captions": datasets.List(datasets.Value("string")),
            "scene": datasets.Value("string"),
            "scene_boxes": datasets.Value("string"),
        }
    )
    splits = {}
    for split, size in {"train": num_train, "validation": num_validation, "test": num_test}.items():
        example = functools.partial(_example, seed, split, image_size)
        if num_proc > 1:
            with multiprocessing.Pool(num_proc) as pool:
                rows = pool.map(example, range(size), chunksize=64)
        else:
            rows = [example(index) for index in range(size)]
        columns = {name: [row[name] for row in rows] for name in features}
        splits[split] = datasets.Dataset.from_dict(columns, features=features, split=datasets.NamedSplit(split))
    return datasets.DatasetDict(splits)


def _example(seed: int, split: str, image_size: int, index: int) -> dict:
    # each picture has its own generator, so that it does not depend on the process that draws it
    rng = random.Random(f"{seed}/{split}/{index}")
    scene = sample_scene(rng, held_out=split == "test")
    png = io.BytesIO()
    image, boxes = draw_scene_and_boxes(scene, rng, image_size)
    image.save(png, format="PNG")
    captions: dict[str, None] = {}  # in order, each once
    while len(captions) < NUM_CAPTIONS:
        captions[describe(scene, rng)] = None
    return {
        "image": {"bytes": png.getvalue(), "path": None},
        "image_id": f"{split}-{index:06d}",
        "captions": list(captions),
        "scene": scene.to_json(),
        "scene_boxes": json.dumps([[name, [round(edge, 4) for edge in box]] for name, box in boxes]),
    }


# --------------------------------------------------------------------------------------------------------------------
# Scenes
# --------------------------------------------------------------------------------------------------------------------


def sample_scene(rng: random.Random, held_out: bool = False) -> Meaning:
    """Sample a scene with a held-out combination, or one with none."""
    while True:
        scene = _any_scene(rng)
        if any(map(is_held_out, combinations(scene))) == held_out:
            return scene


def combinations(scene: Meaning) -> set[str]:
    """Return the pairs of different objects in a scene, or the number of its only object."""
    names = sorted({thing.name for thing in scene.things})
    if len(names) == 1:
        return {f"{len(scene.things)} {names[0]}"}
    return {" and ".join(pair) for pair in itertools.combinations(names, 2)}


@functools.cache
def is_held_out(combination: str) -> bool:
    """Return whether only `test` shows a combination; it depends on its name alone."""
    return hashlib.sha256(combination.encode()).digest()[0] < HELD_OUT * 256


def _any_scene(rng: random.Random) -> Meaning:
    topic = rng.choices(list(TOPICS), weights=list(TOPICS.values()))[0]
    if topic in ("single", "count"):
        count = 1 if topic == "single" else rng.randint(2, 4)
        return Meaning("group", ((_things(rng, [None])[0],) * count,))
    if topic == "group":
        # one of each would be a relation: one is always left of or above the other
        count, other_count = rng.choice(((1, 2), (2, 2)))
        thing, other = _things(rng, [None] * 2)
        return Meaning("group", ((thing,) * count + (other,) * other_count,))
    if topic == "between":
        middle, side = _things(rng, ["small"] * 2)
        return Meaning("between", ((middle,), (side, side)))
    if topic == "action":
        action, prop = rng.choice(list(ACTIONS.items()))
        kind = "circle" if action.startswith("rolls") else rng.choice(list(SHAPES))
        actor = Thing(rng.choice(list(COLORS)), kind, texture=_texture(rng))
        return Meaning(action, ((actor,), (Thing(rng.choice(list(COLORS)), prop),)))
    relation = rng.choice(RELATIONS)
    sizes: dict[str, list[str | None]] = {"inside": ["small", "large"], "in front of": ["large", "large"]}
    thing, other = _things(rng, sizes.get(relation, [None, None]))
    return Meaning(relation, ((thing,), (other,)))


def _things(rng: random.Random, sizes: list[str | None]) -> list[Thing]:
    """Sample different objects, each in a color of its own. A size of `None` is sampled too."""
    return [
        Thing(color, rng.choice(list(SHAPES)), size or rng.choice(list(SIZES)), _texture(rng))
        for color, size in zip(rng.sample(list(COLORS), len(sizes)), sizes, strict=True)
    ]


def _texture(rng: random.Random) -> str:
    return rng.choices(list(TEXTURE_WEIGHTS), weights=list(TEXTURE_WEIGHTS.values()))[0]


# --------------------------------------------------------------------------------------------------------------------
# Drawing. Coordinates are in image widths, x to the right and y down.
# --------------------------------------------------------------------------------------------------------------------


def draw_scene(scene: Meaning, rng: random.Random, image_size: int = 64) -> Image.Image:
    """Draw a scene near the middle of a light background."""
    return draw_scene_and_boxes(scene, rng, image_size)[0]


def draw_scene_and_boxes(
    scene: Meaning, rng: random.Random, image_size: int = 64
) -> tuple[Image.Image, list[tuple[str, Box]]]:
    """Draw a scene as `draw_scene`, and tell the box of each object, from back to front, with what another one hides."""
    canvas = _Canvas(image_size * SUPERSAMPLING, background=_jitter((225, 225, 225), rng, 25), rng=rng)
    if scene.relation in ACTIONS:
        _draw_action(canvas, scene, rng)
    else:
        for thing, center, radius in _layout(scene, rng):
            canvas.thing(thing, center, radius, has_edge=scene.relation == "in front of")
    return canvas.image.reduce(SUPERSAMPLING), canvas.boxes


def _layout(scene: Meaning, rng: random.Random) -> list[tuple[Thing, Point, float]]:
    """Place the objects of a still scene: center and radius of each, from back to front."""
    things = scene.things
    radii = [rng.uniform(*RADIUS[thing.size or "small"]) for thing in things]
    jitter = functools.partial(rng.uniform, -0.03, 0.03)
    if scene.relation == "group":
        # three objects in a grid of 2 x 2 are never in a row, so none seems to be between the others
        grid = rng.sample(list(itertools.product(range(2), repeat=2)), len(things))
        if len(set(things)) == 2:  # equal objects share a column or a row
            number = things.count(things[0])
            columns = zip(rng.sample(range(2), 2), (number, len(things) - number), strict=True)
            grid = [(column, row) for column, height in columns for row in rng.sample(range(2), height)]
            if rng.random() < 0.5:
                grid = [(row, column) for column, row in grid]
        centers = []
        for (column, row), radius in zip(grid, radii, strict=True):
            room = max(0.0, 0.23 - radius)
            x, y = ((cell + 0.5) / 2 + rng.uniform(-room, room) for cell in (column, row))
            centers.append((x, y))
    elif scene.relation == "between":
        steps = rng.choice(((0, -0.32, 0.32), (0, 0.32, -0.32)))
        centers = [(0.5 + step + jitter(), 0.5 + jitter()) for step in steps]
        if rng.random() < 0.5:
            centers = [(y, x) for x, y in centers]
    elif scene.relation == "inside":
        radii = [rng.uniform(*radius) for radius in INSIDE_RADII]
        centers = [(0.5 + jitter(), 0.52 + jitter()), (0.5, 0.5)]
    elif scene.relation == "in front of":
        apart = _partly_hidden(things, radii, angle=rng.uniform(0, 2 * math.pi))
        middle = complex(0.5 + 2 * jitter(), 0.5 + 2 * jitter())
        centers = [(p.real, p.imag) for p in (middle + apart / 2, middle - apart / 2)]
    else:
        aside = 0.5 + 4 * jitter()
        centers = [(aside + jitter(), 0.25 + jitter() / 2), (aside + jitter(), 0.75 + jitter() / 2)]
        if scene.relation == "left of":
            centers = [(y, x) for x, y in centers]
    return list(zip(things, centers, radii, strict=True))[::-1]


def _partly_hidden(things: Sequence[Thing], radii: Sequence[float], angle: float) -> complex:
    """Find the distance at which the first object hides a part of the second and leaves it recognizable."""
    front, back = ([radius * p for p in OUTLINES[thing.kind]] for thing, radius in zip(things, radii, strict=True))
    goal = 0.15 * min(_area(front), _area(back))
    apart = cmath.rect(1.2 * sum(radii), angle)
    while _area(back, [p + apart for p in front]) < goal:
        apart *= 0.95
    return apart


def _area(*outlines: list[complex]) -> int:
    """Measure the area that outlines around the origin have in common, in pixels of a small mask."""
    common = Image.new("1", (64, 64), 1)
    for outline in outlines:
        mask = Image.new("1", common.size)
        ImageDraw.Draw(mask).polygon([(32 + 64 * p.real, 32 + 64 * p.imag) for p in outline], 1)
        common = ImageChops.logical_and(common, mask)
    return common.histogram()[-1]


def _draw_action(canvas: "_Canvas", scene: Meaning, rng: random.Random) -> None:
    """Draw an actor, its prop, and the lines behind the actor that show its motion."""
    actor, prop = scene.things
    radius = rng.uniform(0.12, 0.14)
    side = rng.choice((-1, 1))  # the picture or its mirror image
    shift = rng.uniform(-0.05, 0.05)

    def at(x: float, y: float) -> Point:
        return 0.5 + side * (x - 0.5) + shift, y + shift

    color = _jitter(RGB[prop.color], rng, 10)
    if scene.relation == "jumps over":
        parts = [
            [at(0.28, 0.6), at(0.33, 0.6), at(0.33, 0.9), at(0.28, 0.9)],
            [at(0.67, 0.6), at(0.72, 0.6), at(0.72, 0.9), at(0.67, 0.9)],
            [at(0.2, 0.57), at(0.8, 0.57), at(0.8, 0.68), at(0.2, 0.68)],
        ]
        canvas.prop(prop, parts, color)
        top = rng.uniform(0.26, 0.32)
        for i in range(5):  # dashes along the parabola that ends at the actor
            xs = (0.06 + 0.07 * i, 0.10 + 0.07 * i)
            canvas.line([at(x, top + 2.6 * (x - 0.55) ** 2) for x in xs])
        canvas.thing(actor, at(0.55, top), radius)
    elif scene.relation == "rolls down":
        canvas.prop(prop, [[at(0.08, 0.3), at(0.95, 0.88), at(0.08, 0.88)]], color)
        slope = math.hypot(0.87, 0.58)
        along, up = (0.87 / slope, 0.58 / slope), (0.58 / slope, -0.87 / slope)
        t = rng.uniform(0.4, 0.6)
        x, y = 0.08 + 0.87 * t + radius * up[0], 0.3 + 0.58 * t + radius * up[1]
        canvas.thing(actor, at(x, y), radius)
        canvas.trail(at(x, y), radius, (side * along[0], along[1]))
    else:
        canvas.thing(actor, at(0.5, 0.44), radius)
        canvas.trail(at(0.5, 0.44), radius, (0, 1))
        parts = [
            [at(0.22, 0.55), at(0.78, 0.55), at(0.74, 0.92), at(0.26, 0.92)],
            [at(0.22, 0.55), at(0.1, 0.5), at(0.14, 0.43), at(0.26, 0.5)],
            [at(0.78, 0.55), at(0.9, 0.5), at(0.86, 0.43), at(0.74, 0.5)],
        ]
        canvas.prop(prop, parts, color)


class _Canvas:
    """A large picture to draw on, which is reduced in the end for smooth edges."""

    def __init__(self, size: int, background: Color, rng: random.Random):
        self.size = size
        self.rng = rng
        self.image = Image.new("RGB", (size, size), background)
        self.draw = ImageDraw.Draw(self.image)
        self.boxes: list[tuple[str, Box]] = []

    def line(self, points: list[Point], color: Color = INK, width: float = 0.025) -> None:
        self.draw.line([self._pixel(p) for p in points], color, round(width * self.size), joint="curve")

    def polygon(self, points: list[Point], color: Color) -> None:
        self.draw.polygon([self._pixel(p) for p in points], color)
        self.line([*points, *points[:2]], _mix(color, (0, 0, 0), 0.45), width=0.012)

    def prop(self, thing: Thing, parts: list[list[Point]], color: Color) -> None:
        """Draw an object that is made of polygons."""
        self._note_box(thing, [point for part in parts for point in part])
        for part in parts:
            self.polygon(part, color)

    def trail(self, center: Point, radius: float, direction: Point) -> None:
        """Draw lines behind an object that moves."""
        (x, y), (dx, dy) = center, direction
        for offset, start, length in ((-0.7, 0.9, 0.12), (0, 1.25, 0.14), (0.7, 0.9, 0.12)):
            ax, ay = x - start * radius * dx - offset * radius * dy, y - start * radius * dy + offset * radius * dx
            self.line([(ax - 0.02 * dx, ay - 0.02 * dy), (ax - length * dx, ay - length * dy)])

    def thing(self, thing: Thing, center: Point, radius: float, has_edge: bool = False) -> None:
        """Draw a shape, slightly rotated, in its color and texture; a white edge separates it from the object behind."""
        angle = self.rng.uniform(-0.15, 0.15)
        turn = complex(math.cos(angle), math.sin(angle)) * radius
        corners = [complex(*center) + turn * point for point in OUTLINES[thing.kind]]
        points = [(p.real, p.imag) for p in corners]
        self._note_box(thing, points)
        if has_edge:
            self.line([*points, *points[:2]], (255, 255, 255), width=0.05)
        color = _jitter(RGB[thing.color], self.rng, 10)
        if thing.texture in (None, "plain"):
            self.polygon(points, color)
            return
        mask = Image.new("L", self.image.size)
        ImageDraw.Draw(mask).polygon([self._pixel(p) for p in points], 255)
        self.image.paste(self._textured(thing.texture, color), mask=mask)
        self.line([*points, *points[:2]], _mix(color, (0, 0, 0), 0.45), width=0.012)

    def _textured(self, texture: str, color: Color) -> Image.Image:
        light = sum(color) > 400
        image = Image.new("RGB", self.image.size, color)
        draw = ImageDraw.Draw(image)
        other = _mix(color, (0, 0, 0) if light else (255, 255, 255), 0.6 if light else 0.8)
        if texture == "striped":
            step = 0.075 * self.size
            tilt = self.rng.choice((-1, 0, 1)) * self.size
            for i in range(-14, 28):
                draw.line([(i * step, 0), (i * step + tilt, self.size)], other, round(0.42 * step))
        else:
            step, radius = 0.085 * self.size, 0.024 * self.size
            for i, j in itertools.product(range(13), repeat=2):
                x, y = (i + j % 2 / 2) * step, j * step
                draw.ellipse((x - radius, y - radius, x + radius, y + radius), other)
        return image

    def _note_box(self, thing: Thing, points: list[Point]) -> None:
        (left, right), (top, bottom) = (
            (max(0.0, min(axis)), min(1.0, max(axis))) for axis in zip(*points, strict=True)
        )
        self.boxes.append((thing.name, (left, top, right, bottom)))

    def _pixel(self, point: Point) -> Point:
        return point[0] * self.size, point[1] * self.size


def _mix(color: Color, other: Color, share: float) -> Color:
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(color, other, strict=True))
    return red, green, blue


def _jitter(color: Color, rng: random.Random, amount: int) -> Color:
    """Vary a color and its lightness a little."""
    light = rng.randint(-amount, amount)
    red, green, blue = (min(255, max(0, c + light + rng.randint(-6, 6))) for c in color)
    return red, green, blue


def _star(corners: int, inner: float) -> list[complex]:
    return [cmath.rect(1 if i % 2 == 0 else inner, math.pi * (i / corners - 0.5)) for i in range(2 * corners)]


# corners around the origin as complex numbers; each shape is about as large as a circle of radius 1
OUTLINES = {
    "circle": [cmath.rect(1, 2 * math.pi * i / 48) for i in range(48)],
    "square": [0.88 * corner for corner in (-1 - 1j, 1 - 1j, 1 + 1j, -1 + 1j)],
    "triangle": [1.2 * cmath.rect(1, math.pi * (2 * i / 3 - 0.5)) + 0.15j for i in range(3)],
    "star": [1.2 * point for point in _star(5, 0.45)],
}
