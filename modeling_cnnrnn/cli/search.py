"""`cnnrnn search`: the photographs of an index that fit a sentence, or are similar to a picture."""

import os
import sys
from collections.abc import Sequence

from ..retrieval.arguments import SearchArguments
from .arguments import parse_arguments
from .errors import user_errors


DESCRIPTION = """
Find pictures that fit a sentence or are similar to a picture, in what `cnnrnn index` has made.

    cnnrnn search "a dog jumps over a bar"
    cnnrnn search --image photo.jpg --top_k 30 --page results.html

Standard output has a line for each picture, best first: its score and its path.
"""


def main(arguments: Sequence[str]) -> None:
    """Run the command with the words of the command line after `cnnrnn search`."""
    with user_errors():
        (args,) = parse_arguments([SearchArguments], DESCRIPTION, arguments, "cnnrnn search")
        search(args)


def search(args: SearchArguments) -> None:
    """
    Print the pictures of an index that fit.

    Raises:
        ValueError: the options, the index, the model or the query do not fit.
        OSError: the index, the model or the picture is not there.
    """
    import transformers

    from ..evaluation.image_captions import check_table, write_table
    from ..files import check_file_writable
    from ..models.error_messages_cnnrnn import printable
    from ..retrieval.embedding import load_model
    from ..retrieval.index import ImageIndex
    from ..retrieval.storage import Manifest

    transformers.logging.disable_progress_bar()  # loading the weights takes no time
    if args.output is not None:
        check_table(args.output)
    if args.page is not None:
        check_file_writable(args.page)
    text = " ".join(args.query) or None
    if (text is None) == (args.image is None):
        raise ValueError('Pass a sentence, as in `cnnrnn search "a dog jumps over a bar"`, or --image, but not both.')
    manifest = Manifest.load(args.index_dir)
    place = args.model_name_or_path or manifest.model_name_or_path
    index = ImageIndex(args.index_dir, *load_model(place, args.model_revision, args.device))
    if not manifest.is_complete:
        print(f"'{args.index_dir}' is not finished: run `cnnrnn index` again to resume it.", file=sys.stderr)

    image = None if args.image is None else index.processor.load_image(args.image)
    query = index.embed(text, image)
    if query.unknown_words:
        print(f"The model does not know: {', '.join(query.unknown_words)}.", file=sys.stderr)
    size = args.shortlist_size or None
    results = index.search_query(query, args.top_k, size, args.exact, args.less_hub_bias)
    for result in results:
        print(f"{result.score:.3f}  {printable(result.path)}")
    if args.output is not None:
        write_table(args.output, [{"file_name": printable(result.path), "score": result.score} for result in results])
    if args.page is not None:
        from ..retrieval.results_page import write_results

        title = text or f"Similar to {os.path.basename(args.image or '')}"
        write_results(args.page, results, title, image, {"pictures": len(index), "found": len(results)})
    if gone := [result.path for result in results if not os.path.exists(result.path)]:
        print(f"{len(gone)} of these pictures are gone: run `cnnrnn index` again to forget them.", file=sys.stderr)
