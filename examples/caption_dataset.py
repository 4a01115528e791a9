"""
Write a sentence about each image of a dataset: of the Hub, a folder, any that train_captioner.py takes, with or without
captions of its own.

    python examples/caption_dataset.py --model_name_or_path outputs/shapes --dataset_name user/photographs \
        --output_dir outputs/captioned

On several GPUs `accelerate launch --multi_gpu examples/caption_dataset.py ...`, on several processes of a CPU `torchrun
--nproc_per_node 2 examples/caption_dataset.py ...`: the same rows in the same order. What was stopped, or killed, goes on
with the same command, on any number of processes. `--push_to_hub --hub_dataset_id user/name` pushes what was written.

The output folder is a dataset, `datasets.load_dataset("outputs/captioned")`, with the columns of the old one and
`generated_text`; `score`, its log-probability; `image_error`, why there is no sentence; and with `--num_return_sequences`
above 1 `generated_texts` and `scores`, best first.
"""

import hashlib
import json
import logging
import os
import shutil
import sys
import time
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import pyarrow.compute
import pyarrow.parquet
import torch
import transformers
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.utils import broadcast_object_list, set_seed
from datasets.table import InMemoryTable, embed_table_storage
from huggingface_hub import DatasetCardData, HfApi, get_token
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from modeling_cnnrnn import CnnRnnForConditionalGeneration, CnnRnnProcessor, ImageToTextPipeline
from modeling_cnnrnn.cli.arguments import parse_arguments
from modeling_cnnrnn.cli.errors import user_errors
from modeling_cnnrnn.data.batching import load_stored_image
from modeling_cnnrnn.data.columns import CaptionColumns, listed
from modeling_cnnrnn.data.sources import ImageFiles, local_folder, read_splits, split_names
from modeling_cnnrnn.evaluation.provenance import provenance
from modeling_cnnrnn.files import atomic_path, write_json, write_text


logger = logging.getLogger("caption_dataset")


@dataclass
class CaptionDatasetArguments:
    model_name_or_path: str = field(metadata={"help": "A captioner, of the Hub or a folder."})
    dataset_name: str = field(metadata={"help": "As in train_captioner.py, with the options below."})
    model_revision: str = "main"
    dataset_config_name: str | None = None
    dataset_revision: str | None = None
    data_dir: str | None = None
    image_dir: str | None = field(default=None, metadata={"help": "Where the images are, if the rows only name them."})
    image_column: str | None = field(default=None, metadata={"help": "Guessed if not given."})
    split: str | None = field(default=None, metadata={"help": "By default all of them."})
    max_predict_samples: int | None = field(default=None, metadata={"help": "So many rows of each split."})
    keep_columns: list[str] | None = field(
        default=None, metadata={"help": "Columns of the dataset to write beside the sentences; by default all."}
    )
    output_dir: str = "outputs/captioned"
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Remove the sentences that are there."})
    rows_per_part: int = field(
        default=256,
        metadata={"help": "Rows of a Parquet file, which a process writes whole: a kill loses one at most."},
    )
    per_device_eval_batch_size: int = 16
    dataloader_num_workers: int = 0
    num_beams: int = 3
    num_return_sequences: int = field(default=1, metadata={"help": "Sentences for each image, best first."})
    max_new_tokens: int = 24
    do_sample: bool = field(default=False, metadata={"help": "Sample instead of searching for the best sentence."})
    temperature: float = 1.0
    top_p: float = 1.0
    prompt: str = field(default="", metadata={"help": "How each sentence begins, such as 'a photo of'."})
    mixed_precision: str = field(default="no", metadata={"help": "no, bf16 or fp16."})
    seed: int = 42
    push_to_hub: bool = False
    hub_dataset_id: str | None = field(
        default=None, metadata={"help": "user/name; by default the output folder's name."}
    )
    hub_private_repo: bool | None = None
    hub_revision: str | None = field(default=None, metadata={"help": "Branch to push to."})


