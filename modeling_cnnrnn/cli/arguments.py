"""Options of a command or a script: dataclasses, filled from the command line and from a recipe."""

import dataclasses
import inspect
import json
import sys
import typing
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from enum import Enum
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer

from .help import Entry, OptionsCommand


BOOLEANS = ("true", "false")
# click's error of a command line that cannot be read, whichever copy of click typer has
UsageError: Any = typer.BadParameter.__base__


def parse_arguments(
    dataclasses: Sequence[type],
    description: str | None = None,
    arguments: Sequence[str] | None = None,
    program: str | None = None,
) -> tuple:
    """
    Fill one instance of each dataclass from `python script.py [recipe.json] [--option value ...]`.

    A recipe is a JSON file of options, without their dashes; options of the command line win over it. A list takes its values
    one after the other, `--num_beams 1 3`; a boolean is `--flag`, `--no_flag` or `--flag true`. Help texts are the fields'
    `metadata["help"]`, and a field with `metadata["positional"]` needs no option before its values. A field `from_` is the
    option `--from`.

    Args:
        description: text above the options in the help, shown as it is.
        arguments: words of the command line, by default those of the process.
        program: what the command is called in its help, by default the script.

    Raises:
        ValueError: the recipe is not a JSON object of known options.
        SystemExit: with status 0 after `--help`, and with status 2 and one sentence if the command line cannot be read.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    fields = {field.name: (kind, field) for kind in dataclasses for field in _fields(kind)}
    types = {name: _simple_type(typing.get_type_hints(kind)[name]) for name, (kind, _) in fields.items()}
    positional = [name for name, (_, field) in fields.items() if field.metadata.get("positional")]
    recipe: dict[str, Any] = {}
    if words and words[0].endswith(".json"):
        recipe = read_recipe(words.pop(0), types)
    command = _make_command(fields, types, description)
    try:
        values = command.main(
            _plain_words(words, types, positional), program, standalone_mode=False, default_map=recipe
        )
    except UsageError as error:
        sentence = " ".join(error.format_message().split())
        print(f"Error: {sentence} (--help lists all options.)", file=sys.stderr)
        sys.exit(2)
    if not isinstance(values, dict):  # of a command that has shown its help
        sys.exit(values)
    return tuple(kind(**{field.name: values[field.name] for field in _fields(kind)}) for kind in dataclasses)


def read_recipe(path: str, types: Mapping[str, Any]) -> dict[str, Any]:
    """
    Read the options in a JSON file.

    Args:
        path: the file.
        types: types of all options there are, by name.

    Raises:
        ValueError: the file is not a JSON object, or has a key that is no option.
    """
    with open(path, encoding="utf-8") as file:
        try:
            recipe = json.load(file)
        except json.JSONDecodeError as error:
            raise ValueError(f"The recipe {path} is not JSON: {error}.") from error
    if not isinstance(recipe, dict):
        raise ValueError(f"The recipe {path} holds no options: write {{'option': value, ...}}.")
    for name in recipe:
        if name not in types:
            similar = "".join(f" Did you mean `{match}`?" for match in get_close_matches(name, types, 1))
            raise ValueError(f"The recipe {path} has the option `{name}`, which there is not.{similar}")
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in recipe.items()}
    return {name: texts[name] if types[name] is str else value for name, value in recipe.items() if value is not None}


def _fields(kind: Any) -> list[dataclasses.Field]:
    return [field for field in dataclasses.fields(kind) if field.init]


def _simple_type(hint: Any) -> Any:
    """The type of an option's values on the command line: one of `bool`, `int`, `float`, `str`, choices, or a list."""
    if get_origin(hint) in (Union, UnionType):
        members = [member for member in get_args(hint) if member is not NoneType]
        return _simple_type(members[0]) if len(members) == 1 else str
    if get_origin(hint) is list:
        return list[_simple_type(get_args(hint)[0])]  # type: ignore[misc]
    if get_origin(hint) is Literal or hint in (bool, int, float):
        return hint
    return str


def _make_command(fields: Mapping[str, tuple[type, dataclasses.Field]], types: Mapping[str, Any], description) -> Any:
    """A command that returns the values of all options."""
    parameters = []
    panels: dict[str, list[Entry]] = {}
    for name, (kind, field) in fields.items():
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if isinstance(default, Enum):
            default = default.value
        info: Any = typer.Argument(metavar=name.upper())
        if not field.metadata.get("positional"):
            info = typer.Option(f"--{name.rstrip('_')}" + (f"/--no_{name}" if types[name] is bool else ""))
        is_required = default is dataclasses.MISSING
        parameters.append(
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty if is_required else default,
                annotation=Annotated[types[name] | None if default is None else types[name], info],
            )
        )
        panels.setdefault(_title(kind), []).append(_entry(name, types[name], field, default))

    def collect(**values: Any) -> dict[str, Any]:
        return values

    collect.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    collect.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    app = typer.Typer(add_completion=False)
    app.command(cls=OptionsCommand)(collect)
    command: Any = typer.main.get_command(app)
    command.help, command.panels = (description or "").strip("\n"), panels
    return command


def _title(kind: type) -> str:
    """The first line of a dataclass's docstring; one without a docstring has its signature there."""
    first = (kind.__doc__ or "").strip().partition("\n")[0]
    return kind.__name__ if not first or first.startswith(f"{kind.__name__}(") else first.rstrip(".:")


def _entry(name: str, value_type: Any, field: dataclasses.Field, default: Any) -> Entry:
    is_list = get_origin(value_type) is list
    item = get_args(value_type)[0] if is_list else value_type
    choices = get_args(item) if get_origin(item) is Literal else BOOLEANS if item is bool else None
    kind = "|".join(map(str, choices)) if choices else {str: "TEXT", int: "INTEGER", float: "NUMBER"}[item]
    values = f"{kind} ..." if is_list else kind
    if default is dataclasses.MISSING:
        values += "  [required]"
    elif default not in (None, "", []):
        shown = " ".join(map(str, default)) if isinstance(default, list) else str(default)
        values += f"  [default: {shown.lower() if isinstance(default, bool) else shown}]"
    is_positional = field.metadata.get("positional")
    sentence = " ".join(str(field.metadata.get("help", "")).split()).replace("%%", "%")
    return Entry(name.upper() if is_positional else f"--{name.rstrip('_')}", values, sentence)


def _plain_words(words: Sequence[str], types: Mapping[str, Any], positional: Sequence[str]) -> list[str]:
    """Words as click takes them: an option before each value of a list, and booleans without a value."""
    plain: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "--":
            return [*plain, word, *rest]
        option, equals, value = word.partition("=")
        name = option.removeprefix("--").replace("-", "_")
        name = f"{name}_" if f"{name}_" in types else name
        if not word.startswith("--") or name not in types:
            plain.append(word)
            continue
        values = [value] if equals else []
        if types[name] is bool:
            if not equals and rest and rest[0].lower() in BOOLEANS:
                values = [rest.pop(0)]
            if values and values[0].lower() not in BOOLEANS:
                raise ValueError(f"`{name}` is '{values[0]}': pass true or false.")
            plain.append(f"--no_{name}" if values and values[0].lower() == "false" else f"--{name}")
        elif get_origin(types[name]) is list:
            while not equals and rest and not rest[0].startswith("--"):
                values.append(rest.pop(0))
            plain += values if name in positional else [w for value in values for w in (f"--{name}", value)]
            if not values:
                plain.append(f"--{name}")  # which click says needs a value
        else:
            plain += [f"--{name.rstrip('_')}", *values]
    return plain
