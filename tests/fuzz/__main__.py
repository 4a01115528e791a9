"""
Load mutated pictures and mutated model folders, and count what comes of them.

    make fuzz
    PYTHONPATH=tests python -m fuzz --num_pictures 20000 --num_folders 10000 --seed 1

Every outcome is one of
- fine: it loads, and a captioner writes a sentence with a probability;
- refused: a `ValueError` or `OSError` of one printable sentence that names the picture, or the folder;
- obscure: a `ValueError` or `OSError` that names neither, is longer than 1,000 characters or has several lines;
- raw: any other exception, which would reach a terminal as a traceback, a question on the terminal, a minute without an end,
  or 16 GiB of memory.

Exit status 1 if anything is obscure or raw; each of these is printed with its number, and `--only` makes it again.
"""

import argparse
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from fuzz.outcomes import OUTCOMES, Report, fuzz_folders, fuzz_pictures, load_by_pipeline


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--num_pictures", type=int, default=2000, help="Number of mutated pictures.")
    parser.add_argument(
        "--num_folders", type=int, default=1000, help="Number of mutated folders loaded by the classes."
    )
    parser.add_argument(
        "--num_pipelines", type=int, default=300, help="Number of mutated folders loaded by a pipeline."
    )
    parser.add_argument("--seed", type=int, default=0, help="Seed of all mutations.")
    parser.add_argument(
        "--only", type=int, default=None, metavar="NUMBER", help="Make one mutation of each kind again."
    )
    parser.add_argument("--show", type=int, default=20, help="Largest number of errors printed of each kind.")
    parser.add_argument("--show_refused", type=int, default=0, help="Largest number of sentences printed of each kind.")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity(transformers.logging.CRITICAL)
    transformers.logging.disable_progress_bar()
    kinds: tuple[tuple[str, int, Callable[[range, Path], Report]], ...] = (
        ("pictures", args.num_pictures, lambda indices, folder: fuzz_pictures(indices, args.seed, folder)),
        ("model folders", args.num_folders, lambda indices, folder: fuzz_folders(indices, args.seed, folder)),
        (
            "model folders by a pipeline",
            args.num_pipelines,
            lambda indices, folder: fuzz_folders(indices, args.seed, folder, load_by_pipeline),
        ),
    )
    failed = False
    with tempfile.TemporaryDirectory() as temporary:
        for name, count, fuzz in kinds:
            indices = range(count) if args.only is None else range(args.only, args.only + min(count, 1))
            report = fuzz(indices, Path(temporary))
            print(f"{len(indices)} {name}: " + ", ".join(f"{report.counts[kind]} {kind}" for kind in OUTCOMES))
            for index, text in (*report.found[: args.show], *report.sentences[: args.show_refused]):
                print(f"    {index}: {text[:600]!r}")
            failed |= bool(report.found)
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