# what makes other sentences or other files of them; a smaller batch after running out of memory does not
SETTINGS = (
    *("image_dir", "image_column", "keep_columns", "rows_per_part", "num_beams", "num_return_sequences"),
    *("max_new_tokens", "do_sample", "temperature", "top_p", "prompt", "mixed_precision", "seed"),
)


class Part(NamedTuple):
    """Rows `first` to `last - 1` of a split, which are written into one file."""

    split: str
    first: int
    last: int

    def path(self, output_dir: Path) -> Path:
        return output_dir / "data" / self.split / f"part-{self.first:09d}-{self.last - 1:09d}.parquet"


class StoredImages(torch.utils.data.Dataset):
    """What the model reads of each image, by split and row; of a broken image the reason, a string."""

    def __init__(
        self,
        splits: dict[str, datasets.Dataset],
        columns: CaptionColumns,
        files: ImageFiles | None,
        processor: CnnRnnProcessor,
        prompt: str,
    ):
        self.images = {split: rows.select_columns([columns.image]) for split, rows in splits.items()}
        self.column = columns.image
        for split, rows in self.images.items():
            if isinstance(rows.features[columns.image], datasets.Image):
                self.images[split] = rows.cast_column(columns.image, datasets.Image(decode=False))
        self.files = files
        self.processor = processor
        self.prompt = prompt or None

    def __getitem__(self, place: tuple[str, int]) -> dict[str, torch.Tensor] | str:
        split, row = place
        cell = self.images[split][row][self.column]
        try:
            if self.files is not None and cell is not None:
                name, cell = cell, self.files.find(str(cell))
                if cell is None:
                    raise FileNotFoundError(f"`{name}` is not found in `{self.files.folder}`.")
            if cell is None or (isinstance(cell, dict) and not (cell["bytes"] or cell["path"])):
                raise ValueError("the row has no image.")
            image = load_stored_image(cell)
            return dict(self.processor(images=image, text=self.prompt, return_tensors="pt"))
        except (OSError, ValueError) as error:
            return " ".join(str(error).split())


def collate(examples: list[dict[str, torch.Tensor] | str]) -> tuple[dict[str, torch.Tensor], list[str | None]]:
    """The images that can be read, as one batch, and of each row the reason why it cannot be, or `None`."""
    read = [example for example in examples if isinstance(example, dict)]
    inputs = {name: torch.cat([example[name] for example in read]) for name in read[0]} if read else {}
    return inputs, [example if isinstance(example, str) else None for example in examples]


