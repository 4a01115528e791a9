"""
Write a sentence about each of your images: a folder, files or URLs.

    python examples/caption_images.py --model_name_or_path outputs/shapes --images photographs/ --output captions.csv

The sentences are printed, and written with their file names as CSV, JSONL or Parquet, by the ending of `--output`.
Files that cannot be read are named and counted, and the rest is done.
"""

import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
import transformers
from PIL import Image
from tqdm.auto import tqdm
from transformers import set_seed

from modeling_cnnrnn import CnnRnnForConditionalGeneration, CnnRnnProcessor, load_image
from modeling_cnnrnn.cli.arguments import parse_arguments
from modeling_cnnrnn.cli.errors import user_errors
from modeling_cnnrnn.files import atomic_path, write_text


FORMATS = (".csv", ".jsonl", ".parquet")


@dataclass
class CaptionArguments:
    model_name_or_path: str = field(metadata={"help": "A captioner, of the Hub or a folder."})
    images: list[str] = field(metadata={"help": "Folders (with what is below them), files and URLs."})
    output: str | None = field(default=None, metadata={"help": "A .csv, .jsonl or .parquet file."})
    model_revision: str = "main"
    batch_size: int = 16
    num_beams: int = 3
    num_return_sequences: int = field(default=1, metadata={"help": "Sentences for each image, best first."})
    max_new_tokens: int = 24
    do_sample: bool = field(default=False, metadata={"help": "Sample instead of searching for the best sentence."})
    temperature: float = 1.0
    top_p: float = 1.0
    prompt: str = field(default="", metadata={"help": "How each sentence begins, such as 'a photo of'."})
    device: str = field(default="cuda" if torch.cuda.is_available() else "cpu")
    seed: int = 42


def find_images(sources: list[str]) -> list[str]:
    """Files and URLs, and in place of each folder the images below it, in order."""
    endings = set(Image.registered_extensions())
    found: list[str] = []
    for source in sources:
        if source.startswith(("http://", "https://")):
            found.append(source)
        elif os.path.isdir(source):
            inside = sorted(p for p in Path(source).rglob("*") if p.suffix.lower() in endings and p.name[0] != ".")
            if not inside:
                raise ValueError(f"`images` names the folder '{source}', in which there is no image.")
            found += map(str, inside)
        elif os.path.exists(source):
            found.append(source)
        else:
            raise FileNotFoundError(f"`images` names '{source}', which does not exist.")
    return found


def write_table(path: Path, rows: list[dict]) -> None:
    """Write rows whole or not at all, in the format of the file's ending."""
    if path.suffix == ".jsonl":
        write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    else:
        import pandas

        table = pandas.DataFrame(rows)
        with atomic_path(path) as partial:
            table.to_csv(partial, index=False) if path.suffix == ".csv" else table.to_parquet(partial, index=False)


def main():
    (args,) = parse_arguments([CaptionArguments], __doc__)
    transformers.logging.disable_progress_bar()  # of weights, which are read in no time
    set_seed(args.seed)
    output = Path(args.output) if args.output else None
    if output is not None and output.suffix not in FORMATS:
        raise ValueError(f"`output` is '{args.output}': pass a file that ends in {', '.join(FORMATS)}.")

    # 1. The images and the captioner
    sources = find_images(args.images)
    processor = CnnRnnProcessor.from_pretrained(args.model_name_or_path, revision=args.model_revision)
    model = CnnRnnForConditionalGeneration.from_pretrained(args.model_name_or_path, revision=args.model_revision)
    model = model.to(args.device).eval()
    decoding = {"max_new_tokens": args.max_new_tokens, "num_return_sequences": args.num_return_sequences}
    if args.do_sample:
        decoding |= {"do_sample": True, "temperature": args.temperature, "top_p": args.top_p, "top_k": 0}
    else:
        decoding |= {"num_beams": max(args.num_beams, args.num_return_sequences)}

    # 2. Sentences, batch by batch
    rows, unreadable = [], []
    for start in tqdm(range(0, len(sources), args.batch_size), desc="Captions", unit="batch", file=sys.stderr):
        names, images = [], []
        for source in sources[start : start + args.batch_size]:
            try:
                images.append(load_image(source))
                names.append(source)
            except (OSError, ValueError) as error:
                unreadable.append((source, error))
        if not images:
            continue
        inputs = processor(images=images, text=args.prompt or None, return_tensors="pt").to(args.device)
        inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
        sequences = model.generate(**inputs, **decoding)
        texts = processor.batch_decode(sequences, skip_special_tokens=True)
        for index, text in enumerate(texts):
            name = names[index // args.num_return_sequences]
            rows.append({"file_name": name, "caption": text})
            tqdm.write(f"{name}: {text}", file=sys.stdout)

    # 3. What was written, and what could not be read
    if output is not None:
        write_table(output, rows)
        print(f"{len(rows)} captions of {len(sources) - len(unreadable)} images are in {output}")
    if unreadable:
        print(f"{len(unreadable)} of {len(sources)} images could not be read:", file=sys.stderr)
        for source, error in unreadable:
            print(f"    {source}: {error}", file=sys.stderr)
    if not rows:
        raise ValueError("None of the images could be read.")


if __name__ == "__main__":
    with user_errors():
        main()
