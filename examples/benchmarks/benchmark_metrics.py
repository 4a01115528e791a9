"""
Measures CIDEr-D against coco-caption's, in one process and on one core:

    pip install "modeling-cnnrnn[java]"
    python examples/benchmark_metrics.py

It needs no Java: the captions are made up, and pycocoevalcap's `Cider` is plain Python. The two take turns, time is the
CPU time of the process, and the medians are compared, so that other work on the machine weighs on both alike.
"""

import argparse
import os


os.environ.setdefault("OMP_NUM_THREADS", "1")  # before NumPy is imported

import random
import statistics
import time

import numpy as np
from pycocoevalcap.cider.cider import Cider

from modeling_cnnrnn.metrics import CiderD, DocumentFrequency
from modeling_cnnrnn.metrics.cider import cider
from modeling_cnnrnn.metrics.ngrams import PairedCaptions


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_images", type=int, default=5000)
    parser.add_argument("--num_references", type=int, default=5)
    parser.add_argument("--num_samples", type=int, default=50, help="captions in a batch of self-critical training")
    parser.add_argument("--num_rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def make_captions(num_images, num_captions, seed):
    """Captions with lengths and word frequencies like COCO's; those of an image share most of their words."""
    rng = random.Random(seed)
    words = [f"word{i}" for i in range(10_000)]
    weights = [1 / (i + 3) for i in range(len(words))]  # Zipf's law
    images = []
    for _ in range(num_images):
        topic = rng.choices(words, weights, k=16)
        captions = []
        for _ in range(num_captions):
            start, length = rng.randrange(4), min(max(round(rng.gauss(10.5, 2.4)), 5), 40)
            caption = (topic * 3)[start : start + length]
            captions.append(
                " ".join(rng.choices(words, weights)[0] if rng.random() < 0.4 else word for word in caption)
            )
        images.append(captions)
    return images


def cpu_time(function):
    start = time.process_time()
    result = function()
    return time.process_time() - start, result


def main():
    args = parse_args()

    # 1. Captions: the first of each image is the prediction
    images = make_captions(args.num_images, args.num_references + 1, args.seed)
    predictions, references = [captions[0] for captions in images], [captions[1:] for captions in images]
    ground_truth, results = dict(enumerate(references)), {i: [caption] for i, caption in enumerate(predictions)}

    # 2. A whole evaluation, both from tokenized strings
    theirs, ours = [], []
    for _ in range(args.num_rounds):
        seconds, (_, expected) = cpu_time(lambda: Cider().compute_score(ground_truth, results))
        theirs.append(seconds)
        seconds, (_, scores) = cpu_time(lambda: cider(PairedCaptions.from_captions(predictions, references)))
        ours.append(seconds)
    ratio = statistics.median(theirs) / statistics.median(ours)
    print(f"{args.num_images} images x {args.num_references} references, {args.num_rounds} rounds, medians of CPU time")
    print(
        f"  pycocoevalcap {statistics.median(theirs):.3f} s, this package {statistics.median(ours):.3f} s: {ratio:.1f}x"
    )
    print(f"  largest difference of an image: {np.abs(scores - expected).max():.1e}")

    # 3. A batch of self-critical training, from token ids and a fixed table
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(" ".join(map(" ".join, images)).split()))}
    ids = [[[vocabulary[word] for word in caption.split()] for caption in captions] for captions in images]
    samples = [captions[0] for captions in ids[: args.num_samples]]
    training = {i: captions[1:] for i, captions in enumerate(ids)}
    cider_d = CiderD(DocumentFrequency.from_references(list(training.values())), training)
    batches = [cpu_time(lambda: cider_d.score(samples, image_ids=range(len(samples)))) for _ in range(40)]
    milliseconds = 1e3 * statistics.median(seconds for seconds, _ in batches)
    difference = np.abs(batches[0][1] - expected[: len(samples)]).max()
    print(f"{len(samples)} samples x {args.num_references} references, table of {args.num_images} images")
    print(f"  {milliseconds:.2f} ms; largest difference from pycocoevalcap: {difference:.1e}")


if __name__ == "__main__":
    main()