def main():
    (args,) = parse_arguments([CaptionDatasetArguments], __doc__)
    logging.basicConfig(format="%(message)s")
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),  # or several processes would not find each other on a CPU
        mixed_precision=args.mixed_precision,
        # processes wait for the first to have read the dataset, and at the end for the slowest
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=1))],
    )
    for name in ("caption_dataset", "modeling_cnnrnn"):
        logging.getLogger(name).setLevel(logging.INFO if accelerator.is_main_process else logging.ERROR)
    transformers.logging.disable_progress_bar()  # of weights, which are read in no time
    if not accelerator.is_main_process:
        datasets.disable_progress_bars()
    if args.push_to_hub and get_token() is None:
        raise ValueError("`push_to_hub` needs a token of the Hub: run `hf auth login`, or set HF_TOKEN.")
    for name in ("rows_per_part", "per_device_eval_batch_size", "num_return_sequences"):
        if getattr(args, name) < 1:
            raise ValueError(f"`{name}` is {getattr(args, name)}: pass 1 or more.")
    output_dir = Path(args.output_dir)

    # 1. The rows as they are, and which of their columns is the image
    with accelerator.main_process_first():
        splits = load_rows(args)
    features = next(iter(splits.values())).features
    # any columns will do for captions, which are not read
    columns = CaptionColumns.infer(features, args.image_column, caption_column="*")
    files = None
    if not columns.embedded:
        folder = args.image_dir or local_folder(split_names(args.dataset_name)[0], args.data_dir)
        if folder is None or not os.path.isdir(folder):
            raise ValueError(
                f"`{columns.image}` only names the images, and `image_dir` is {args.image_dir!r}: pass their folder."
            )
        files = ImageFiles(folder)
    kept = list(features) if args.keep_columns is None else args.keep_columns
    if unknown := [name for name in kept if name not in features]:
        raise ValueError(f"`keep_columns` names {listed(unknown)}, but the columns are {listed(features)}.")
    written_features = features_of_captions(args.num_return_sequences)
    if twice := [name for name in kept if name in written_features]:
        rest = " ".join(name for name in kept if name not in twice)
        raise ValueError(f"The dataset has {listed(twice)} already: leave it out with --keep_columns {rest}")
    sizes = ", ".join(f"{split} ({len(rows)} rows)" for split, rows in splits.items())
    logger.info("%s: images from `%s`; %s.", args.dataset_name, columns.image, sizes)

    # 2. The captioner
    processor = CnnRnnProcessor.from_pretrained(args.model_name_or_path, revision=args.model_revision)
    model = CnnRnnForConditionalGeneration.from_pretrained(
        args.model_name_or_path, revision=args.model_revision, dtype=torch.float32
    ).eval()
    captioner = ImageToTextPipeline(model, processor, device=accelerator.device)
    decoding = {"max_new_tokens": args.max_new_tokens, "num_return_sequences": args.num_return_sequences}
    if args.do_sample:
        decoding |= {"do_sample": True, "temperature": args.temperature, "top_p": args.top_p, "top_k": 0}
    else:
        decoding |= {"num_beams": max(args.num_beams, args.num_return_sequences)}

    # 3. The parts that are not there yet, those of each process
    parts = [
        Part(split, first, min(first + args.rows_per_part, len(rows)))
        for split, rows in splits.items()
        for first in range(0, len(rows), args.rows_per_part)
    ]
    missing = [parts]
    if accelerator.is_main_process:
        settings = {name: getattr(args, name) for name in SETTINGS}
        fingerprints = {split: rows._fingerprint for split, rows in splits.items()}
        run = {"dataset": fingerprints, "model": model_fingerprint(model, processor)} | settings
        prepare_folder(output_dir, run, args)
        missing = [[part for part in parts if not part.path(output_dir).exists()]]
        if done := len(parts) - len(missing[0]):
            logger.info("%d of %d parts are there already.", done, len(parts))
    # one process looks: a part may be written while others still look
    (missing,) = broadcast_object_list(missing)
    mine = missing[accelerator.process_index :: accelerator.num_processes]

    # 4. Sentences, batch by batch. A batch never reaches into another part, so that no row depends on who writes it
    batches = [
        [(part.split, row) for row in range(start, min(start + args.per_device_eval_batch_size, part.last))]
        for part in mine
        for start in range(part.first, part.last, args.per_device_eval_batch_size)
    ]
    images = StoredImages(splits, columns, files, processor, args.prompt)
    loader = iter(
        DataLoader(images, batch_sampler=batches, collate_fn=collate, num_workers=args.dataloader_num_workers)
    )
    share = f", process 1 of {accelerator.num_processes}" if accelerator.num_processes > 1 else ""
    started = time.perf_counter()
    bar = tqdm(
        desc=f"Captions{share}",
        total=sum(part.last - part.first for part in mine),
        unit="image",
        disable=not accelerator.is_main_process,
    )
    datasets.disable_progress_bars()  # of the small files from here on
    for part in mine:
        set_seed(args.seed + parts.index(part))  # what is drawn depends on the part alone
        written: list[dict[str, Any]] = []
        while len(written) < part.last - part.first:
            inputs, errors = next(loader)
            with accelerator.autocast():
                written += write_captions(captioner, inputs, errors, decoding)
            bar.update(len(errors))
        rows = splits[part.split].select_columns(kept).select(range(part.first, part.last))
        new_columns = {name: [row.get(name) for row in written] for name in written_features}
        write_part(part.path(output_dir), rows, datasets.Dataset.from_dict(new_columns, written_features))
    bar.close()
    accelerator.wait_for_everyone()
    if not accelerator.is_main_process:
        return

    # 5. The whole: a card that names the splits, what could not be read, the Hub
    if absent := [part for part in parts if not part.path(output_dir).exists()]:
        raise ValueError(
            f"`output_dir` is '{output_dir}', which lacks {len(absent)} parts of other machines: pass a folder that all "
            "of them share."
        )
    seconds = time.perf_counter() - started
    if missing:
        num_rows = sum(part.last - part.first for part in missing)
        logger.info("%d rows in %.0f s, %.1f images per second.", num_rows, seconds, num_rows / seconds)
    broken = find_broken(parts, output_dir)
    write_json(
        output_dir / "caption_results.json",
        {"num_rows": {split: len(rows) for split, rows in splits.items()}, "broken_images": broken}
        | {"arguments": asdict(args), **provenance(accelerator)},
    )
    text = card_text(args, written_features)
    save_card(output_dir, splits, text)
    if broken:
        logger.warning("%d images could not be read; their rows have no sentence:", len(broken))
        for row in broken:
            logger.warning("    %s, row %d: %s", row["split"], row["row"], row["reason"])
    logger.info('The sentences are in %s: datasets.load_dataset("%s")', output_dir, output_dir)
    if args.push_to_hub:
        logger.info("Pushed: %s", push(output_dir, args, text))


