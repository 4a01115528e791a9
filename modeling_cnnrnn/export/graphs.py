"""
The graphs of a captioner in ONNX: what it computes once for an image, and once for a word.

    encoder.onnx: pixels (1, H, W, 3) of bytes -> regions (1, R, E), keys (1, R, A) with attention, states h and c (L, 1, D)
    decoder.onnx: tokens (N,), h, c (L, N, D), regions, keys -> log_probs (N, V), attention (N, R), next_h, next_c

N sentences about one image. An LSTM has the states h and c, other layers h alone. `position`, the number of words read, is an
input of the decoder if the image enters at the first word only; `image` (1, E), the image as a whole, if it has a projection
of its own.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..models.modeling_cnnrnn import CnnRnnForConditionalGeneration
from ..models.recurrence_cnnrnn import CnnRnnCache


STATE_NAMES = ("h", "c")


class EncoderGraph(nn.Module):
    """From the bytes of an image to all that the decoder reads of it."""

    scale: torch.Tensor
    offset: torch.Tensor

    def __init__(self, model: CnnRnnForConditionalGeneration, scale: torch.Tensor, offset: torch.Tensor, width: int):
        """
        Args:
            model: the captioner.
            scale, offset: of each channel, `(3,)`: `pixel_values` are `scale * byte + offset`.
            width: of the images.
        """
        super().__init__()
        self.encoder, self.decoder = model.get_encoder(), model.model.decoder
        # a row of pixels each: ONNX Runtime takes 20 times as long for three numbers in turn
        self.register_buffer("scale", scale.repeat(width, 1))
        self.register_buffer("offset", offset.repeat(width, 1))

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        pixel_values = (pixels.to(self.scale.dtype) * self.scale + self.offset).permute(0, 3, 1, 2)
        encoded = self.encoder(pixel_values)
        regions, config = encoded.last_hidden_state, self.decoder.config
        image, cache = self.decoder.image_of(regions, encoded.pooler_output, None), CnnRnnCache()
        if config.image_injection == "first_token":  # it reads the image, and no word yet
            nothing = regions.new_zeros(1, 0, config.embedding_size)
            self.decoder(
                inputs_embeds=nothing, encoder_hidden_states=regions, image_embeds=image, past_key_values=cache
            )
        else:
            cache.update(self.decoder._first_state(image), 0)
        keys = (self.decoder.attention.key(regions),) if self.decoder.attention is not None else ()
        return regions, *keys, *([image] if config.image_projection else []), *(cache.state or ())


class DecoderGraph(nn.Module):
    """From the last words of sentences to the log-probabilities of the next."""

    def __init__(self, model: CnnRnnForConditionalGeneration):
        super().__init__()
        self.decoder, self.lm_head = model.model.decoder, model.lm_head
        self.names = _decoder_inputs(model)
        never = torch.zeros(model.config.vocab_size)
        never[model.generation_config.suppress_tokens or []] = -torch.inf
        self.register_buffer("never", never)

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        given = dict(zip(self.names, inputs, strict=True))
        num_words: Any = given.get("position", 1)  # of a graph, a tensor
        cache = CnnRnnCache()
        cache.update(tuple(given[name] for name in STATE_NAMES if name in given), num_words)
        cache.keys = given.get("keys")
        outputs = self.decoder(
            given["tokens"][:, None],
            encoder_hidden_states=given["regions"],
            image_embeds=given.get("image"),
            past_key_values=cache,
            use_cache=True,
            output_attentions=True,
        )
        log_probs = self.lm_head(outputs.last_hidden_state[:, 0]).log_softmax(dim=-1) + self.never
        maps = (outputs.cross_attentions[0][:, 0, 0],) if outputs.cross_attentions else ()
        return log_probs, *maps, *(cache.state or ())


def _state_names(model: CnnRnnForConditionalGeneration) -> tuple[str, ...]:
    return STATE_NAMES[: model.model.decoder.num_states]


def _decoder_inputs(model: CnnRnnForConditionalGeneration) -> tuple[str, ...]:
    optional = {
        "keys": model.model.decoder.attention is not None,
        "image": model.config.image_projection,
        "position": model.config.image_injection == "bias_first_step",
    }
    return ("tokens", *_state_names(model), "regions", *(name for name, is_input in optional.items() if is_input))


@torch.no_grad()
def export_graphs(
    model: CnnRnnForConditionalGeneration,
    image_size: tuple[int, int],
    scale: torch.Tensor,
    offset: torch.Tensor,
    folder: Path,
) -> None:
    """
    Write `encoder.onnx` and `decoder.onnx` of a captioner in float32.

    Args:
        model: the captioner, in float32 and in evaluation mode.
        image_size: height and width of the images.
        scale, offset: as in [`EncoderGraph`].
        folder: an existing folder.
    """
    encoder, decoder = EncoderGraph(model, scale, offset, image_size[1]), DecoderGraph(model)
    states, has_keys = _state_names(model), "keys" in decoder.names
    pixels = torch.zeros(1, *image_size, 3, dtype=torch.uint8)
    names = ["regions", *(name for name in ("keys", "image") if name in decoder.names), *states]
    features = dict(zip(names, encoder(pixels), strict=True))
    _export(encoder, (pixels,), folder / "encoder.onnx", input_names=["pixels"], output_names=names)

    num_beams = 3
    given = {
        name: features[name].repeat(1, num_beams, 1) if name in states else features.get(name) for name in decoder.names
    }
    given["tokens"] = torch.tensor([model.config.decoder_start_token_id] * num_beams)
    if "position" in given:
        given["position"] = torch.tensor(1)
    beams = torch.export.Dim("beams", min=1, max=2**15)
    axes = [{0: beams} if name == "tokens" else {1: beams} if name in states else None for name in decoder.names]
    _export(
        decoder,
        tuple(given.values()),
        folder / "decoder.onnx",
        input_names=list(decoder.names),
        output_names=["log_probs", *["attention"] * has_keys, *(f"next_{name}" for name in states)],
        dynamic_shapes=(tuple(axes),),
    )


def _export(module: nn.Module, inputs: tuple, path: Path, **options) -> None:
    """Write the graph of a module, with its constants folded."""
    import onnxruntime

    with quiet():
        torch.onnx.export(module, inputs, str(path), dynamo=True, external_data=False, verbose=False, **options)
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC  # what any machine computes
    settings.optimized_model_filepath = str(path)
    onnxruntime.InferenceSession(path.read_bytes(), settings, providers=["CPUExecutionProvider"])


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Leave out what exporters and quantizers say to their developers."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
