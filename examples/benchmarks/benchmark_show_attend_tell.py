"""
Measures the beam search of `generate()` over 14 x 14 regions beside that of the PyTorch tutorial of Show, Attend and Tell:

    git clone https://github.com/sgrvinod/a-PyTorch-Tutorial-to-Image-Captioning
    python examples/benchmarks/benchmark_show_attend_tell.py --peer_dir a-PyTorch-Tutorial-to-Image-Captioning

Both search over made-up features of one image with made-up weights: "same weights" is the tutorial's decoder as
`cnnrnn convert` takes it over, whose sentences must be the same; "projected" is one of this package's usual form and of the
same sizes, whose attention sees the features projected once and not at every step. All sentences end at the same word. The
tutorial's search runs as it is, on features in place of a photograph, with one division mended for today's PyTorch. Time is
the CPU time of the process on one core, in turns; the ratios are medians over the rounds.
"""

import argparse
import os


os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from modeling_cnnrnn import CnnRnnConfig, CnnRnnForConditionalGeneration
from modeling_cnnrnn.converters.show_attend_tell import convert_decoder


GRID = 14  # regions in a row and in a column
NUM_CHANNELS = 2048  # of a ResNet-101
PAD, BOS, EOS = 0, 1, 2
NEVER = -1e4


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer_dir", type=Path, required=True, help="a clone of the tutorial")
    parser.add_argument("--vocab_size", type=int, default=9500)
    parser.add_argument("--hidden_size", type=int, default=512, help="of the state, the words and the attention")
    parser.add_argument("--max_new_tokens", type=int, default=16)
    parser.add_argument("--num_beams", type=int, nargs="+", default=[3, 5])
    parser.add_argument("--num_rounds", type=int, default=9)
    return parser.parse_args()


def load_peer(folder: Path) -> dict[str, Any]:
    """The tutorial's decoder and search, without the packages that they read photographs with."""
    names: dict[str, Any] = {"torch": torch, "nn": nn, "F": F, "np": np, "device": torch.device("cpu")}
    photograph = np.zeros((2, 2, 3))
    names |= {"imread": lambda path: photograph, "imresize": lambda image, size: image}
    names["transforms"] = SimpleNamespace(Normalize=lambda **kwargs: None, Compose=lambda steps: lambda image: image)
    models, search = (folder.joinpath(name).read_text() for name in ("models.py", "caption.py"))
    exec(models[models.index("class Attention(") :], names)
    search = search[search.index("def caption_image_beam_search") : search.index("def visualize_att")]
    exec(search.replace("top_k_words / vocab_size", "top_k_words // vocab_size"), names)
    return names


class EndingVocabulary(nn.Module):
    """The product with the vocabulary, by which every sentence ends with its last word and none before."""

    def __init__(self, linear: nn.Linear, num_words: int):
        super().__init__()
        self.linear, self.num_words, self.num_calls = linear, num_words, 0

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        self.num_calls += 1
        logits = self.linear(hidden)
        logits[:, EOS] = -NEVER if self.num_calls % self.num_words == 0 else NEVER
        return logits


def make_captioner(args, decoder: nn.Module | None) -> CnnRnnForConditionalGeneration:
    """A captioner of this package, with the weights of the tutorial's `decoder` if one is given."""
    options: dict[str, Any] = {"image_injection": "initial_state", "attention_type": "additive"}
    if decoder is not None:
        options |= {"feature_projection": "none", "region_size": NUM_CHANNELS, "attention_gate": "vector"}
        options |= {"attention_activation": "relu", "initial_state_activation": "linear"}
    config = CnnRnnConfig(
        encoder=None,
        feature_size=NUM_CHANNELS,
        vocab_size=args.vocab_size,
        hidden_size=args.hidden_size,
        embedding_size=args.hidden_size,
        attention_size=args.hidden_size,
        **options,
    )
    model = CnnRnnForConditionalGeneration(config).eval()
    if decoder is not None:
        weights = decoder.state_dict()
        model.model.decoder.load_state_dict(
            convert_decoder(weights) | {"embed_tokens.weight": weights["embedding.weight"]}
        )
        model.lm_head.load_state_dict({kind: weights[f"fc.{kind}"] for kind in ("weight", "bias")})
    model.lm_head.bias[EOS] = NEVER
    model.generation_config.forced_eos_token_id = EOS
    model.generation_config.suppress_tokens = None  # the tutorial writes every word
    return model


def measure(ways: dict[str, Callable], num_rounds: int) -> dict[str, list[float]]:
    """CPU milliseconds of each way, which take turns; two rounds warm up."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(num_rounds + 2):
        for name, way in ways.items():
            start = time.process_time()
            way()
            times[name].append(1e3 * (time.process_time() - start))
    return {name: values[2:] for name, values in times.items()}


@torch.no_grad()
def main():
    args = parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    peer = load_peer(args.peer_dir)
    sizes = (args.hidden_size, args.hidden_size, args.hidden_size, args.vocab_size, NUM_CHANNELS)
    decoder = peer["DecoderWithAttention"](*sizes).eval()
    models = {"same weights": make_captioner(args, decoder), "projected": make_captioner(args, None)}
    features = torch.randn(1, GRID * GRID, NUM_CHANNELS).relu()
    grid = features.unflatten(1, (GRID, GRID))
    word_map = {f"<{number}>": number for number in range(args.vocab_size)}
    del word_map[f"<{BOS}>"], word_map[f"<{EOS}>"]
    word_map |= {"<start>": BOS, "<end>": EOS}
    decoder.fc = EndingVocabulary(decoder.fc, args.max_new_tokens)

    print("| beams | captioner | ms a sentence | transformers' loop | the tutorial |")
    print("| --- | --- | --- | --- | --- |")
    for num_beams in args.num_beams:
        options = {"image_features": features, "num_beams": num_beams, "max_new_tokens": args.max_new_tokens}
        options["length_penalty"] = 0.0  # as in the tutorial

        def search_of_tutorial(num_beams=num_beams) -> list[int]:
            return peer["caption_image_beam_search"](lambda image: grid, decoder, None, word_map, num_beams)[0]

        ways: dict[str, Callable] = {"the tutorial": search_of_tutorial}
        for name, model in models.items():
            ways[name] = lambda model=model, options=options: model.generate(**options)
            # a limit of time is left to the loop of transformers
            ways[f"{name}, transformers"] = lambda model=model, options=options: model.generate(**options, max_time=1e9)
        if ways["same weights"]()[0].tolist() != search_of_tutorial():
            raise RuntimeError("The tutorial writes another sentence than `generate()`: they should be the same.")
        times = measure(ways, args.num_rounds)
        for name in models:
            row = f"| {num_beams} | {name} | {statistics.median(times[name]):.1f} |"
            for other in (f"{name}, transformers", "the tutorial"):
                row += f" {statistics.median(b / a for a, b in zip(times[name], times[other], strict=True)):.1f}x |"
            print(row, flush=True)


if __name__ == "__main__":
    main()
