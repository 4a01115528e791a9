"""
Caption the rows of a dataset, on any number of processes, in parts that are written whole or not at all.

A run that is stopped resumes with the parts that are not there yet. No sentence depends on which process writes it: a batch
never reaches into another part, and samples depend on the part alone.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import pyarrow.compute
import pyarrow.parquet
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, set_seed
from torch.utils.data import DataLoader

from ..data.batching import load_stored_image, pad_regions
from ..data.columns import CaptionColumns, listed
from ..data.image_cells import file_names
from ..data.image_files import ImageFiles, embed_files, files_of_dataset
from ..data.loading import names_image
from ..data.region_features import RegionFeatures, check_reader, load_region_features, open_region_features
from ..data.sources import read_splits, split_names
from ..files import atomic_path, write_json
from ..models.pipeline_cnnrnn import ImageToTextPipeline
from ..models.processing_cnnrnn import CnnRnnProcessor
from .arguments import CaptionDatasetArguments, GenerationArguments
from .consensus import rank_by_consensus


# options that change the sentences or the files; a smaller batch after running out of memory does not
SETTINGS = (
    *("image_dir", "image_column", "keep_columns", "rows_per_part", "num_beams", "num_return_sequences"),
    *("max_new_tokens", "do_sample", "temperature", "top_p", "prompt", "mixed_precision", "seed"),
    *("num_beam_groups", "diversity_penalty", "consensus", "force_words", "finish_sentences"),
    *("length_penalty", "no_repeat_ngram_size", "region_features"),
)


class Part(NamedTuple):
    """Rows `first` to `last - 1` of a split, which are written into one file."""

    split: str
    first: int
    last: int

    def path(self, output_dir: Path) -> Path:
        return output_dir / "data" / self.split / f"part-{self.first:09d}-{self.last - 1:09d}.parquet"


@dataclass
class ImageRows:
    """
    The rows to caption.

    Attributes:
        splits: the rows of each split, with all their columns.
        column: the column of the images.
        files: the files that the rows of each split may name.
        kept: the columns to write beside the sentences.
        id_column: the column that tells one image from another, if it is not the file or the row number that does.
    """

    splits: dict[str, datasets.Dataset]
    column: str
    files: dict[str, ImageFiles]
    kept: list[str]
    id_column: str | None = None

    def image_ids(self, split: str) -> list[str]:
        """List the ids of the images of a split."""
        rows = self.splits[split]
        if self.id_column is not None:
            return [str(value) for value in rows[self.id_column][:]]
        images = rows.select_columns([self.column]).cast_column(self.column, datasets.Image(decode=False))
        return file_names(images.rename_columns({self.column: "image"})) or [str(row) for row in range(len(rows))]

    def parts(self, rows_per_part: int) -> list[Part]:
        """Cut all splits into parts."""
        return [
            Part(split, first, min(first + rows_per_part, len(rows)))
            for split, rows in self.splits.items()
            for first in range(0, len(rows), rows_per_part)
        ]


class StoredImages(torch.utils.data.Dataset):
    """The model's inputs for each image, by split and row; for a broken image the reason, a string."""

    def __init__(
        self,
        rows: ImageRows,
        processor: CnnRnnProcessor,
        prompt: str = "",
        regions: Mapping[str, RegionFeatures] | None = None,
    ):
        self.column, self.files = rows.column, rows.files
        self.images = {split: split_rows.select_columns([self.column]) for split, split_rows in rows.splits.items()}
        for split, images in self.images.items():
            if isinstance(images.features[self.column], datasets.Image):
                self.images[split] = images.cast_column(self.column, datasets.Image(decode=False))
        self.processor: Any = processor  # transformers types no option of a call
        self.prompt, self.regions = prompt or None, regions

    def __getitem__(self, place: tuple[str, int]) -> dict[str, torch.Tensor] | str:
        split, row = place
        try:
            if self.regions is not None:
                prompt = dict(self.processor(text=self.prompt, return_tensors="pt")) if self.prompt else {}
                return {"image_features": torch.from_numpy(self.regions[split][row].copy()), **prompt}
            cell = self.images[split][row][self.column]
            image = load_stored_image(self.files[split].resolve(cell))
            return dict(self.processor(images=image, text=self.prompt, return_tensors="pt"))
        except (OSError, ValueError) as error:
            return " ".join(str(error).split())


def collate(examples: list[dict[str, torch.Tensor] | str]) -> tuple[dict[str, torch.Tensor], list[str | None]]:
    """Join the readable images into one batch; the second list has the error of each row, or `None`."""
    read = [example for example in examples if isinstance(example, dict)]
    inputs: dict[str, torch.Tensor] = {}
    if read and "image_features" in read[0]:
        inputs = pad_regions([example.pop("image_features") for example in read])
    inputs |= {name: torch.cat([example[name] for example in read]) for name in (read[0] if read else ())}
    return inputs, [example if isinstance(example, str) else None for example in examples]


