"""
Measures a search among many pictures: by one product of all pooled vectors, and by usearch's graph of them.

    pip install "modeling-cnnrnn[search]"
    python examples/benchmarks/benchmark_search.py --num_pictures 100000 --temporary_dir /path/with/two/GB

Vectors are made up: pictures gather in groups that lie in a space of few dimensions, as those of photographs do, and a query
has the words of one picture. Exact and approximate search take turns, times are medians of the CPU time of one thread, and
the share of the exact shortlist and of the exact results that the graph finds is printed beside them.
"""

import argparse
import os


os.environ.setdefault("OMP_NUM_THREADS", "1")  # before NumPy is imported
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from transformers import ResNetConfig

from modeling_cnnrnn import CnnRnnAlignmentConfig, CnnRnnForImageTextRetrieval, CnnRnnProcessor, build_tokenizer
from modeling_cnnrnn.models.modeling_alignment_cnnrnn import CnnRnnWordOutput
from modeling_cnnrnn.retrieval.approximate import update_graph
from modeling_cnnrnn.retrieval.embedding import Query, model_fingerprint
from modeling_cnnrnn.retrieval.index import ImageIndex
from modeling_cnnrnn.retrieval.storage import GRAPH_NAME, Manifest, PictureFile, Shard


SENTENCE = "a black and white dog jumps over a bar in grass"  # eleven words
ROWS_PER_SHARD = 1024


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_pictures", type=int, default=100_000)
    parser.add_argument("--num_regions", type=int, default=26)
    parser.add_argument("--embedding_size", type=int, default=256)
    parser.add_argument("--intrinsic_size", type=int, default=64, help="dimensions in which the pictures differ")
    parser.add_argument("--num_queries", type=int, default=50)
    parser.add_argument("--shortlist_size", type=int, default=200)
    parser.add_argument("--top_k", type=int, default=10)
    parser.add_argument("--temporary_dir", help="folder for the index; 13 KiB a picture with the sizes above")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def make_model(args):
    """A model whose words cost what they cost; no picture passes through its CNN."""
    words = [f"word{i}" for i in range(2500)] + SENTENCE.split()
    tokenizer = build_tokenizer(words, min_frequency=1)
    encoder = ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic")
    config = CnnRnnAlignmentConfig.from_tokenizer(tokenizer, encoder=encoder, embedding_size=args.embedding_size)
    return CnnRnnForImageTextRetrieval(config).eval(), CnnRnnProcessor.from_image_size(32, tokenizer)


class Photographs:
    """Made-up vectors: `count` regions of each picture around its own centre, of length 1."""

    def __init__(self, args):
        self.args, self.rng = args, np.random.default_rng(args.seed)
        self.basis = self.rng.standard_normal((args.intrinsic_size, args.embedding_size)).astype(np.float32)
        self.groups = self.rng.standard_normal((200, args.intrinsic_size)).astype(np.float32)

    def centres(self, count):
        groups = self.groups[self.rng.integers(0, len(self.groups), count)]
        places = groups + self.rng.standard_normal(groups.shape).astype(np.float32)
        return normalize(places @ self.basis)

    def around(self, centres, count):
        shape = (len(centres), count, centres.shape[1])
        noise = self.rng.standard_normal(shape, dtype=np.float32) * np.float32(1.5 / shape[2] ** 0.5)
        return normalize(centres[:, None] + noise)

    def query(self, centre):
        words = torch.from_numpy(self.around(centre[None], len(SENTENCE.split())))
        pooled = torch.nn.functional.normalize(words.mean(dim=1), dim=-1)
        mask = torch.ones(words.shape[:2], dtype=torch.bool)
        return Query(CnnRnnWordOutput(last_hidden_state=words, pooler_output=pooled, word_mask=mask))