def load_rows(args: CaptionDatasetArguments) -> dict[str, datasets.Dataset]:
    """The splits to be written about, with the columns that they have."""
    splits: dict[str, datasets.Dataset] = {}
    for name in split_names(args.dataset_name):
        try:
            found = read_splits(name, args.dataset_config_name, args.dataset_revision, args.data_dir)
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"The dataset `{name}` cannot be used: {reason}") from error
        if twice := splits.keys() & found.keys():
            raise ValueError(f"Several of `{args.dataset_name}` have the split `{min(twice)}`: name one of them only.")
        splits |= found
    if args.split is not None:
        if args.split not in splits:
            raise ValueError(f"`split` is '{args.split}', but the dataset has the splits {list(splits)}.")
        splits = {args.split: splits[args.split]}
    if args.max_predict_samples is not None:
        splits = {split: rows.select(range(min(len(rows), args.max_predict_samples))) for split, rows in splits.items()}
    splits = {split: rows for split, rows in splits.items() if len(rows)}
    if not splits:
        raise ValueError(f"`dataset_name` is '{args.dataset_name}', in which there is no row.")
    return splits


def features_of_captions(num_return_sequences: int) -> datasets.Features:
    """The columns that are added to those of the dataset."""
    text, score = datasets.Value("string"), datasets.Value("float64")
    features = {"generated_text": text, "score": score}
    if num_return_sequences > 1:
        features |= {"generated_texts": datasets.List(text), "scores": datasets.List(score)}
    return datasets.Features(features | {"image_error": text})


