"""`cnnrnn card`: write the model card of a captioner."""

import shlex
from collections.abc import Sequence
from dataclasses import asdict

from ..hub.arguments import CardArguments, CardFileArguments
from .arguments import parse_arguments
from .errors import user_errors


DESCRIPTION = """
Write the model card of a captioner, README.md and its pictures, from what training and evaluation have written.

    cnnrnn train examples/recipes/shapes.json --output_dir outputs/shapes
    cnnrnn evaluate --model_name_or_path outputs/shapes --dataset_name shapes --num_beams 1 3 \\
        --output_dir outputs/shapes/evaluation
    cnnrnn card --model_name_or_path outputs/shapes --repo_id user/shapes-captioner --license apache-2.0

`cnnrnn push` writes it by itself.
"""


def main(arguments: Sequence[str]) -> None:
    """Run the command with the words of the command line after `cnnrnn card`."""
    with user_errors():
        args, card_args = parse_arguments([CardFileArguments, CardArguments], DESCRIPTION, arguments, "cnnrnn card")

        from ..hub.model_card import write_model_card

        command = shlex.join(["cnnrnn", "card", *arguments])
        print(
            write_model_card(
                args.model_name_or_path,
                repo_id=args.repo_id,
                output_dir=args.output_dir,
                command=command,
                **asdict(card_args),
            )
        )
