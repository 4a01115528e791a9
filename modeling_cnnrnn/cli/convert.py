"""`cnnrnn convert`: a captioner of another program as one of this package."""

from collections.abc import Sequence

from ..converters.arguments import ConvertArguments
from .arguments import parse_arguments
from .errors import user_errors


DESCRIPTION = """
Convert the checkpoint of another program to a captioner, which writes the same sentences.

    cnnrnn convert model_id1-501-1448236541.t7 --output_dir outputs/neuraltalk2
    cnnrnn convert model-best.pth infos_updown-best.pkl --output_dir outputs/updown
    cnnrnn convert encoder-5-3000.ckpt decoder-5-3000.ckpt vocab.pkl --output_dir outputs/tutorial

The program is guessed from the files; --from names it. Nothing that the files hold is run.
"""


def main(arguments: Sequence[str]) -> None:
    """Run the command with the words of the command line after `cnnrnn convert`."""
    with user_errors():
        (args,) = parse_arguments([ConvertArguments], DESCRIPTION, arguments, "cnnrnn convert")

        from ..converters.converting import convert_checkpoint

        print(convert_checkpoint(args.checkpoint, args.output_dir, args.from_))
