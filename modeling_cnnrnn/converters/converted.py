"""What a converter makes of a checkpoint, and the captioner that comes of it."""

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import BitImageProcessorPil
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ..models.configuration_cnnrnn import CnnRnnConfig
from ..models.modeling_cnnrnn import CnnRnnForConditionalGeneration
from ..models.processing_cnnrnn import CnnRnnProcessor
from .vocabulary import Vocabulary


@dataclass
class Converted:
    """
    An old captioner in the terms of this package.

    Attributes:
        vocabulary: its words.
        config: fields of the configuration, those of the vocabulary left out.
        weights: the state dict of [`CnnRnnForConditionalGeneration`].
        image_processor: what the original does to an image.
        generation: fields of the generation config: how the original decodes by default.
    """

    vocabulary: Vocabulary
    config: dict[str, Any]
    weights: dict[str, torch.Tensor]
    image_processor: BitImageProcessorPil
    generation: dict[str, Any] = field(default_factory=dict)

    def make_captioner(self) -> tuple[CnnRnnForConditionalGeneration, CnnRnnProcessor]:
        """
        Make the model and its processor.

        Raises:
            ValueError: weights are missing, of another shape, or not used.
        """
        processor = CnnRnnProcessor(self.image_processor, self.vocabulary.make_tokenizer())
        with torch.device("meta"):  # the weights are those of the checkpoint: none are drawn
            model = CnnRnnForConditionalGeneration(CnnRnnConfig(vocab_size=self.vocabulary.size, **self.config))
        # copies: those of a checkpoint may be parts of one tensor, which is not saved as parts
        weights = {
            name: (value.float() if value.is_floating_point() else value).clone(memory_format=torch.contiguous_format)
            for name, value in self.weights.items()
        }
        try:
            model.load_state_dict(weights, assign=True)
        except RuntimeError as error:
            faults = " ".join(str(error).split()[6:])
            raise ValueError(f"The weights are not those of such a captioner: {faults}") from error
        if self.vocabulary.unknown is not None:  # the original writes it
            never_written = model.generation_config.suppress_tokens
            model.generation_config.suppress_tokens = [i for i in never_written if i != model.config.unk_token_id]
        model.generation_config.update(**self.generation)
        return model.eval(), processor


def squash(size: int, crop_size: int | None = None, **options: Any) -> BitImageProcessorPil:
    """
    Make an image processor that squashes images to a square, as the old captioners do.

    Args:
        size: height and width in pixels.
        crop_size: side of the middle that is cut out of it; `None` for all of it.
        options: further fields, in place of the mean and the standard deviation of ImageNet.
    """
    side = crop_size or size
    normalization = {"image_mean": list(IMAGENET_DEFAULT_MEAN), "image_std": list(IMAGENET_DEFAULT_STD)}
    return BitImageProcessorPil(
        size={"height": size, "width": size},
        do_center_crop=crop_size is not None,
        crop_size={"height": side, "width": side},
        **{**normalization, **options},
    )


def order_gates(rows: torch.Tensor) -> torch.Tensor:
    """Order the rows of an LSTM, `(4 * hidden_size, ...)`, from input, forget, output, candidate to torch's order."""
    in_gate, forget_gate, out_gate, candidate = rows.float().chunk(4)
    return torch.cat([in_gate, forget_gate, candidate, out_gate])