def load_image_rows(args: CaptionDatasetArguments, num_return_sequences: int = 1) -> ImageRows:
    """
    Load the dataset that the options name, and find its images.

    Raises:
        ValueError: the dataset cannot be read, an option does not fit its columns, or it has captions of an earlier run.
    """
    splits, files = _load_splits(args)
    some_rows = next(iter(splits.values()))
    features = some_rows.features
    # captions are not read, so any columns will do
    columns = CaptionColumns.infer(
        features, args.image_column, caption_column="*", names_image=partial(names_image, some_rows)
    )
    folders = {split_files.folder for split_files in files.values()}
    if not columns.embedded and not all(folder is not None and os.path.isdir(folder) for folder in folders):
        raise ValueError(
            f"`{columns.image}` only names the images, and `image_dir` is {args.image_dir!r}: pass their folder."
        )
    kept = list(features) if args.keep_columns is None else args.keep_columns
    if unknown := [name for name in kept if name not in features]:
        raise ValueError(f"`keep_columns` names {listed(unknown)}, but the columns are {listed(features)}.")
    written = features_of_captions(num_return_sequences)
    if twice := [name for name in kept if name in written]:
        rest = " ".join(name for name in kept if name not in twice)
        raise ValueError(f"The dataset has {listed(twice)} already: leave it out with --keep_columns {rest}")
    return ImageRows(splits, columns.image, files, kept, columns.image_id)


def open_regions(rows: ImageRows, captioner: ImageToTextPipeline, path: str | None) -> dict[str, RegionFeatures] | None:
    """
    Open the features of the regions of the images of each split, if the captioner reads those of a detector.

    Args:
        path: as in [`~modeling_cnnrnn.data.region_features.load_region_features`]; by default the column `image_features`.

    Raises:
        ValueError: there are none, or the captioner reads images.
    """
    feature_size = getattr(captioner.model.config, "feature_size", None)
    found: dict[str, Any] = {}
    for split, split_rows in rows.splits.items():
        if feature_size is not None:
            found[split] = (
                load_region_features(path, rows.image_ids(split))
                if path is not None
                else open_region_features(split_rows, None)
            )
        check_reader(feature_size, path, found.get(split))
    return found or None


def _load_splits(args: CaptionDatasetArguments) -> tuple[dict[str, datasets.Dataset], dict[str, ImageFiles]]:
    splits: dict[str, datasets.Dataset] = {}
    files: dict[str, ImageFiles] = {}
    for name in split_names(args.dataset_name):
        try:
            found = read_splits(name, args.dataset_config_name, args.dataset_revision, args.data_dir)
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"The dataset `{name}` cannot be used: {reason}") from error
        if twice := splits.keys() & found.keys():
            raise ValueError(f"Several of `{args.dataset_name}` have the split `{min(twice)}`: name one of them only.")
        splits |= found
        files |= dict.fromkeys(found, files_of_dataset(name, args.data_dir, args.image_dir))
    if args.split is not None:
        if args.split not in splits:
            raise ValueError(f"`split` is '{args.split}', but the dataset has the splits {list(splits)}.")
        splits = {args.split: splits[args.split]}
    if args.max_predict_samples is not None:
        splits = {split: rows.select(range(min(len(rows), args.max_predict_samples))) for split, rows in splits.items()}
    splits = {split: rows for split, rows in splits.items() if len(rows)}
    if not splits:
        raise ValueError(f"`dataset_name` is '{args.dataset_name}', which has no rows: pass another dataset.")
    return splits, files


def features_of_captions(num_return_sequences: int) -> datasets.Features:
    """The columns that are added to those of the dataset."""
    text, score = datasets.Value("string"), datasets.Value("float64")
    features = {"generated_text": text, "score": score}
    if num_return_sequences > 1:
        features |= {"generated_texts": datasets.List(text), "scores": datasets.List(score)}
    return datasets.Features(features | {"image_error": text})


def find_missing_parts(
    output_dir: Path,
    rows: ImageRows,
    captioner: ImageToTextPipeline,
    args: CaptionDatasetArguments,
    generation: GenerationArguments,
    accelerator: Accelerator,
) -> list[Part]:
    """
    Prepare the output folder, and list the parts that are not there yet; the same list on every process.

    Raises:
        ValueError: the folder holds something else, or sentences of another run.
    """
    parts = rows.parts(args.rows_per_part)
    missing = [parts]
    if accelerator.is_main_process:
        options = asdict(args) | asdict(generation)
        fingerprints = {split: split_rows._fingerprint for split, split_rows in rows.splits.items()}
        run = {"dataset": fingerprints, "model": fingerprint(captioner)} | {name: options[name] for name in SETTINGS}
        _prepare_folder(output_dir, run, args.overwrite_output_dir)
        missing = [[part for part in parts if not part.path(output_dir).exists()]]
    # one process looks: a part may be written while others still look
    broadcast_object_list(missing)
    return missing[0]


