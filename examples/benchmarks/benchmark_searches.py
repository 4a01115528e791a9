"""
Compares ways to search for a sentence on one dataset: what the captions are worth, how many differ, what they cost.

    python examples/benchmarks/benchmark_searches.py --dataset_name path/to/flickr8k --split validation \
        --model_name_or_path flickr8k-mobilenet --ensemble outputs/first,outputs/second,outputs/third

The CNN runs once for all ways. Milliseconds are CPU time of one thread for a sentence, without the CNN, in batches of
`--per_device_eval_batch_size` images; consensus contains its ranking. A way is scored when it is done, and the table is printed
at the end.
"""

import os


os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate.utils import set_seed

from modeling_cnnrnn.cli.arguments import parse_arguments
from modeling_cnnrnn.cli.errors import user_errors
from modeling_cnnrnn.data.arguments import DatasetArguments
from modeling_cnnrnn.data.batching import CaptionDataset, collate_captions
from modeling_cnnrnn.data.loading import load_split
from modeling_cnnrnn.evaluation.arguments import SearchArguments
from modeling_cnnrnn.evaluation.captioners import load_captioner
from modeling_cnnrnn.evaluation.consensus import rank_by_consensus
from modeling_cnnrnn.files import write_json
from modeling_cnnrnn.metrics import DocumentFrequency, caption_metrics, set_diversity, tokenize_captions


