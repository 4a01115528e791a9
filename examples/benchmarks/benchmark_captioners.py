"""
Measures the way from a photograph to its sentence at beam 4: the captioner in the box beside transformer captioners.

    pip install '.[export]' && cnnrnn export flickr8k-mobilenet exported
    python examples/benchmarks/benchmark_captioners.py photo.jpg --exported_dir exported

The peers are built by transformers in the published sizes of nlpconnect/vit-gpt2-image-captioning (224 x 224 pixels),
Salesforce/blip-image-captioning-base (384 x 384) and microsoft/git-base (224 x 224). Their weights are random, so nothing is
downloaded, and each is made to write as many tokens as the captioner in the box writes about the photograph: time and memory
are theirs, sentences are not. Each captioner has a process of its own with one thread. They take turns, from the file to the token
ids (of ours to the text); time is CPU time, of which medians are compared; memory is the most that a process has held, with
Python and its libraries.
"""

import argparse
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any


os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported, here and in the processes

import torch
import transformers
from PIL import Image

import modeling_cnnrnn


OURS = "flickr8k-mobilenet"
GPT2_END = 50256


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", help="a photograph")
    parser.add_argument("--exported_dir", help=f"what `cnnrnn export {OURS}` has written")
    parser.add_argument("--num_beams", type=int, default=4)
    parser.add_argument("--num_rounds", type=int, default=7)
    return parser.parse_args()


def make_ours(model: str, image: str, num_beams: int) -> Callable[[], int]:
    """A captioner of this package; it returns how many tokens it has written, the end token among them."""
    captioner: Any = modeling_cnnrnn.pipeline("image-to-text", model=model)
    tokenizer: Any = captioner.tokenizer

    def caption() -> int:
        (written,) = captioner(image, generate_kwargs={"num_beams": num_beams})
        return len(tokenizer(written["generated_text"], add_special_tokens=False).input_ids) + 1

    return caption


def make_peer(name: str, image: str, num_beams: int, num_tokens: int) -> Callable[[], int]:
    torch.manual_seed(0)
    model: Any
    if name == "ViT-GPT2":
        config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
            transformers.ViTConfig(), transformers.GPT2Config(add_cross_attention=True)
        )
        model = transformers.VisionEncoderDecoderModel(config)
        model.generation_config = transformers.GenerationConfig(
            decoder_start_token_id=GPT2_END, pad_token_id=GPT2_END, eos_token_id=GPT2_END
        )
        processor = transformers.ViTImageProcessorPil()
    elif name == "BLIP-base":
        model = transformers.BlipForConditionalGeneration(transformers.BlipConfig())
        processor = transformers.BlipImageProcessorPil()
    else:
        model = transformers.GitForCausalLM(transformers.GitConfig())
        processor = transformers.CLIPImageProcessorPil()
    model.eval()
    options = {"num_beams": num_beams, "min_new_tokens": num_tokens, "max_new_tokens": num_tokens}

    def caption() -> int:
        pixel_values = processor(Image.open(image).convert("RGB"), return_tensors="pt").pixel_values
        model.generate(pixel_values=pixel_values, **options)
        return num_tokens

    return caption


def serve(connection: Connection, make: Callable, *args):
    """Caption whenever asked: send milliseconds of CPU time and tokens, and at the end the peak memory in MB."""
    torch.set_num_threads(1)
    caption = make(*args)
    while connection.recv():
        start = time.process_time()
        num_tokens = caption()
        connection.send((1e3 * (time.process_time() - start), num_tokens))
    # `ru_maxrss` would be that of the process that started this one, if larger
    status = Path("/proc/self/status").read_text().splitlines()
    connection.send(next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024)


class Captioner:
    """A captioner in a process of its own."""

    def __init__(self, make: Callable, *args):
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self.process = context.Process(target=serve, args=(other, make, *args), daemon=True)
        self.process.start()
        self.times: list[float] = []

    def caption(self) -> int:
        self.connection.send(True)
        milliseconds, num_tokens = self.connection.recv()
        self.times.append(milliseconds)
        return num_tokens

    def end(self) -> float:
        """End the process and return its peak memory in MB."""
        self.connection.send(False)
        memory = self.connection.recv()
        self.process.join()
        return memory


def main():
    args = parse_args()
    ours = "eager"
    captioners = {ours: Captioner(make_ours, OURS, args.image, args.num_beams)}
    num_tokens = captioners[ours].caption()
    if args.exported_dir:
        captioners["ONNX"] = Captioner(make_ours, args.exported_dir, args.image, args.num_beams)
    for name in ("ViT-GPT2", "BLIP-base", "GIT-base"):
        captioners[name] = Captioner(make_peer, name, args.image, args.num_beams, num_tokens)
    for captioner in captioners.values():
        captioner.caption()  # warms up
        captioner.times.clear()
    for _ in range(args.num_rounds):
        for captioner in captioners.values():
            if captioner.caption() != num_tokens:
                raise RuntimeError("The captioners write sentences of different lengths: they should be the same.")
    owns = [name for name in (ours, "ONNX") if name in captioners]
    print(f"{num_tokens} tokens at beam {args.num_beams}")
    print(f"| captioner | ms a photograph | MB | {' | '.join(f'times {OURS}, {name}' for name in owns)} |")
    print("| --- " * (3 + len(owns)) + "|")
    for name, captioner in captioners.items():
        ratios = [
            statistics.median(b / a for a, b in zip(captioners[own].times, captioner.times, strict=True))
            for own in owns
        ]
        label = f"{OURS}, {name}" if name in owns else name
        row = f"| {label} | {statistics.median(captioner.times):.0f} | {captioner.end():.0f} |"
        print(row + "".join(f" {ratio:.1f}x |" for ratio in ratios), flush=True)


if __name__ == "__main__":
    main()
