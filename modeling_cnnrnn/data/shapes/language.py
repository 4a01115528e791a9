"""
Describe pictures of `shapes` as a person would, parse such sentences, and check them against a picture.

`describe` writes and `parse_caption` reads by the tables of words and sentence patterns at the top, so the two always agree:
a pattern added here is understood at once.
"""

import itertools
import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass


# the words for each value, the plainest first: it is used most often, as people do
COLORS = {
    "red": ("red",),
    "green": ("green",),
    "blue": ("blue",),
    "yellow": ("yellow",),
    "purple": ("purple",),
}
SHAPES = {
    "circle": ("circle",),
    "square": ("square",),
    "triangle": ("triangle",),
    "star": ("star",),
}
# the props of actions; a circle that moves is called a ball
PROPS = {"bar": ("bar", "hurdle"), "slope": ("slope", "ramp"), "box": ("box",)}
MOVING = {"circle": ("ball",)}
SIZES = {"small": ("small", "little"), "large": ("large", "big")}
TEXTURES = {"plain": ("plain",), "striped": ("striped",), "dotted": ("dotted", "spotted")}
PATTERNS = {"striped": ("stripes",), "dotted": ("dots", "spots")}
COUNTS = {1: ("a", "one"), 2: ("two",), 3: ("three",), 4: ("four",)}

NOUN_PHRASES = (
    "{count} {size} {texture} {color} {kind}",
    "{count} {size} {color} {texture} {kind}",
    "{count} {texture} {size} {color} {kind}",
    "{count} {size} {color} {kind} with {pattern}",
)

# {a} and {b} are noun phrases. In a relation {a} is the first argument: "above" means that a is above b.
SENTENCES: dict[str, tuple[str, ...]] = {
    "group": (
        "{a}",
        "there {be} {a}",
        "a picture of {a}",
        "we see {a}",
        "{a} and nothing else",
        "{a} and {b}",
        "{a} together with {b}",
        "there {be} {a} and {b}",
        "a picture of {a} and {b}",
        "we see {a} and {b}",
    ),
    "above": (
        "{a} above {b}",
        "{a} is above {b}",
        "{a} over {b}",
        "there is {a} above {b}",
        "above {b} there is {a}",
        "{b} below {a}",
        "{b} is below {a}",
        "{b} under {a}",
        "there is {b} under {a}",
        "below {a} there is {b}",
    ),
    "left of": (
        "{a} left of {b}",
        "{a} to the left of {b}",
        "{a} is on the left of {b}",
        "{a} on the left and {b} on the right",
        "to the left of {b} there is {a}",
        "{b} right of {a}",
        "{b} to the right of {a}",
        "{b} is on the right of {a}",
        "{b} on the right and {a} on the left",
        "to the right of {a} there is {b}",
    ),
    "in front of": (
        "{a} in front of {b}",
        "{a} is in front of {b}",
        "{a} hides part of {b}",
        "in front of {b} there is {a}",
        "{b} behind {a}",
        "{b} is behind {a}",
        "{b} partly hidden by {a}",
        "behind {a} there is {b}",
    ),
    "inside": (
        "{a} inside {b}",
        "{a} is inside {b}",
        "{a} in {b}",
        "inside {b} there is {a}",
        "{b} with {a} inside",
        "{b} with {a} in it",
        "{b} around {a}",
        "{b} contains {a}",
    ),
    "between": (
        "{a} between {b}",
        "{a} is between {b}",
        "{b} with {a} between them",
        "between {b} there is {a}",
    ),
    "jumps over": (
        "{a} jumps over {b}",
        "{a} is jumping over {b}",
        "{a} jumping over {b}",
        "{a} leaps over {b}",
        "{a} flies over {b}",
        "{b} with {a} jumping over it",
    ),
    "rolls down": (
        "{a} rolls down {b}",
        "{a} is rolling down {b}",
        "{a} rolling down {b}",
        "{a} runs down {b}",
        "down {b} rolls {a}",
    ),
    "falls into": (
        "{a} falls into {b}",
        "{a} is falling into {b}",
        "{a} falling into {b}",
        "{a} drops into {b}",
        "{b} with {a} falling into it",
    ),
}
RELATIONS = ("above", "left of", "in front of", "inside")
# each action happens at its own prop
ACTIONS = {
    "jumps over": "bar",
    "rolls down": "slope",
    "falls into": "box",
}


@dataclass(frozen=True)
class Thing:
    """One object. In a sentence, `size` and `texture` are `None` where the sentence does not mention them."""

    color: str
    kind: str
    size: str | None = None
    texture: str | None = None

    @property
    def name(self) -> str:
        return f"{self.color} {self.kind}"

    def fits(self, other: "Thing") -> bool:
        """Return whether everything that this object states is true of `other`."""
        return self.name == other.name and self.size in (None, other.size) and self.texture in (None, other.texture)