@dataclass
class SearchBenchmarkArguments(DatasetArguments):
    """Dataset and captioners."""

    split: str = field(default="validation", metadata={"help": "Split to caption."})
    frequencies_split: str = field(
        default="train", metadata={"help": "Split whose captions say how frequent n-grams are, for consensus."}
    )
    model_name_or_path: str = field(default="flickr8k-mobilenet", metadata={"help": "Captioner."})
    ensemble: str | None = field(default=None, metadata={"help": "Captioners with commas that write together."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Images at most."})
    per_device_eval_batch_size: int = field(default=10, metadata={"help": "Images in a batch."})
    seed: int = field(default=42, metadata={"help": "Seed of the samples."})
    output: str = field(default="outputs/searches.json", metadata={"help": "File of all numbers."})


BEAMS = {"greedy": {"num_beams": 1}} | {f"beam {k}": {"num_beams": k} for k in (2, 3, 4, 5, 6, 8, 10)}
DIVERSE = {"num_beams": 10, "num_beam_groups": 5, "diversity_penalty": 0.5}
SAMPLES = {"do_sample": True, "top_k": 0, "temperature": 0.5}
SEVERAL = {
    "diverse, 5 groups of 2 beams": {**DIVERSE, "num_return_sequences": 10},
    "10 samples, temperature 0.5": {**SAMPLES, "num_return_sequences": 10},
    "beam 10, all of them": {"num_beams": 10, "num_return_sequences": 10},
}


def main():
    torch.set_num_threads(1)
    (args,) = parse_arguments([SearchBenchmarkArguments], __doc__)
    places = list(filter(None, (args.model_name_or_path, args.ensemble)))
    captioners = [load_captioner(place, dtype=torch.float32) for place in places]  # before minutes of work
    rows = load_split(args, args.split, args.max_eval_samples)
    texts = load_split(args, args.frequencies_split, None)["captions"][:]
    frequencies = DocumentFrequency.from_references([tokenize_captions(captions) for captions in texts])

    results: dict[str, dict[str, float]] = {}
    for place, (model, processor) in zip(places, captioners, strict=True):
        images, encoding = encode(model, processor, rows, args.per_device_eval_batch_size)
        search = Search(model, processor, images, rows["captions"][:], args.seed)
        name = "" if place == args.model_name_or_path else f"{len(model.captioners)} captioners, "
        results[f"{name}CNN"] = {"milliseconds": encoding}
        ways = ways_of(processor.tokenizer) if not name else ENSEMBLE_WAYS
        for way, options in ways.items():
            results[name + way] = search.first(options)
            print(name + way, results[name + way], flush=True)
        for way, options in SEVERAL.items() if not name else ():
            results |= search.several(way, options, frequencies)
        for average in ("log_probabilities",) if name else ():
            model.config.average = average
            results[f"{name}beam 3, {average}"] = search.first(BEAMS["beam 3"])
    write_json(args.output, {"results": results, "images": len(rows), "seed": args.seed})
    print_table(results)


ENSEMBLE_WAYS = {name: BEAMS[name] for name in ("greedy", "beam 3", "beam 5")}


def ways_of(tokenizer: Any) -> dict[str, dict[str, Any]]:
    """The ways that write one sentence."""
    finished = SearchArguments(finish_sentences=True).search_kwargs(3, tokenizer)
    return {
        **BEAMS,
        "beam 3, no bad ending": finished,
        "beam 3, no bigram twice": {"num_beams": 3, "no_repeat_ngram_size": 2},
        "one sample, temperature 1": {**SAMPLES, "temperature": 1.0},
        "one sample, temperature 0.5": SAMPLES,
    }


@torch.inference_mode()
def encode(model: Any, processor: Any, rows: Any, batch_size: int) -> tuple[list[Any], float]:
    """Encode all images, batch by batch; and the milliseconds of an image, its processing included."""
    dataset, images = CaptionDataset(rows, processor, 1), []
    started = time.process_time()
    for start in range(0, len(dataset), batch_size):
        batch = collate_captions([dataset[row] for row in range(start, min(start + batch_size, len(dataset)))])
        images.append(model.get_encoder()(batch["pixel_values"]))
    return images, 1000 * (time.process_time() - started) / len(dataset)


class Search:
    """One captioner, the encoded images, and their references."""

    def __init__(self, model: Any, processor: Any, images: list[Any], references: list[list[str]], seed: int):
        self.model, self.processor, self.images = model, processor, images
        self.references, self.seed = references, seed

    @torch.inference_mode()
    def write(self, options: dict[str, Any]) -> Iterator[tuple[list[list[str]], float]]:
        """Write the sentences of each image of a batch, with the CPU seconds that it takes."""
        options = {"no_repeat_ngram_size": 0, **options}  # a captioner may have it in its generation config
        set_seed(self.seed)
        self.model.generate(encoder_outputs=self.images[0], **options)  # packs the weights
        set_seed(self.seed)
        for encoder_outputs in self.images:
            started = time.process_time()
            sequences = self.model.generate(encoder_outputs=encoder_outputs, **options)
            seconds = time.process_time() - started
            texts = self.processor.batch_decode(sequences, skip_special_tokens=True)
            each = options.get("num_return_sequences", 1)
            yield [texts[start : start + each] for start in range(0, len(texts), each)], seconds

    def score(self, captions: Sequence[str], seconds: float) -> dict[str, float]:
        scores = caption_metrics(dict(enumerate(captions)), dict(enumerate(self.references)), metrics=("bleu", "cider"))
        return {
            "CIDEr": scores["CIDEr"],
            "BLEU-4": scores["BLEU-4"],
            "distinct": len(set(captions)),
            "milliseconds": 1000 * seconds / len(captions),
        }

    def first(self, options: dict[str, Any]) -> dict[str, float]:
        batches = list(self.write(options))
        captions = [of_image[0] for batch, _ in batches for of_image in batch]
        return self.score(captions, sum(seconds for _, seconds in batches))

    def several(self, way: str, options: dict[str, Any], frequencies: DocumentFrequency) -> dict[str, dict[str, float]]:
        """Score the first of several sentences, and those that the others agree with most."""
        batches = list(self.write(options))
        captions, seconds = [of_image for batch, _ in batches for of_image in batch], sum(s for _, s in batches)
        results = {way: self.score([of_image[0] for of_image in captions], seconds) | set_diversity(captions)}
        for name, table in (("equal weights", ()), ("weights of the training set", (frequencies,))):
            started = time.process_time()
            orders = rank_by_consensus(captions, *table)
            total = seconds + time.process_time() - started
            chosen = [of_image[order[0]] for of_image, order in zip(captions, orders, strict=True)]
            results[f"{way}, consensus ({name})"] = self.score(chosen, total)
        for result in results.items():
            print(*result, flush=True)
        return results


def print_table(results: dict[str, dict[str, float]]):
    print("\n| way | CIDEr | BLEU-4 | different sentences | self-CIDEr | ms |\n| --- | --- | --- | --- | --- | --- |")
    for way, numbers in results.items():
        cells = [f"{numbers[name]:.3f}" if name in numbers else "" for name in ("CIDEr", "BLEU-4")]
        cells += [str(numbers.get("distinct", ""))]
        cells += [f"{numbers['self-cider']:.2f}" if "self-cider" in numbers else "", f"{numbers['milliseconds']:.1f}"]
        print(f"| {way} | {' | '.join(cells)} |")


if __name__ == "__main__":
    with user_errors():
        main()