def normalize(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def write_index(folder, args, photographs, fingerprint):
    """The index that `cnnrnn index` would write; returns the vectors around which the queries are made."""
    manifest = Manifest("photographs", "", fingerprint, is_complete=True)
    kept = []
    for number, start in enumerate(range(0, args.num_pictures, ROWS_PER_SHARD)):
        centres = photographs.centres(min(ROWS_PER_SHARD, args.num_pictures - start))
        kept.append(centres[: 1 + args.num_queries * ROWS_PER_SHARD // args.num_pictures])
        regions = photographs.around(centres, args.num_regions)
        pooled = normalize(regions.mean(axis=1))
        files = [PictureFile(f"{start + row}.jpg", 1, 1) for row in range(len(centres))]
        name = f"{number:05d}.safetensors"
        Shard(files, regions.astype(np.float16), pooled.astype(np.float16)).save(folder / name)
        manifest.shards[name] = []
    manifest.save(folder)
    return np.concatenate(kept)[: args.num_queries]


def cpu_time(function):
    start = time.process_time()
    result = function()
    return 1e3 * (time.process_time() - start), result


def main():
    args = parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    model, processor = make_model(args)
    photographs = Photographs(args)
    with tempfile.TemporaryDirectory(dir=args.temporary_dir) as temporary:
        # 1. The index
        folder = Path(temporary)
        centres = write_index(folder, args, photographs, model_fingerprint(model, processor))
        opening, index = cpu_time(lambda: ImageIndex(folder, model, processor))
        reading, _ = cpu_time(lambda: index.pictures.pooled)
        shape = f"{args.num_regions} regions of {args.embedding_size} values"
        print(f"{len(index):,} pictures, {shape}, {torch.get_num_threads()} thread; CPU time in ms")
        print(f"  opening the index {opening:.0f}, reading its pooled vectors {reading:.0f}")
        building, _ = cpu_time(lambda: update_graph(folder / GRAPH_NAME, index.pictures.keys, index.pictures.pooled))
        size = (folder / GRAPH_NAME).stat().st_size / 2**20
        print(f"  making the graph {building:.0f}, {size:.0f} MiB")
        index.manifest.has_graph = True

        # 2. A sentence becomes vectors
        embedding = [cpu_time(lambda: index.embed(SENTENCE))[0] for _ in range(20)]
        print(f"  embedding a sentence of {len(SENTENCE.split())} words {statistics.median(embedding):.2f}")

        # 3. Exact and approximate, in turns
        times: dict[str, list[float]] = {"exact": [], "graph": [], "exact shortlist": [], "graph shortlist": []}
        shared_shortlist, shared_results = [], []
        for centre in centres:
            query = photographs.query(centre)
            found, shortlists = {}, {}
            for name, exact in (("exact", True), ("graph", False)):
                taken, shortlists[name] = cpu_time(lambda: index.shortlist(query, args.shortlist_size, exact))  # noqa: B023
                times[f"{name} shortlist"].append(taken)
                taken, found[name] = cpu_time(
                    lambda: index.search_query(query, args.top_k, args.shortlist_size, exact)  # noqa: B023
                )
                times[name].append(taken)
            shared_shortlist.append(len({*shortlists["exact"]} & {*shortlists["graph"]}) / args.shortlist_size)
            shared_results.append(len({*found["exact"]} & {*found["graph"]}) / args.top_k)
        for name in ("exact", "graph"):
            shortlist, whole = (statistics.median(times[key]) for key in (f"{name} shortlist", name))
            print(f"  {name}: shortlist of {args.shortlist_size} {shortlist:.1f}, whole search {whole:.1f}")
        print(
            f"  the graph finds {100 * np.mean(shared_shortlist):.1f} % of the exact shortlist and "
            f"{100 * np.mean(shared_results):.1f} % of the {args.top_k} best"
        )

        # 4. All regions of all pictures
        taken, every = cpu_time(lambda: index.search_query(query, args.top_k, None))
        print(f"  all regions of all pictures {taken:.0f}; ", end="")
        print(f"the shortlist keeps {len({*every} & {*found['exact']})} of the {args.top_k} best of the last query")


if __name__ == "__main__":
    main()