@dataclass(frozen=True)
class Meaning:
    """
    The meaning of a picture or sentence: a relation, and the objects in each of its roles, in any order within a role.

    `above`: `((upper,), (lower,))`. `between`: `((middle,), (side, side))`. `group`: one role with all objects.
    """

    relation: str
    roles: tuple[tuple[Thing, ...], ...]

    @property
    def things(self) -> tuple[Thing, ...]:
        return tuple(itertools.chain(*self.roles))

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Meaning":
        scene = json.loads(text)
        return cls(scene["relation"], tuple(tuple(Thing(**thing) for thing in role) for role in scene["roles"]))


def describe(meaning: Meaning, rng: random.Random) -> str:
    """Write a sentence for a meaning, in one of its wordings: lower case, with a full stop now and then."""
    phrases = [list(dict.fromkeys(role)) for role in meaning.roles]
    slots = dict(zip("ab", itertools.chain(*phrases), strict=False))
    counts = {slot: meaning.things.count(thing) for slot, thing in slots.items()}
    if meaning.relation == "group" and len(slots) == 2 and rng.random() < 0.5:  # the two have no roles
        slots["a"], slots["b"] = slots["b"], slots["a"]
        counts["a"], counts["b"] = counts["b"], counts["a"]
    sentence = _choose([s for s in SENTENCES[meaning.relation] if set(re.findall(r"{(\w)}", s)) == set(slots)], rng)
    words = {slot: _noun_phrase(thing, counts[slot], meaning.relation, rng) for slot, thing in slots.items()}
    text = sentence.format(**words, be="is" if counts["a"] == 1 else "are")
    return text + rng.choice(("", "", "."))


def _noun_phrase(thing: Thing, count: int, relation: str, rng: random.Random) -> str:
    """Name an object by colour and kind, and now and then by size and texture, as a person would."""
    size = thing.size if rng.random() < 0.35 else None
    texture = thing.texture if rng.random() < (0.05 if thing.texture == "plain" else 0.6) else None
    nouns = (MOVING if relation in ACTIONS else {}).get(thing.kind) or {**SHAPES, **PROPS}[thing.kind]
    kind = _choose(nouns, rng)
    words = {
        "count": "one" if count == 1 and rng.random() < 0.04 else COUNTS[count][0],
        "size": _choose(SIZES[size], rng) if size else "",
        "texture": _choose(TEXTURES[texture], rng) if texture else "",
        "pattern": _choose(PATTERNS[texture], rng) if texture in PATTERNS else "",
        "color": _choose(COLORS[thing.color], rng),
        "kind": kind if count == 1 else _plural(kind),
    }
    pattern = _choose([p for p in NOUN_PHRASES if "{pattern}" not in p or words["pattern"]], rng)
    phrase = " ".join(pattern.format(**words).split())
    return re.sub(r"^a (?=[aeiou])", "an ", phrase)


def _choose(wordings: Sequence[str], rng: random.Random) -> str:
    """Choose a wording, the n-th in proportion to 1 / n^2: the plainest is first and most frequent."""
    return rng.choices(wordings, [1 / n**2 for n in range(1, len(wordings) + 1)])[0]


def _plural(noun: str) -> str:
    return noun + ("es" if noun.endswith(("s", "x")) else "s")


def _spoken(*tables: dict) -> dict:
    """Invert tables of words, to map each word to its value."""
    return {word: value for table in tables for value, words in table.items() for word in words}


_KINDS = _spoken(SHAPES, PROPS, MOVING)
_READERS: dict[str, dict] = {
    "count": _spoken(COUNTS, {1: ("an", "the")}),
    "size": _spoken(SIZES),
    "texture": _spoken(TEXTURES),
    "pattern": _spoken(PATTERNS),
    "color": _spoken(COLORS),
    "kind": _KINDS | {_plural(noun): kind for noun, kind in _KINDS.items()},
}


def _noun_phrase_regex(pattern: str, group: Callable[[str], str]) -> str:
    """Turn a noun phrase pattern into a regular expression; `group(slot)` opens the group of a slot."""
    for slot, reader in _READERS.items():
        choice = f"{group(slot)}{'|'.join(reader)})"
        pattern = pattern.replace(f"{{{slot}}} ", f"(?:{choice} )" + ("?" if slot in ("size", "texture") else ""))
        pattern = pattern.replace(f"{{{slot}}}", choice)
    return pattern


_PHRASE_REGEXES = [re.compile(_noun_phrase_regex(pattern, "(?P<{}>".format)) for pattern in NOUN_PHRASES]
_ANY_PHRASE = "|".join(f"(?:{_noun_phrase_regex(pattern, lambda slot: '(?:')})" for pattern in NOUN_PHRASES)
# in running text the longest phrase is tried first: "a circle with dots" before "a circle"
_PHRASE_IN_TEXT = re.compile(
    rf"\b(?:{'|'.join(_noun_phrase_regex(p, lambda slot: '(?:') for p in reversed(NOUN_PHRASES))})\b"
)
_SENTENCE_REGEXES = [
    (relation, re.compile(re.sub(r"{(\w)}", rf"(?P<\1>{_ANY_PHRASE})", sentence.replace("{be}", "(?:is|are)"))))
    for relation, sentences in SENTENCES.items()
    for sentence in sentences
]


