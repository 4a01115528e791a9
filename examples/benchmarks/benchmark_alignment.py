"""
Measures the scores of images and sentences against a double loop over the pairs, and the chain over words:

    python examples/benchmarks/benchmark_alignment.py

The ways take turns, time is the CPU time of the process, and the medians are compared. Regions and words are made up; sentences
are as long as Flickr8k's: 11 words, 20 at most.
"""

import argparse
import os


os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

import statistics
import time
from collections.abc import Callable, Mapping

import torch
from torch.nn.functional import normalize

from modeling_cnnrnn.models.alignment_cnnrnn import decode_chain
from modeling_cnnrnn.models.similarity_cnnrnn import score_sentences


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_images", type=int, default=32, help="and sentences, each image with each sentence")
    parser.add_argument("--num_regions", type=int, default=26)
    parser.add_argument("--embedding_size", type=int, default=256)
    parser.add_argument("--num_aligned", type=int, default=1000, help="sentences that the chain divides")
    parser.add_argument("--num_aligned_regions", type=int, default=101)
    parser.add_argument("--num_rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def take_turns(functions: Mapping[str, Callable], num_rounds: int) -> dict[str, float]:
    """The median time of each function; the first round warms up and does not count."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(num_rounds + 1):
        for name, function in functions.items():
            start = time.process_time()
            function()
            times[name].append(time.process_time() - start)
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def make_sentences(num_sentences: int, embedding_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Made-up words `(N, T, E)` and where there is one `(N, T)`."""
    lengths = (torch.randn(num_sentences) * 3.5 + 11).round().clamp(3, 20)
    mask = torch.arange(20) < lengths[:, None]
    return normalize(torch.randn(num_sentences, 20, embedding_size), dim=-1) * mask[..., None], mask


def double_loop(regions: torch.Tensor, words: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Equation 8 as it is written, pair by pair."""
    sentences = [its_words[its_mask] for its_words, its_mask in zip(words, mask, strict=True)]
    return torch.stack([torch.stack([(image @ its.T).amax(dim=0).mean() for its in sentences]) for image in regions])


def train_step(score: Callable, regions: torch.Tensor, words: torch.Tensor, mask: torch.Tensor):
    """Scores and the gradients of their sum."""
    leaves = [regions.clone().requires_grad_(), words.clone().requires_grad_()]
    score(*leaves, mask).sum().backward()


def main():
    args = parse_args()
    torch.manual_seed(args.seed)
    regions = normalize(torch.randn(args.num_images, args.num_regions, args.embedding_size), dim=-1)
    words, mask = make_sentences(args.num_images, args.embedding_size)
    torch.testing.assert_close(score_sentences(regions, words, mask), double_loop(regions, words, mask))

    ways = {"double loop": double_loop, "one product": score_sentences}
    print(
        f"{args.num_images} x {args.num_images} scores of {args.num_regions} regions, {torch.get_num_threads()} thread(s)"
    )
    runs = {
        "scores": {name: lambda way=way: way(regions, words, mask) for name, way in ways.items()},
        "scores and gradients": {
            name: lambda way=way: train_step(way, regions, words, mask) for name, way in ways.items()
        },
    }
    for title, functions in runs.items():
        with torch.set_grad_enabled(title != "scores"):
            times = take_turns(functions, args.num_rounds)
        ratio = times["double loop"] / times["one product"]
        print(
            f"{title:24}"
            + "  ".join(f"{name} {1000 * value:.1f} ms" for name, value in times.items())
            + f"  {ratio:.1f}x"
        )

    _, mask = make_sentences(args.num_aligned, 1)
    scores = torch.randn(args.num_aligned, mask.shape[1], args.num_aligned_regions)
    seconds = take_turns({"chain": lambda: decode_chain(scores, 0.2, mask)}, args.num_rounds)["chain"]
    print(f"{'chain':24}{args.num_aligned / seconds:.0f} sentences a second over {args.num_aligned_regions} regions")


if __name__ == "__main__":
    main()
