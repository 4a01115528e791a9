"""
Measures how fast `generate()` writes beside transformers' own loops and other people's code, in one process on one core:

    python examples/benchmarks/benchmark_generation.py
    pip install six && python examples/benchmarks/benchmark_generation.py --peer_dir path/to/self-critical.pytorch

The ways take turns, time is the CPU time of the process, and the medians over rounds are compared. All weights and image
features are made up, and no sentence ends before its last token. "smallest" is the least that transformers' `generate`
needs to write with an `nn.LSTM`; self-critical.pytorch's classes search with their own code, and have a fifth gate.
"""

import argparse
import os


os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

import statistics
import sys
import time
from collections.abc import Callable
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel, ResNetConfig
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput

from modeling_cnnrnn import CnnRnnCache, CnnRnnConfig, CnnRnnForConditionalGeneration


NUM_CHANNELS = 2048  # of a ResNet-50
PAD, BOS, EOS = 0, 1, 2
NEVER = -1e4


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab_size", type=int, default=9500)
    parser.add_argument("--hidden_size", type=int, default=512, help="of the state, the words and the attention")
    parser.add_argument("--max_new_tokens", type=int, default=16)
    parser.add_argument("--num_regions", type=int, default=49, help="that the attention looks at")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 10])
    parser.add_argument("--num_beams", type=int, nargs="+", default=[1, 3, 5])
    parser.add_argument("--num_rounds", type=int, default=5)
    parser.add_argument("--peer_dir", help="a clone of ruotianluo/self-critical.pytorch, which needs `pip install six`")
    return parser.parse_args()


def make_model(args, attention_type: str) -> CnnRnnForConditionalGeneration:
    torch.manual_seed(0)
    config = CnnRnnConfig(
        encoder=ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 8, NUM_CHANNELS], depths=[1, 1, 1, 1]),
        vocab_size=args.vocab_size,
        hidden_size=args.hidden_size,
        embedding_size=args.hidden_size,
        attention_size=args.hidden_size,
        attention_type=attention_type,
        image_injection="first_token" if attention_type == "none" else "initial_state",
    )
    model = CnnRnnForConditionalGeneration(config).eval()
    model.lm_head.weight.normal_(0, 0.1)
    model.lm_head.bias[EOS] = NEVER
    return model


class SmallestEncoder(nn.Module):
    main_input_name = "image_features"

    def __init__(self, projection: nn.Linear):
        super().__init__()
        self.projection = projection

    def forward(self, image_features: torch.Tensor, **kwargs) -> BaseModelOutput:
        return BaseModelOutput(last_hidden_state=self.projection(image_features.mean(dim=1, keepdim=True)))


class SmallestCaptioner(PreTrainedModel, GenerationMixin):
    """Show and Tell in as few lines as transformers' `generate` needs, with the weights of a captioner of this package."""

    config_class, main_input_name, _is_stateful = PreTrainedConfig, "image_features", True

    def __init__(self, captioner: CnnRnnForConditionalGeneration):
        ids = {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS, "decoder_start_token_id": BOS}
        super().__init__(PreTrainedConfig(is_encoder_decoder=True, **ids))
        size = captioner.config.hidden_size
        self.encoder = SmallestEncoder(captioner.model.encoder.projection)
        self.embed, self.lm_head = captioner.model.decoder.embed_tokens, captioner.lm_head
        self.lstm = nn.LSTM(size, size, batch_first=True)
        self.post_init()
        self.lstm.load_state_dict(captioner.model.decoder.layers[0].state_dict())
        self.generation_config.suppress_tokens = captioner.generation_config.suppress_tokens

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    def get_encoder(self, *args, **kwargs):
        return self.encoder

    def prepare_inputs_for_generation(self, input_ids, past_key_values=None, encoder_outputs=None, **kwargs):  # type: ignore[override]
        seen = past_key_values.get_seq_length() if past_key_values is not None else 0
        inputs = {"past_key_values": past_key_values, "encoder_outputs": encoder_outputs}
        return {"decoder_input_ids": input_ids[:, seen:], **inputs}

    def forward(
        self, image_features=None, decoder_input_ids=None, past_key_values=None, encoder_outputs=None, **kwargs
    ):
        cache = past_key_values if past_key_values is not None else CnnRnnCache()
        words = self.embed(decoder_input_ids)
        if cache.state is None:
            words = torch.cat([encoder_outputs.last_hidden_state, words], dim=1)
        hidden, state = self.lstm(words, cache.state)
        cache.update(state, decoder_input_ids.shape[1])
        return Seq2SeqLMOutput(logits=self.lm_head(hidden[:, -1:]), past_key_values=cache)


