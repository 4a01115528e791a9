"""What an index asks of an alignment model: vectors of pictures and of queries, and their scores."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..models.error_messages_cnnrnn import shown
from ..models.modeling_alignment_cnnrnn import CnnRnnForImageTextRetrieval, CnnRnnWordOutput
from ..models.processing_alignment_cnnrnn import CnnRnnAlignmentProcessor
from ..models.region_encoder_cnnrnn import CnnRnnRegionOutput


BANK_TOP_K = 10


@dataclass
class Query:
    """
    An embedded sentence or picture.

    Attributes:
        outputs: its vectors; the regions of a picture are in the place of words.
        unknown_words: words of the sentence that the model does not know.
    """

    outputs: CnnRnnWordOutput
    unknown_words: Sequence[str] = ()

    @property
    def vector(self) -> np.ndarray:
        """The vector of the whole, `(D,)`."""
        return self.outputs.pooler_output[0].float().cpu().numpy()


def load_model(
    place: str, revision: str = "main", device: str | None = None
) -> tuple[CnnRnnForImageTextRetrieval, CnnRnnAlignmentProcessor]:
    """
    Load an alignment model and its processor.

    Args:
        place: a folder, or a repository of the Hub.
        revision: commit, tag or branch.
        device: by default a GPU if there is one.

    Raises:
        CnnRnnLoadingError: it is no alignment model, or a file is missing or damaged.
    """
    processor: Any = CnnRnnAlignmentProcessor.from_pretrained(place, revision=revision)
    model: Any = CnnRnnForImageTextRetrieval.from_pretrained(place, revision=revision, dtype=torch.float32)
    return model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval(), processor


@torch.inference_mode()
def embed_images(model: Any, pixel_values: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """
    Embed pictures.

    Args:
        pixel_values: `(B, num_channels, height, width)`, from the processor.

    Returns:
        Vectors of the regions `(B, R, D)` and of the whole pictures `(B, D)`, float16.

    Raises:
        ValueError: vectors are too large for float16, or not finite.
    """
    outputs = _get_image_features(model, pixel_values)
    arrays = [vectors.float().cpu().numpy() for vectors in (outputs.last_hidden_state, outputs.pooler_output)]
    largest = max(float(np.abs(array).max()) for array in arrays)
    if not largest <= np.finfo(np.float16).max:
        raise ValueError(f"The model makes vectors of {largest:g}, which float16 does not hold: train it further.")
    return arrays[0].astype(np.float16), arrays[1].astype(np.float16)


def _get_image_features(model: Any, pixel_values: torch.Tensor) -> CnnRnnRegionOutput:
    return model.get_image_features(pixel_values=pixel_values.to(model.device, model.dtype), return_dict=True)


@torch.inference_mode()
def embed_text(model: Any, processor: Any, text: str) -> Query:
    """
    Embed a sentence.

    Raises:
        ValueError: it has no word that the model knows.
    """
    tokenizer = processor.tokenizer
    # as the processor reads captions: an "<eos>" that somebody types is a word like any other
    options = {"add_special_tokens": False, "split_special_tokens": True, "return_offsets_mapping": True}
    encoding = tokenizer(text, **options)
    ids = encoding["input_ids"]
    spans = zip(ids, encoding["offset_mapping"], strict=True)
    unknown = [text[start:end] for index, (start, end) in spans if index == tokenizer.unk_token_id]
    if len(unknown) == len(ids):
        raise ValueError(f"`text` is {shown(text)}, which has no word that the model knows: use other words.")
    input_ids = torch.tensor([ids], device=model.device)
    return Query(model.get_text_features(input_ids, return_dict=True), unknown)


@torch.inference_mode()
def embed_image(model: Any, processor: Any, image: Image.Image) -> Query:
    """Embed a picture, to find pictures whose regions are similar to its own."""
    outputs = _get_image_features(model, processor(images=image, return_tensors="pt")["pixel_values"])
    regions = outputs.last_hidden_state
    is_region = torch.ones(regions.shape[:2], dtype=torch.bool, device=regions.device)
    return Query(CnnRnnWordOutput(last_hidden_state=regions, pooler_output=outputs.pooler_output, word_mask=is_region))


@torch.inference_mode()
def score_pictures(model: Any, query: Query, regions: np.ndarray, pooled: np.ndarray) -> np.ndarray:
    """
    Score pictures for a query as the model does.

    Args:
        regions, pooled: vectors of N pictures, `(N, R, D)` and `(N, D)`.

    Returns:
        float32 `(N,)`.
    """
    vectors = [torch.from_numpy(array).to(model.device, model.dtype) for array in (regions, pooled)]
    outputs = CnnRnnRegionOutput(last_hidden_state=vectors[0], pooler_output=vectors[1])
    return model.similarity(outputs, query.outputs)[:, 0].cpu().numpy()


def score_with_bank(model: Any, bank: Sequence[Query], regions: np.ndarray, pooled: np.ndarray) -> np.ndarray:
    """
    Average what each picture scores with the ten sentences of a bank that fit it best, float32 `(N,)`.

    Some pictures are near to every sentence (hubs). Subtracting this from their scores is half of CSLS
    (https://arxiv.org/abs/1710.04087); the other half is the same for all pictures.
    """
    scores = np.stack([score_pictures(model, query, regions, pooled) for query in bank], axis=1)
    return np.sort(scores, axis=1)[:, -BANK_TOP_K:].mean(axis=1, dtype=np.float32)


def bank_digest(sentences: Sequence[str]) -> str:
    """Name a query bank; empty without one."""
    return hashlib.sha256("\n".join(sentences).encode()).hexdigest()[:16] if sentences else ""


def model_fingerprint(model: Any, processor: Any) -> str:
    """Name the vectors that this model makes, with its preprocessing and its words."""
    # a model that was saved and loaded makes the same vectors, though its settings say where they came from
    without = ("_name_or_path", "dtype", "auto_map", "transformers_version", "custom_pipelines")
    settings = [
        {key: value for key, value in part.to_dict().items() if key not in without}
        for part in (model.config, processor.image_processor)
    ]
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    digest.update(processor.tokenizer.backend_tokenizer.to_str().encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy())
    return digest.hexdigest()[:32]