def parse_caption(text: str) -> Meaning | None:
    """Parse a sentence; `None` if it is not one of the language."""
    return next(_readings(text), None)


def _readings(text: str) -> Iterator[Meaning]:
    """Yield all readings of a sentence. The tests hold that there is at most one."""
    text = " ".join(re.findall(r"\w+", text.lower()))
    for relation, regex in _SENTENCE_REGEXES:
        if match := regex.fullmatch(text):
            slots = {slot: _parse_noun_phrase(phrase) for slot, phrase in sorted(match.groupdict().items())}
            # a group is one role with all objects
            roles = (tuple(itertools.chain(*slots.values())),) if relation == "group" else tuple(slots.values())
            yield Meaning(relation, roles)


def _parse_noun_phrase(phrase: str) -> tuple[Thing, ...]:
    """Parse a noun phrase into its objects: "two red circles" are two."""
    match = next(match for regex in _PHRASE_REGEXES if (match := regex.fullmatch(phrase)))
    words = {slot: _READERS[slot][word] for slot, word in match.groupdict().items() if word}
    texture = words.get("texture") or words.get("pattern")
    return (Thing(words["color"], words["kind"], words.get("size"), texture),) * words["count"]


def named_things(caption: str) -> list[tuple[str, str | None, str | None]]:
    """
    List the words of a sentence, each with what it says and of which object: `("striped", "texture", "red circle")`.

    What a word says is "size", "texture", "pattern", "color" or "kind". Number and article name no object, nor do words
    outside noun phrases: for them both are `None`.
    """
    text = " ".join(re.findall(r"\w+", caption.lower()))
    words: list[tuple[str, str | None, str | None]] = []
    end = 0
    for match in _PHRASE_IN_TEXT.finditer(text):
        count, *named = match.group().split()
        name = _parse_noun_phrase(match.group())[0].name
        words += [(word, None, None) for word in [*text[end : match.start()].split(), count]]
        for word in named:
            slot = next((slot for slot, reader in _READERS.items() if word in reader), None)
            words.append((word, slot, name if slot else None))
        end = match.end()
    return words + [(word, None, None) for word in text[end:].split()]


def is_correct(caption: str, scene: str | Meaning) -> bool:
    """
    Return whether a sentence is true of a scene and complete.

    It must name every object with its colour and kind, their numbers, and the relation or action. Size and texture may be
    left out, but not be wrong.

    Args:
        caption: any text; a text that cannot be parsed is not correct.
        scene: the `scene` of a picture of `shapes`.
    """
    claim = parse_caption(caption)
    scene = Meaning.from_json(scene) if isinstance(scene, str) else scene
    if claim is None or claim.relation != scene.relation:
        return False
    return all(_match(claimed, present) for claimed, present in zip(claim.roles, scene.roles, strict=True))


def _match(claimed: Sequence[Thing], present: Sequence[Thing]) -> bool:
    """Return whether the claimed objects are those of the scene, in some order."""
    if len(claimed) != len(present):
        return False
    return any(all(map(Thing.fits, claimed, order)) for order in itertools.permutations(present))


def checker(scenes: Sequence[str]) -> Callable[[str, int], bool]:
    """
    Make the function that says whether a caption is right.

    Args:
        scenes: what the picture of each row shows, as [`~modeling_cnnrnn.data.shapes.scenes_of`] returns it.

    Returns:
        A function of a caption and the number of its row, see [`is_correct`].
    """
    return lambda caption, row: is_correct(caption, scenes[row])


def hallucination_scores(captions: Sequence[str], scenes: Sequence[str]) -> dict[str, float]:
    """
    Compute CHAIR of `shapes` (https://arxiv.org/abs/1809.02156): objects such as "red circle" that captions name and
    pictures do not show.

    Args:
        captions: any texts, one for each picture.
        scenes: what each of these pictures shows.

    Returns:
        `CHAIRs`, the share of captions with such an object; `CHAIRi`, their share of the objects named, each counted once
        in a caption; `unreadable`, the share of captions that cannot be parsed, in which no object is counted.

    Raises:
        ValueError: there are no captions, or another number of scenes.
    """
    if not captions:
        raise ValueError("`captions` is empty: pass at least one caption.")
    named, invented, hallucinating, unreadable = 0, 0, 0, 0
    for caption, scene in zip(captions, scenes, strict=True):
        claim = parse_caption(caption)
        if claim is None:
            unreadable += 1
            continue
        names = {thing.name for thing in claim.things}
        absent = names - {thing.name for thing in Meaning.from_json(scene).things}
        named, invented, hallucinating = named + len(names), invented + len(absent), hallucinating + bool(absent)
    return {
        "CHAIRs": hallucinating / len(captions),
        "CHAIRi": invented / max(named, 1),
        "unreadable": unreadable / len(captions),
    }
