"""Options of a script, from the command line or from a recipe."""

import json
import sys
from collections.abc import Sequence
from typing import Any

from transformers import HfArgumentParser


def parse_arguments(dataclasses: Sequence[type], description: str | None = None) -> tuple:
    """
    One instance of each dataclass, from `python script.py [recipe.json] [--option value ...]`.

    A recipe is a JSON file of options, without their dashes; options of the command line come before it.

    Raises:
        ValueError: the recipe is not a JSON object.
    """
    arguments = sys.argv[1:]
    if arguments and arguments[0].endswith(".json"):
        with open(arguments[0], encoding="utf-8") as file:
            try:
                recipe = json.load(file)
            except json.JSONDecodeError as error:
                raise ValueError(f"The recipe {arguments[0]} is not JSON: {error}.") from error
        if not isinstance(recipe, dict):
            raise ValueError(f"The recipe {arguments[0]} holds no options: write {{'option': value, ...}}.")
        given = []
        for name, value in recipe.items():
            given += [f"--{name}", json.dumps(value) if isinstance(value, (dict, list, bool)) else str(value)]
        arguments = given + arguments[1:]
    types: Any = tuple(dataclasses)
    parser = HfArgumentParser(types, description=description)
    return parser.parse_args_into_dataclasses(args=arguments)