def fingerprint(captioner: ImageToTextPipeline) -> str:
    """Hash a captioner: other weights, another preprocessing or another vocabulary give another value."""
    model: Any = captioner.model
    processor: Any = captioner.processor
    digest = hashlib.sha256()
    configs = [processor.image_processor.to_dict(), processor.tokenizer.get_vocab(), model.generation_config.to_dict()]
    digest.update(json.dumps(configs, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]


def _prepare_folder(output_dir: Path, run: Mapping[str, Any], overwrite: bool) -> None:
    note, data = output_dir / "caption_run.json", output_dir / "data"
    if overwrite and note.exists():
        shutil.rmtree(data, ignore_errors=True)
        note.unlink()
    if note.exists():
        before = json.loads(note.read_text(encoding="utf-8"))
        changed = [name for name, value in run.items() if before.get(name) != value]
        if changed:
            raise ValueError(
                f"`output_dir` holds sentences of another run, which differs in {listed(changed)}: pass another folder, or "
                "remove them with --overwrite_output_dir true."
            )
    elif data.exists():
        raise ValueError(f"`output_dir` is '{output_dir}', which holds other data: pass another folder.")
    else:
        write_json(note, run)


def caption_parts(
    output_dir: Path,
    rows: ImageRows,
    parts: Sequence[Part],
    captioner: ImageToTextPipeline,
    args: CaptionDatasetArguments,
    generation: GenerationArguments,
    accelerator: Accelerator,
    regions: Mapping[str, RegionFeatures] | None = None,
) -> Iterator[int]:
    """
    Caption parts and write them, yielding the number of rows of each batch.

    Args:
        parts: the parts of this process.
        regions: of the images of each split, which are read in place of them, see [`open_regions`].
    """
    places = {part: number for number, part in enumerate(rows.parts(args.rows_per_part))}
    size = args.per_device_eval_batch_size
    batches = [
        [(part.split, row) for row in range(start, min(start + size, part.last))]
        for part in parts
        for start in range(part.first, part.last, size)
    ]
    images = StoredImages(rows, captioner.processor, generation.prompt, regions)  # type: ignore[arg-type]
    sampler: Any = batches
    loader = iter(
        DataLoader(images, batch_sampler=sampler, collate_fn=collate, num_workers=args.dataloader_num_workers)
    )
    features = features_of_captions(generation.num_return_sequences)
    for part in parts:
        set_seed(generation.seed + places[part])
        written: list[dict[str, Any]] = []
        while len(written) < part.last - part.first:
            inputs, errors = next(loader)
            with accelerator.autocast():
                written += _caption_batch(captioner, inputs, errors, generation)
            yield len(errors)
        columns = {name: [row.get(name) for row in written] for name in features}
        old = rows.splits[part.split].select_columns(rows.kept).select(range(part.first, part.last))
        _write_part(part.path(output_dir), old, rows.files[part.split], datasets.Dataset.from_dict(columns, features))


def _caption_batch(
    captioner: ImageToTextPipeline,
    inputs: dict[str, torch.Tensor],
    errors: list[str | None],
    generation: GenerationArguments,
) -> list[dict[str, Any]]:
    """Make a row for each image: its sentences, or its error."""
    records: Iterator[dict[str, Any]] = iter(())
    generate_kwargs = generation.generate_kwargs(captioner.processor.tokenizer)
    if inputs:
        records = iter(captioner.postprocess(captioner.forward(inputs, return_scores=True, **generate_kwargs)))
    rows = []
    for error in errors:
        row: dict[str, Any] = {"generated_text": None, "score": None, "image_error": error}
        if error is None:
            found = [next(records) for _ in range(generate_kwargs["num_return_sequences"])]
            if generation.consensus:
                order = rank_by_consensus([[record["generated_text"] for record in found]])[0]
                found = [found[place] for place in order]
            best, *others = found[: generation.num_return_sequences]
            row |= best
            if others:
                row["generated_texts"] = [record["generated_text"] for record in (best, *others)]
                row["scores"] = [record["score"] for record in (best, *others)]
        rows.append(row)
    return rows


def _write_part(path: Path, rows: datasets.Dataset, files: ImageFiles, written: datasets.Dataset) -> None:
    """Write rows with their sentences and the bytes of their images; a cell whose file may not be read becomes empty."""
    rows = embed_files(rows, files)
    with atomic_path(path) as temporary:
        datasets.concatenate_datasets([rows, written], axis=1).to_parquet(temporary)


def find_broken(output_dir: Path, rows: ImageRows, rows_per_part: int) -> list[dict[str, Any]]:
    """
    List all rows without a sentence, over all processes and restarts, with split, row and reason.

    Raises:
        ValueError: a part is missing.
    """
    parts = rows.parts(rows_per_part)
    if absent := [part for part in parts if not part.path(output_dir).exists()]:
        raise ValueError(
            f"`output_dir` is '{output_dir}', which lacks {len(absent)} parts of other machines: pass a folder that all "
            "of them share."
        )
    broken = []
    for part in parts:
        errors = pyarrow.parquet.read_table(part.path(output_dir), columns=["image_error"])["image_error"]
        for row, reason in enumerate(errors.to_pylist(), part.first):
            if reason is not None:
                broken.append({"split": part.split, "row": row, "reason": reason})
    return broken
