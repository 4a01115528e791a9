"""A captioned dataset as a repository: its summary, its card, and the push."""

import logging
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import datasets
from accelerate import Accelerator
from huggingface_hub import DatasetCardData, HfApi, get_token

from ..data.columns import listed
from ..evaluation.arguments import CaptionDatasetArguments, GenerationArguments
from ..evaluation.dataset_captions import ImageRows, features_of_captions, find_broken
from ..evaluation.provenance import provenance
from ..files import check_writable, write_json, write_text


logger = logging.getLogger(__name__)


def check_dataset_options(args: CaptionDatasetArguments, generation: GenerationArguments) -> None:
    """
    Check what can be checked before anything is read.

    Raises:
        ValueError: there is no token to push with, or a number is below 1.
        OSError: the output folder cannot be written to.
    """
    if args.push_to_hub and get_token() is None:
        raise ValueError("`push_to_hub` needs a token of the Hub: run `hf auth login`, or set HF_TOKEN.")
    for name, value in {**asdict(args), **asdict(generation)}.items():
        if name in ("rows_per_part", "per_device_eval_batch_size", "num_return_sequences") and value < 1:
            raise ValueError(f"`{name}` is {value}: pass 1 or more.")
    check_writable(args.output_dir, make=False)


def finish_dataset(
    output_dir: Path,
    rows: ImageRows,
    args: CaptionDatasetArguments,
    generation: GenerationArguments,
    accelerator: Accelerator,
) -> None:
    """
    Complete a dataset whose parts are all written: `caption_results.json`, the card, the push if it is asked for.

    Raises:
        ValueError: a part is missing, or the repository does not fit.
        OSError: the Hub cannot be reached, or does not take the files.
    """
    broken = find_broken(output_dir, rows, args.rows_per_part)
    counts = {split: len(split_rows) for split, split_rows in rows.splits.items()}
    protocol = {"arguments": asdict(args) | asdict(generation), **provenance(accelerator)}
    write_json(output_dir / "caption_results.json", {"num_rows": counts, "broken_images": broken, **protocol})
    columns = features_of_captions(generation.num_return_sequences)
    card = write_dataset_card(output_dir, args.dataset_name, args.model_name_or_path, columns, rows.splits)
    if broken:
        logger.warning("%d images could not be read; their rows have no sentence:", len(broken))
        for row in broken:
            logger.warning("    %s, row %d: %s", row["split"], row["row"], row["reason"])
    logger.info('The sentences are in %s: datasets.load_dataset("%s")', output_dir, output_dir)
    if args.push_to_hub:
        url = push_dataset(
            output_dir, args.hub_dataset_id, card, private=args.hub_private_repo, revision=args.hub_revision
        )
        logger.info("Pushed: %s", url)


def write_dataset_card(
    output_dir: str | Path, dataset: str, captioner: str, columns: Iterable[str], splits: Iterable[str]
) -> str:
    """
    Write the README.md from which `load_dataset` knows the splits, whatever their names.

    Args:
        output_dir: the folder with `data/<split>/*.parquet`.
        dataset: the dataset that was captioned; of a local path only the name is written.
        captioner: the captioner, likewise.
        columns: the columns that were added.
        splits: the names of the splits.

    Returns:
        The text of the card, without its metadata.
    """
    names = [Path(name).name if Path(name).exists() else name for name in (dataset, captioner)]
    text = (
        f"The rows of `{names[0]}` with what the captioner `{names[1]}` wrote about their images. Added to the dataset are\n"
        f"{listed(columns)}: sentences that a model wrote, which nobody has checked; their log-probabilities in nats; and,\n"
        "where an image could not be read, the reason.\n"
    )
    data_files = [{"split": split, "path": f"data/{split}/*.parquet"} for split in splits]
    data = DatasetCardData(
        task_categories=["image-to-text"], configs=[{"config_name": "default", "data_files": data_files}]
    )
    write_text(Path(output_dir) / "README.md", f"---\n{data.to_yaml()}\n---\n\n{text}")
    return text


def push_dataset(
    output_dir: str | Path,
    repo_id: str | None = None,
    card: str = "",
    *,
    private: bool | None = None,
    revision: str | None = None,
) -> str:
    """
    Push a captioned dataset to the Hub.

    Args:
        output_dir: the folder, with its card.
        repo_id: `"user/name"`, created if it does not exist; the folder's name by default.
        card: the text of the card in a new repository.
        private: whether a repository that is created here is private. With `True`, one that is public is refused.
        revision: a branch, created if it does not exist.

    Returns:
        The address of the commit.

    Raises:
        ValueError: `private` is `True`, and the repository is public.
        OSError: the Hub cannot be reached, or does not take the files.
    """
    output_dir = Path(output_dir)
    api = HfApi()
    url = api.create_repo(repo_id or output_dir.name, repo_type="dataset", private=private, exist_ok=True)
    repository: dict[str, Any] = {"repo_id": url.repo_id, "repo_type": "dataset"}
    if private and not api.repo_info(**repository).private:
        raise ValueError(
            f"`hub_private_repo` is True, but '{url.repo_id}' is public: make it private in its settings, or push elsewhere."
        )
    if revision is not None:
        api.create_branch(**repository, branch=revision, exist_ok=True)
    if not api.file_exists(**repository, filename="README.md", revision=revision):
        # `datasets` writes the splits and their columns above it
        api.upload_file(**repository, path_or_fileobj=card.encode(), path_in_repo="README.md", revision=revision)
    return datasets.load_dataset(str(output_dir)).push_to_hub(url.repo_id, revision=revision).commit_url