def model_fingerprint(model: CnnRnnForConditionalGeneration, processor: CnnRnnProcessor) -> str:
    """Another one for other weights, another preprocessing or another vocabulary."""
    digest = hashlib.sha256()
    configs = [processor.image_processor.to_dict(), processor.tokenizer.get_vocab(), model.generation_config.to_dict()]
    digest.update(json.dumps(configs, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]


def prepare_folder(output_dir: Path, run: dict[str, Any], args: CaptionDatasetArguments) -> None:
    """Make the output folder, or make sure that what is in it is of the same run."""
    note, data = output_dir / "caption_run.json", output_dir / "data"
    if args.overwrite_output_dir and note.exists():
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
        output_dir.mkdir(parents=True, exist_ok=True)
        write_json(note, run)


def write_captions(
    captioner: ImageToTextPipeline, inputs: dict[str, torch.Tensor], errors: list[str | None], decoding: dict[str, Any]
) -> list[dict[str, Any]]:
    """A row for each image: the sentences of those that could be read, and the reasons of the others."""
    records = iter(())
    if inputs:
        records = iter(captioner.postprocess(captioner.forward(inputs, return_scores=True, **decoding)))
    rows = []
    for error in errors:
        row: dict[str, Any] = {"generated_text": None, "score": None, "image_error": error}
        if error is None:
            best, *others = [next(records) for _ in range(decoding["num_return_sequences"])]
            row |= best
            if others:
                row["generated_texts"] = [record["generated_text"] for record in (best, *others)]
                row["scores"] = [record["score"] for record in (best, *others)]
        rows.append(row)
    return rows


def write_part(path: Path, rows: datasets.Dataset, written: datasets.Dataset) -> None:
    """Write rows with their sentences and the bytes of their images, whole or not at all."""
    table = rows.with_format("arrow")[:]
    for index, (name, feature) in enumerate(rows.features.items()):
        if isinstance(feature, datasets.Image):  # of an image whose file is gone, nothing is left to be written
            cells = table[name].to_pylist()
            there = [bool(cell) and (cell["bytes"] is not None or os.path.isfile(cell["path"] or "")) for cell in cells]
            table = table.set_column(
                index, table.field(name), pyarrow.compute.if_else(pyarrow.array(there), table[name], None)
            )
    rows = datasets.Dataset(InMemoryTable(embed_table_storage(table)))
    with atomic_path(path) as partial:
        datasets.concatenate_datasets([rows, written], axis=1).to_parquet(partial)


def find_broken(parts: list[Part], output_dir: Path) -> list[dict[str, Any]]:
    """The rows without a sentence, from all that was written, by whichever process and at whichever start."""
    broken = []
    for part in parts:
        errors = pyarrow.parquet.read_table(part.path(output_dir), columns=["image_error"])["image_error"]
        for row, reason in enumerate(errors.to_pylist(), part.first):
            if reason is not None:
                broken.append({"split": part.split, "row": row, "reason": reason})
    return broken


def card_text(args: CaptionDatasetArguments, features: datasets.Features) -> str:
    # of what lies on this machine, the path is nobody's business
    names = [args.dataset_name, args.model_name_or_path]
    dataset, captioner = (Path(name).name if Path(name).exists() else name for name in names)
    return (
        f"The rows of `{dataset}` with what the captioner `{captioner}` wrote about their images. Added to the dataset are\n"
        f"{listed(features)}: sentences that a model wrote, which nobody has checked; their log-probabilities in nats; and,\n"
        "where an image could not be read, the reason.\n"
    )


def save_card(output_dir: Path, splits: dict[str, datasets.Dataset], text: str) -> None:
    """The README.md from which `load_dataset` knows the splits, whatever their names."""
    data_files = [{"split": split, "path": f"data/{split}/*.parquet"} for split in splits]
    data = DatasetCardData(
        task_categories=["image-to-text"], configs=[{"config_name": "default", "data_files": data_files}]
    )
    write_text(output_dir / "README.md", f"---\n{data.to_yaml()}\n---\n\n{text}")


def push(output_dir: Path, args: CaptionDatasetArguments, text: str) -> str:
    """Push what was written; returns where it can be looked at."""
    api = HfApi()
    url = api.create_repo(
        args.hub_dataset_id or output_dir.name, repo_type="dataset", private=args.hub_private_repo, exist_ok=True
    )
    repository: dict[str, Any] = {"repo_id": url.repo_id, "repo_type": "dataset"}
    if args.hub_private_repo and not api.repo_info(**repository).private:
        raise ValueError(
            f"`hub_private_repo` is True, but '{url.repo_id}' is public: make it private in its settings, or push elsewhere."
        )
    if args.hub_revision is not None:
        api.create_branch(**repository, branch=args.hub_revision, exist_ok=True)
    if not api.file_exists(**repository, filename="README.md", revision=args.hub_revision):
        # `datasets` writes the splits and their columns above it
        api.upload_file(
            **repository, path_or_fileobj=text.encode(), path_in_repo="README.md", revision=args.hub_revision
        )
    commit = datasets.load_dataset(str(output_dir)).push_to_hub(url.repo_id, revision=args.hub_revision)
    return commit.commit_url


if __name__ == "__main__":
    with user_errors(), logging_redirect_tqdm():  # lines of the log go above the bar
        try:
            main()
        except KeyboardInterrupt:
            sys.exit("Stopped. Run the same command again to go on.")
