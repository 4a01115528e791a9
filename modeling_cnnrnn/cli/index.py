"""`cnnrnn index`: an index of photographs, to be searched by a sentence."""

import sys
from collections.abc import Sequence

from ..retrieval.arguments import IndexArguments
from .arguments import parse_arguments
from .errors import RUN_AGAIN, user_errors


DESCRIPTION = """
Index the pictures in a folder and below it, to find them by a sentence.

    cnnrnn index photographs --model_name_or_path outputs/alignment
    cnnrnn search "a dog jumps over a bar"

The same command later brings the index up to date: pictures that are new or have changed are embedded, those that are
gone leave it. A run that was stopped resumes with the same command. The exit status is 1 if a picture could not be read.
"""


def main(arguments: Sequence[str]) -> None:
    """Run the command with the words of the command line after `cnnrnn index`."""
    with user_errors(RUN_AGAIN):
        (args,) = parse_arguments([IndexArguments], DESCRIPTION, arguments, "cnnrnn index")
        status = index_folder(args)
    sys.exit(status)


def index_folder(args: IndexArguments) -> int:
    """
    Index a folder as the options say.

    Returns:
        The exit status: 1 if a picture could not be read.

    Raises:
        ValueError: the options, the folder, the model or an index that is there do not fit.
        OSError: the folder or the model is not there.
    """
    import transformers

    from ..files import check_writable
    from ..models.error_messages_cnnrnn import printable
    from ..retrieval.building import build_index
    from ..retrieval.embedding import load_model
    from ..retrieval.storage import check_index_dir

    transformers.logging.disable_progress_bar()  # loading the weights takes no time
    bank = _read_bank(args.query_bank) if args.query_bank is not None else None
    check_index_dir(args.output_dir)
    check_writable(args.output_dir)
    model, processor = load_model(args.model_name_or_path, args.model_revision, args.device)
    update = build_index(
        args.folder,
        args.output_dir,
        model,
        processor,
        bank,
        args.approximate,
        args.overwrite_output_dir,
        args.batch_size,
    )
    for name, reason in update.unreadable.items():
        print(f"{printable(name)} could not be read: {reason}", file=sys.stderr)
    for name in update.damaged:
        print(f"{name} was damaged; its pictures are embedded again.", file=sys.stderr)
    if update.num_unknown:
        print(f"{update.num_unknown} sentences of the query bank have no known word.", file=sys.stderr)
    counts = {"embedded": update.num_embedded, "gone": update.num_removed, "unreadable": len(update.unreadable)}
    shown = ", ".join(f"{number} {name}" for name, number in counts.items())
    print(f"{update.num_pictures} pictures are indexed ({shown}): {args.output_dir}", file=sys.stderr)
    return 1 if update.unreadable else 0


def _read_bank(path: str) -> list[str]:
    """
    Read the sentences of a query bank.

    Raises:
        ValueError: there is none, or the file is not UTF-8.
    """
    with open(path, encoding="utf-8") as file:
        try:
            sentences = [line.strip() for line in file if line.strip()]
        except UnicodeDecodeError as error:
            raise ValueError(f"`query_bank` is '{path}', which is no text in UTF-8: save it as such.") from error
    if not sentences:
        raise ValueError(f"`query_bank` is '{path}', which holds no sentence: write one a line.")
    return sentences
