"""
Measures what makes a training fast, each thing against the plain way of doing it, in one process and on one core:

    python examples/benchmark_training.py
    python examples/benchmark_training.py --sections training_step --peer_dir path/to/self-critical.pytorch

The ways take turns, time is the CPU time of the process (wall-clock time where several processes work), and the medians are
compared, so that other work on the machine weighs on all alike. All weights, images and captions are made up; captions
are as long as COCO's: 11.4 tokens with the end, 17 at most.
"""

import argparse
import os


os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from io import BytesIO
from types import SimpleNamespace

import datasets
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader
from transformers import ResNetConfig

from modeling_cnnrnn import CnnRnnConfig, CnnRnnForConditionalGeneration, CnnRnnProcessor, build_tokenizer
from modeling_cnnrnn.data.batching import CaptionDataset, collate_captions
from modeling_cnnrnn.models.loss_cnnrnn import IGNORE_INDEX
from modeling_cnnrnn.training.features import compute_image_features


NUM_REGIONS, NUM_CHANNELS = 49, 2048  # what a ResNet-50 makes of 224 x 224 pixels


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[10, 50], help="in images")
    parser.add_argument("--captions_per_image", type=int, default=5)
    parser.add_argument("--vocab_size", type=int, default=9500)
    parser.add_argument("--hidden_size", type=int, default=512, help="of the state, the words and the attention")
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--num_images", type=int, default=32, help="that are read and looked at")
    parser.add_argument("--num_rounds", type=int, default=5)
    parser.add_argument("--num_workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument(
        "--peer_dir",
        help="a clone of ruotianluo/self-critical.pytorch, to run its own classes as well; it needs `pip install six`",
    )
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def take_turns(
    functions: Mapping[str, Callable], num_rounds: int, clock: Callable = time.process_time
) -> dict[str, float]:
    """The median time of each function; the first round warms up and does not count."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(num_rounds + 1):
        for name, function in functions.items():
            start = clock()
            function()
            times[name].append(clock() - start)
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def make_labels(num_images: int, num_captions: int, vocab_size: int, rng: random.Random) -> torch.Tensor:
    """Made-up captions, `(num_images, num_captions, T)`: words, the end token 2, then padding."""
    rows = [
        [[*rng.choices(range(4, vocab_size), k=min(max(round(rng.gauss(10.4, 2.6)), 5), 16)), 2] for _ in range(num_captions)]
        for _ in range(num_images)
    ]  # fmt: skip
    length = max(len(caption) for captions in rows for caption in captions)
    return torch.tensor(
        [[caption + [IGNORE_INDEX] * (length - len(caption)) for caption in captions] for captions in rows]
    )


def make_model(args, attention_type: str, encoder: ResNetConfig | None = None) -> CnnRnnForConditionalGeneration:
    """A captioner without dropout, so that all ways compute the same; by default with a CNN that only sets the channels."""
    torch.manual_seed(args.seed)
    config = CnnRnnConfig(
        encoder=encoder or ResNetConfig(embedding_size=16, hidden_sizes=[NUM_CHANNELS], depths=[1]),
        vocab_size=args.vocab_size,
        hidden_size=args.hidden_size,
        embedding_size=args.hidden_size,
        attention_size=args.hidden_size,
        attention_type=attention_type,
        image_injection="first_token" if attention_type == "none" else "initial_state",
        dropout=0.0,
    )
    model = CnnRnnForConditionalGeneration(config).train()
    model.freeze_encoder()
    return model


class PerStepCaptioner(nn.Module):
    """
    The plain way: one word at a time through a cell and through the vocabulary, the image copied for each caption.

    It has the weights of a [`CnnRnnForConditionalGeneration`], and makes the same loss.
    """

    def __init__(self, model: CnnRnnForConditionalGeneration):
        super().__init__()
        config, weights = model.config, model.state_dict()
        size = config.hidden_size
        self.has_attention = config.attention_type == "additive"
        self.image = nn.Linear(NUM_CHANNELS, size)
        self.words = nn.Embedding(config.vocab_size, size)
        self.cell = nn.LSTMCell(size * (1 + self.has_attention), size)
        self.vocabulary = nn.Linear(size, config.vocab_size)
        names = {
            "image": "model.encoder.projection",
            "words": "model.decoder.embed_tokens",
            "vocabulary": "lm_head",
        }
        if self.has_attention:
            self.first_state = nn.Linear(size, 2 * size)
            self.key = nn.Linear(size, size, bias=False)
            self.query, self.score, self.gate = (
                nn.Linear(size, size),
                nn.Linear(size, 1, bias=False),
                nn.Linear(size, 1),
            )
            names |= {name: f"model.decoder.attention.{name}" for name in ("key", "query", "score", "gate")}
            names["first_state"] = "model.decoder.initial_state"
        for name, source in names.items():
            part = {key.removeprefix(f"{source}."): w for key, w in weights.items() if key.startswith(f"{source}.")}
            self.get_submodule(name).load_state_dict(part)
        self.cell.load_state_dict({key: weights[f"model.decoder.layers.0.{key}_l0"] for key in self.cell.state_dict()})

    def forward(self, image_features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        repeats = labels.shape[1]
        labels = labels.flatten(0, 1)  # (N, T)
        if self.has_attention:
            regions = self.image(image_features)
            keys = self.key(regions).repeat_interleave(repeats, dim=0)
            regions = regions.repeat_interleave(repeats, dim=0)
            state = torch.tanh(self.first_state(regions.mean(dim=1))).chunk(2, dim=1)
        else:
            image = self.image(image_features.mean(dim=1)).repeat_interleave(repeats, dim=0)
            state = self.cell(image)
        is_token = labels != IGNORE_INDEX
        words = torch.full_like(labels[:, 0], 1)
        loss = torch.zeros(())
        for step in range(labels.shape[1]):
            inputs = self.words(words)
            if self.has_attention:
                scores = self.score(torch.tanh(keys + self.query(state[0])[:, None])).squeeze(-1)
                context = torch.bmm(scores.softmax(dim=1)[:, None], regions).squeeze(1)
                inputs = torch.cat([inputs, torch.sigmoid(self.gate(state[0])) * context], dim=1)
            state = self.cell(inputs, state)
            log_probabilities = F.log_softmax(self.vocabulary(state[0]), dim=1)
            words = labels[:, step].clamp(min=0)
            loss = loss - (log_probabilities.gather(1, words[:, None]).squeeze(1) * is_token[:, step]).sum()
        return loss / is_token.sum()


def make_peer(args, attention_type: str, image_features: torch.Tensor, labels: torch.Tensor) -> Callable:
    """
    A training step of self-critical.pytorch's own classes on the same captions.

    Their cell has a fifth gate and their images a ReLU, so that the loss is another one. Their token 0 is the start, the
    end and the padding.
    """
    if args.peer_dir not in sys.path:
        sys.path.insert(0, args.peer_dir)
    peer = import_module("captioning.models.AttModel")
    options = SimpleNamespace(
        vocab_size=args.vocab_size - 1,
        vocab={},
        input_encoding_size=args.hidden_size,
        rnn_size=args.hidden_size,
        att_hid_size=args.hidden_size,
        num_layers=1,
        drop_prob_lm=0.0,
        seq_length=16,
        fc_feat_size=NUM_CHANNELS,
        att_feat_size=NUM_CHANNELS,
    )
    model = (peer.NewFCModel if attention_type == "none" else peer.Att2in2Model)(options).train()
    targets = labels.flatten(0, 1).clone()
    is_token = (targets != IGNORE_INDEX).float()
    targets[(targets == IGNORE_INDEX) | (targets == 2)] = 0
    inputs = F.pad(targets, (1, -1))
    pooled = image_features.mean(dim=1)

    def step():
        model.zero_grad()
        log_probabilities = model(pooled, image_features, inputs.unflatten(0, labels.shape[:2]))
        loss = -(log_probabilities.gather(2, targets[..., None]).squeeze(2) * is_token).sum() / is_token.sum()
        loss.backward()

    return step


def matrix_products(config: CnnRnnConfig, labels: torch.Tensor) -> Counter:
    """How often a training step needs which product, `(m, k) @ (k, n)` as `(m, k, n)`: no padding, no image twice."""
    size, num_images = config.hidden_size, len(labels)
    rows = [
        int(count) for count in (labels != IGNORE_INDEX).flatten(0, 1).sum(dim=0)
    ]  # captions that go on at each step
    num_tokens = sum(rows)
    has_attention = config.attention_type == "additive"
    products: Counter = Counter()

    def layer(m: int, k: int, n: int, steps: list[int] | None = None, input_gradient: bool = True):
        """A linear layer and its gradients: what must go step by step does, the gradient of the weights is one product."""
        for step in steps or [m]:
            products[step, k, n] += 1
            products[step, n, k] += input_gradient
        products[k, m, n] += 1

    if has_attention:
        num_regions = num_images * NUM_REGIONS
        layer(num_regions, NUM_CHANNELS, size, input_gradient=False)
        layer(num_regions, size, size)  # keys
        layer(num_images, size, 2 * size)  # first state
        layer(num_tokens, size, 4 * size)  # words
        for k, n in ((size, size), (size, 1), (size, 4 * size), (size, 4 * size)):  # queries, gates, contexts, states
            layer(num_tokens, k, n, rows)
        layer(num_tokens * NUM_REGIONS, size, 1)  # scores
        for step in rows:  # contexts from weights, the gradients of both
            per_image = -(-step // num_images)
            for product in ((per_image, NUM_REGIONS, size), (per_image, size, NUM_REGIONS)):
                products[product] += num_images
        products[NUM_REGIONS, num_tokens // num_images, size] += num_images
    else:
        layer(num_images, NUM_CHANNELS, size, input_gradient=False)
        layer(num_images + num_tokens, size, 4 * size)  # the image is the first word
        layer(num_tokens, size, 4 * size, rows)
    layer(num_tokens, size, config.vocab_size)
    return products


def run_products(products: Counter) -> Callable:
    operands = {(m, k, n): (torch.randn(m, k), torch.randn(k, n)) for m, k, n in products}

    def run():
        for shape, count in products.items():
            for _ in range(count):
                torch.mm(*operands[shape])

    return run


def take_step(captioner: nn.Module, labels: torch.Tensor, **inputs: torch.Tensor) -> float:
    """Forward and backward. Returns the loss."""
    captioner.zero_grad()
    loss = captioner(**inputs, labels=labels)
    loss = loss if isinstance(loss, torch.Tensor) else loss.loss
    loss.backward()
    return loss.item()


def training_step(args):
    """A step of the decoder, forward and backward, from stored features"""
    for attention_type in ("none", "additive"):
        model = make_model(args, attention_type)
        plain = PerStepCaptioner(model).train()
        for num_images in args.batch_sizes:
            measure_step(args, model, plain, num_images)


def measure_step(args, model: CnnRnnForConditionalGeneration, plain: PerStepCaptioner, num_images: int):
    attention_type = model.config.attention_type
    labels = make_labels(num_images, args.captions_per_image, args.vocab_size, random.Random(args.seed))
    grids = torch.rand(num_images, NUM_REGIONS, NUM_CHANNELS)
    image_features = grids.mean(dim=1, keepdim=True) if attention_type == "none" else grids

    # 1. Both ways compute the same
    loss = take_step(model, labels, image_features=image_features)
    plain_loss = take_step(plain, labels, image_features=image_features)
    if abs(loss - plain_loss) > 1e-5 * plain_loss:
        raise RuntimeError(f"The loss is {loss} and, of the plain way, {plain_loss}: they should be the same.")

    # 2. The ways, and the matrix products that none can do without
    products = matrix_products(model.config, labels)
    square = torch.randn(1024, 1024)
    ways: dict[str, Callable] = {
        "ours": partial(take_step, model, labels, image_features=image_features),
        "plain": partial(take_step, plain, labels, image_features=image_features),
        "products": run_products(products),
        "square": lambda: [torch.mm(square, square) for _ in range(4)],
    }
    if args.peer_dir:
        ways["peer"] = make_peer(args, attention_type, grids, labels)
    seconds = take_turns(ways, args.num_rounds)

    # 3. Tokens per second, and how far from the floor
    num_tokens = (labels != IGNORE_INDEX).sum().item()
    flops = sum(2 * m * k * n * count for (m, k, n), count in products.items())
    rate = 4 * 2 * 1024**3 / seconds["square"]
    print(
        f"  {num_images} images x {args.captions_per_image} captions, {num_tokens} tokens, attention '{attention_type}': "
        f"{1e3 * seconds['ours']:.0f} ms, {num_tokens / seconds['ours']:.0f} tokens/s"
    )
    print(
        f"    cell by cell: {ratio(seconds, 'plain', 'ours')}, {num_tokens / seconds['plain']:.0f} tokens/s; the losses "
        f"differ by {abs(loss - plain_loss):.0e}"
    )
    if args.peer_dir:
        name = "NewFCModel" if attention_type == "none" else "Att2in2Model"
        print(f"    {name}: {ratio(seconds, 'peer', 'ours')}, {num_tokens / seconds['peer']:.0f} tokens/s")
    print(
        f"    floor: {flops / 1e9:.1f} GFLOP at {rate / 1e9:.0f} GFLOP/s (1024 x 1024) take {1e3 * flops / rate:.0f} ms: "
        f"{seconds['ours'] * rate / flops:.2f}x; these products alone take {1e3 * seconds['products']:.0f} ms: "
        f"{seconds['ours'] / seconds['products']:.2f}x",
        flush=True,
    )


def ratio(seconds: dict[str, float], plain: str, ours: str) -> str:
    return f"{1e3 * seconds[plain]:.1f} ms to {1e3 * seconds[ours]:.1f} ms: {seconds[plain] / seconds[ours]:.2f}x"


def shared_images(args):
    """Captions of one image in one step, against a copy of the image for each caption"""
    num_images, repeats = args.batch_sizes[0], args.captions_per_image
    labels = make_labels(num_images, repeats, args.vocab_size, random.Random(args.seed))
    resnet18 = ResNetConfig(hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], layer_type="basic")
    pixel_values = torch.randn(num_images, 3, args.image_size, args.image_size)
    image_features = torch.rand(num_images, NUM_REGIONS, NUM_CHANNELS)
    for title, model, inputs in (
        ("pixels through a frozen ResNet-18", make_model(args, "none", resnet18), {"pixel_values": pixel_values}),
        ("stored grids with attention", make_model(args, "additive"), {"image_features": image_features}),
    ):
        copies = {name: tensor.repeat_interleave(repeats, dim=0) for name, tensor in inputs.items()}
        ways = {
            "copied": partial(take_step, model, labels.flatten(0, 1), **copies),
            "shared": partial(take_step, model, labels, **inputs),
        }
        seconds = take_turns(ways, max(1, args.num_rounds // 2))
        print(f"  {num_images} images x {repeats} captions, {title}: {ratio(seconds, 'copied', 'shared')}", flush=True)


def bucketing(args):
    """Batches of captions of like length, against batches as they come"""
    for attention_type in ("none", "additive"):
        model = make_model(args, attention_type)
        for captions_per_image in sorted({args.captions_per_image, 1}, reverse=True):
            size = args.batch_sizes[0] * args.captions_per_image // captions_per_image
            labels = make_labels(8 * size, captions_per_image, args.vocab_size, random.Random(args.seed))
            longest = (labels != IGNORE_INDEX).sum(dim=-1).amax(dim=-1)
            image_features = torch.rand(size, 1 if attention_type == "none" else NUM_REGIONS, NUM_CHANNELS)
            orders = {"as they come": torch.arange(len(labels)), "bucketed": longest.argsort()}
            ways = {
                name: partial(take_epoch, model, [labels[rows, :, : longest[rows].max()] for rows in order.split(size)],
                              image_features)
                for name, order in orders.items()
            }  # fmt: skip
            seconds = take_turns(ways, max(1, args.num_rounds // 2))
            print(
                f"  attention '{attention_type}', 8 batches of {size} images x {captions_per_image} captions: "
                f"{ratio(seconds, 'as they come', 'bucketed')}",
                flush=True,
            )


def take_epoch(model: CnnRnnForConditionalGeneration, batches: list[torch.Tensor], image_features: torch.Tensor):
    for labels in batches:
        take_step(model, labels, image_features=image_features)


def make_photographs(num_images: int, width: int, height: int, rng: np.random.Generator) -> datasets.Dataset:
    """JPEGs with as much detail of each size as photographs have (amplitudes fall with the frequency)."""
    frequencies = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequencies[0, 0] = 1
    rows: dict[str, list] = {"image": [], "image_id": [], "captions": []}
    for index in range(num_images):
        noise = np.fft.rfft2(rng.normal(size=(3, height, width))) / frequencies
        pixels = np.fft.irfft2(noise, s=(height, width)).transpose(1, 2, 0)
        pixels = (pixels - pixels.mean()) / pixels.std() * 50 + 120
        content = BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(content, "JPEG", quality=90)
        rows["image"].append({"bytes": content.getvalue(), "path": None})
        rows["image_id"].append(str(index))
        rows["captions"].append(["a picture of nothing"] * 5)
    return datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())


def make_processor(args) -> CnnRnnProcessor:
    tokenizer = build_tokenizer([["a picture of nothing"]], min_frequency=1)
    return CnnRnnProcessor.from_image_size(args.image_size, tokenizer, center_crop=True)


def stored_features(args):
    """Reading what a ResNet-50 saw, against looking again"""
    processor = make_processor(args)
    rows = make_photographs(min(args.num_images, 8), 640, 480, np.random.default_rng(args.seed))
    for attention_type in ("none", "additive"):
        model = make_model(args, attention_type, ResNetConfig()).eval()
        with tempfile.TemporaryDirectory() as folder:
            features, _ = compute_image_features(model, processor, rows, folder, progress=Quiet)
            ways = {
                "look": partial(encode, model.get_encoder(), CaptionDataset(rows, processor)),
                "read": partial(encode, model.get_encoder(), CaptionDataset(rows, processor, image_features=features)),
            }
            seconds = take_turns(ways, args.num_rounds)
        kind = "pooled" if attention_type == "none" else "grids"
        print(f"  {len(rows)} JPEGs of 640 x 480, {kind}: {ratio(seconds, 'look', 'read')}", flush=True)


def read_all(dataset: CaptionDataset) -> dict:
    return collate_captions([dataset[index] for index in range(len(dataset))])


@torch.inference_mode()
def encode(encoder: nn.Module, dataset: CaptionDataset):
    """What the decoder looks at, from the images or from stored features."""
    batch = read_all(dataset)
    encoder(**{name: batch[name] for name in ("pixel_values", "image_features") if name in batch})


class Quiet:
    """A progress bar that shows nothing."""

    def __init__(self, **kwargs):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass

    def update(self, count):
        pass


def draft(args):
    """JPEGs decoded at a part of their size, against whole"""
    processor = make_processor(args)
    for width, height in ((640, 480), (2048, 1536)):
        rows = make_photographs(max(2, args.num_images // 4), width, height, np.random.default_rng(args.seed))
        ways = {name: CaptionDataset(rows, processor, draft=name == "draft") for name in ("plain", "draft")}
        seconds = take_turns({name: partial(read_all, dataset) for name, dataset in ways.items()}, args.num_rounds)
        plain, fast = (read_all(dataset)["pixel_values"] for dataset in ways.values())
        print(
            f"  {len(rows)} JPEGs of {width} x {height} to {args.image_size}: {ratio(seconds, 'plain', 'draft')}; pixels "
            f"differ by {(plain - fast).abs().mean():.3f} of {plain.std():.2f} on average",
            flush=True,
        )


def workers(args):
    """Processes that read, against reading in between (wall-clock time of an epoch, with the start of the processes)"""
    processor = make_processor(args)
    rows = make_photographs(args.num_images, 640, 480, np.random.default_rng(args.seed))
    rows = datasets.concatenate_datasets([rows] * 8)
    features = np.zeros((len(rows), 1, NUM_CHANNELS), np.float16)
    for title, dataset in (
        ("JPEGs of 640 x 480", CaptionDataset(rows, processor)),
        ("stored features, pooled", CaptionDataset(rows, processor, image_features=features)),
    ):
        ways = {f"{count} workers": partial(read_epoch, dataset, count) for count in (0, *args.num_workers)}
        seconds = take_turns(ways, max(1, args.num_rounds // 2), time.perf_counter)
        for count in args.num_workers:
            print(
                f"  {len(rows)} {title}, {count} workers: {ratio(seconds, '0 workers', f'{count} workers')}", flush=True
            )


def read_epoch(dataset: CaptionDataset, num_workers: int):
    for _ in DataLoader(dataset, 16, collate_fn=collate_captions, num_workers=num_workers):
        pass


def optimizer(args):
    """AdamW in one pass over all weights, against torch's default"""
    model = make_model(args, "none")
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    seconds = take_turns(
        {
            "default": torch.optim.AdamW(parameters).step,
            "fused": torch.optim.AdamW(parameters, fused=True).step,
        },
        4 * args.num_rounds,
    )
    count = sum(parameter.numel() for parameter in parameters)
    print(f"  {count / 1e6:.1f} million weights: {ratio(seconds, 'default', 'fused')}")


SECTIONS = {
    function.__name__: function
    for function in (training_step, shared_images, bucketing, stored_features, draft, workers, optimizer)
}


def main():
    args = parse_args()
    torch.set_num_threads(1)
    for name in args.sections:
        print(f"{SECTIONS[name].__doc__}:", flush=True)
        SECTIONS[name](args)


if __name__ == "__main__":
    main()