def make_peer(args, attention_type: str) -> nn.Module:
    """A captioner of self-critical.pytorch."""
    if args.peer_dir not in sys.path:
        sys.path.insert(0, args.peer_dir)
    peer = import_module("captioning.models.AttModel")
    sizes = dict.fromkeys(("input_encoding_size", "rnn_size", "att_hid_size"), args.hidden_size)
    lengths = dict.fromkeys(("seq_length", "max_length"), args.max_new_tokens)
    ids = {"bos_idx": BOS, "eos_idx": EOS, "pad_idx": PAD, "unk_idx": None}
    features = dict.fromkeys(("fc_feat_size", "att_feat_size"), NUM_CHANNELS)
    options = {"vocab_size": args.vocab_size - 1, "vocab": {}, "num_layers": 1, "drop_prob_lm": 0.0}
    torch.manual_seed(0)
    kind = peer.NewFCModel if attention_type == "none" else peer.Att2in2Model
    model = kind(SimpleNamespace(**sizes, **lengths, **ids, **features, **options)).eval()
    model.logit.bias[EOS] = NEVER
    return model


def measure(args, attention_type: str, batch_size: int, num_beams: int, models: dict[str, Any]):
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(batch_size, args.num_regions, NUM_CHANNELS, generator=generator).relu()
    options = {"num_beams": num_beams, "max_new_tokens": args.max_new_tokens, "image_features": features}
    ours = models["ours"]

    def search_of_peer():
        peer_options = {"beam_size": num_beams, "sample_method": "greedy", "sample_n": 1}
        models["peer"](features.mean(dim=1), features, None, opt=peer_options, mode="sample")

    ways: dict[str, Callable] = {
        "ours": lambda: ours.generate(**options),
        # a limit of time is left to the loop of transformers
        "transformers' loop": lambda: ours.generate(**options, max_time=1e9),
    }
    if attention_type == "none":
        ways["smallest"] = lambda: models["smallest"].generate(**options)
    sentences = {name: way() for name, way in ways.items()}
    for name, found in sentences.items():
        if not torch.equal(found, sentences["ours"]):
            raise RuntimeError(f"{name} writes other sentences than `generate()`: they should be the same.")
    if args.peer_dir:
        ways["peer"] = search_of_peer

    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(args.num_rounds + 2):
        for name, way in ways.items():
            start = time.process_time()
            way()
            times[name].append(1e3 * (time.process_time() - start) / batch_size)
    kept = {name: values[2:] for name, values in times.items()}  # the first rounds warm up
    row = f"| {attention_type} | {num_beams} | {batch_size} | {statistics.median(kept['ours']):.1f} |"
    for name in ("transformers' loop", "smallest", "peer"):
        ratios = [other / own for other, own in zip(kept.get(name, ()), kept["ours"], strict=False)]
        row += f" {statistics.median(ratios):.1f}x |" if ratios else " |"
    print(row, flush=True)


@torch.no_grad()
def main():
    args = parse_args()
    torch.set_num_threads(1)
    print("| attention | beams | images | ms a sentence | transformers' loop | smallest LSTM | self-critical.pytorch |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for attention_type in ("none", "additive"):
        models: dict[str, Any] = {"ours": make_model(args, attention_type)}
        if attention_type == "none":
            models["smallest"] = SmallestCaptioner(models["ours"]).eval()
        if args.peer_dir:
            models["peer"] = make_peer(args, attention_type)
        for batch_size in args.batch_sizes:
            for num_beams in args.num_beams:
                measure(args, attention_type, batch_size, num_beams, models)


if __name__ == "__main__":
    main()
