"""Options from dataclasses: one parser for commands and examples, recipes, help that can be read."""

import json
from dataclasses import dataclass, field
from typing import Literal

import pytest

from modeling_cnnrnn.cli.arguments import parse_arguments


@dataclass
class Painting:
    """What is painted.

    The rest of this is for readers of the code.
    """

    subject: str = field(metadata={"help": "Who sits for it."})
    colours: list[str] = field(default_factory=lambda: ["red"], metadata={"help": "Colours, brightest first."})
    sizes: list[int] | None = field(default=None, metadata={"help": "Sides in centimetres."})
    framed: bool = field(default=False, metadata={"help": "Whether it has a frame."})
    signed: bool | None = field(default=None, metadata={"help": "Whether it is signed."})
    style: Literal["oil", "ink"] = field(default="oil", metadata={"help": "What it is painted with."})


@dataclass
class Sale:
    price: float = field(default=1.5, metadata={"help": "Price of the painting, of which the house keeps 5 %."})
    bids: int | None = field(default=None, metadata={"help": "Number of bids."})
    note: str | dict | None = field(default=None, metadata={"help": "Text, or JSON."})


def parse(*words: str) -> tuple[Painting, Sale]:
    return parse_arguments([Painting, Sale], "Sell it.\n\n    sell \\\n        --subject cat", words, "sell")


@pytest.fixture
def recipe(tmp_path):
    """`recipe({"price": 2})`: the path of a file with these options."""

    def write(content) -> str:
        path = tmp_path / "recipe.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return str(path)

    return write


def test_values_have_the_types_of_their_fields():
    words = [
        "--subject",
        "cat",
        "--sizes",
        "3",
        "40",
        "--price",
        "1e-3",
        "--bids",
        "-2",
        "--style",
        "ink",
        "--note",
        "007",
    ]
    assert parse(*words) == (Painting("cat", sizes=[3, 40], style="ink"), Sale(1e-3, -2, "007"))


def test_what_is_not_given_is_as_in_the_dataclass():
    assert parse("--subject", "cat") == (Painting("cat"), Sale())


@pytest.mark.parametrize(
    ("words", "framed"),
    [
        ("--framed", True),
        ("--framed true", True),
        ("--framed=True", True),
        ("--framed false", False),
        ("--no_framed", False),
    ],
)
def test_a_boolean_is_a_flag_or_has_a_value(words, framed):
    assert parse("--subject", "cat", *words.split(), "--bids", "1") == (Painting("cat", framed=framed), Sale(bids=1))


def test_a_boolean_of_three_values_can_be_each():
    assert [parse("--subject", "cat", *words)[0].signed for words in ((), ("--signed",), ("--signed", "false"))] == [
        None,
        True,
        False,
    ]


def test_the_values_of_a_list_follow_each_other_or_repeat_the_option():
    assert parse("--colours", "blue", "green", "--subject", "cat") == parse(
        "--subject", "cat", "--colours", "blue", "--colours=green"
    )


def test_dashes_are_read_as_underscores():
    @dataclass
    class Options:
        output_dir: str = field(default="here", metadata={"help": "A folder."})

    assert parse_arguments([Options], arguments=["--output-dir", "a-b_c"]) == (Options("a-b_c"),)


def test_positional_values_come_with_and_without_their_option():
    @dataclass
    class Options:
        images: list[str] = field(metadata={"help": "Images.", "positional": True})
        seed: int = field(default=1, metadata={"help": "A seed."})

    for words in ("a.png b.png --seed 2", "--seed 2 a.png b.png", "--images a.png b.png --seed 2"):
        assert parse_arguments([Options], arguments=words.split()) == (Options(["a.png", "b.png"], 2),)


def test_options_of_the_command_line_win_over_the_recipe(recipe):
    path = recipe({"subject": "dog", "colours": ["blue", "green"], "framed": True, "signed": None, "price": 2})
    assert parse(path) == (Painting("dog", ["blue", "green"], framed=True), Sale(2.0))
    assert parse(path, "--colours", "white", "--no_framed", "--price", "3") == (Painting("dog", ["white"]), Sale(3.0))


def test_a_recipe_holds_json_and_numbers_for_options_of_text(recipe):
    assert parse(recipe({"subject": 7, "note": {"a": [1]}})) == (Painting("7"), Sale(note='{"a": [1]}'))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"subject": "cat", "prise": 2}, "has the option `prise`, which there is not. Did you mean `price`?"),
        ("{", "is not JSON"),
        ([1], "holds no options"),
    ],
)
def test_a_recipe_that_cannot_be_used_is_refused(recipe, content, message):
    with pytest.raises(ValueError, match="The recipe ") as error:
        parse(recipe(content))
    assert message in str(error.value)


def test_a_recipe_that_is_not_there_is_named():
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json"):
        parse("nowhere.json")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("--subject cat --prise 2", "--price"),
        ("--subject cat --bids many", "--bids"),
        ("--subject cat --style chalk", "ink"),
        ("--subject cat more", "more"),
        ("--price 1", "--subject"),
        ("--subject cat --sizes", "--sizes"),
    ],
)
def test_a_command_line_that_cannot_be_read_ends_with_one_sentence_and_status_2(words, named, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(*words.split())
    assert stop.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("Error: ")
    assert printed.err.count("\n") == 1
    assert named in printed.err


def test_a_boolean_of_another_value_is_refused():
    with pytest.raises(ValueError, match="`framed` is 'perhaps': pass true or false"):
        parse("--subject", "cat", "--framed=perhaps")


def test_help_keeps_its_lines_and_shows_every_option_in_its_group(capsys):
    with pytest.raises(SystemExit) as stop:
        parse("--help")
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert "Sell it.\n\n    sell \\\n        --subject cat\n" in shown
    lines = [line.strip("│ ") for line in shown.splitlines()]
    for text in (
        *(
            "--subject TEXT  [required]",
            "Who sits for it.",
            "--colours TEXT ...  [default: red]",
            "--sizes INTEGER ...",
        ),
        *("--framed true|false  [default: false]", "--style oil|ink  [default: oil]", "--price NUMBER  [default: 1.5]"),
        "Price of the painting, of which the house keeps 5 %.",
    ):
        assert text in lines
    first, second = shown.index("╭─ What is painted ─"), shown.index("╭─ Sale ─")
    assert first < shown.index("--style") < second < shown.index("--price")
    assert "The rest of this" not in shown
