"""Prepare images and captions for an ensemble, each captioner's image by its own image processor."""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Self

import torch
from transformers.feature_extraction_utils import BatchFeature

from .configuration_ensemble_cnnrnn import CnnRnnEnsembleConfig
from .error_messages_cnnrnn import shown
from .modeling_ensemble_cnnrnn import subfolder_of
from .processing_cnnrnn import CnnRnnProcessor
from .processor_checks_cnnrnn import HUB_KWARGS


class CnnRnnEnsembleProcessor(CnnRnnProcessor):
    """
    Combine the processors of the captioners of an ensemble; called as a [`CnnRnnProcessor`].

    `pixel_values` is `(batch_size, num_captioners, 3, height, width)`, filled up with NaN at the bottom and at the right
    where the captioners see pictures of different sizes.

    Args:
        processors: the processor of each captioner.

    Raises:
        ValueError: they have different words.
    """

    def __init__(self, processors: Sequence[CnnRnnProcessor]):
        super().__init__(processors[0].image_processor, processors[0].tokenizer)
        self.processors = list(processors)
        words = processors[0].tokenizer.get_vocab()
        for number, processor in enumerate(self.processors):
            if processor.tokenizer.get_vocab() != words:
                other = processor.tokenizer.get_vocab()
                word = min(set(words.items()) ^ set(other.items()))[0]
                raise ValueError(
                    f"Captioner {number} has other words than the first (such as {shown(word)}): an ensemble needs captioners "
                    "of one vocabulary, trained with the same tokenizer."
                )

    @classmethod
    def get_attributes(cls) -> list[str]:
        return CnnRnnProcessor.get_attributes()  # transformers infers them from the arguments of the constructor

    @classmethod
    def from_captioners(cls, places: Sequence[str | PathLike], **kwargs) -> Self:
        """
        Load the processors of captioners.

        Args:
            places: their folders or repositories.
            kwargs: arguments of [`CnnRnnProcessor.from_pretrained`].
        """
        return cls([CnnRnnProcessor.from_pretrained(place, **kwargs) for place in places])

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: str | PathLike, **kwargs
    ) -> Self:
        """Load the processor of an ensemble from the folders of its captioners, see [`CnnRnnProcessor.from_pretrained`]."""
        config = CnnRnnEnsembleConfig.from_pretrained(
            pretrained_model_name_or_path, **{name: kwargs[name] for name in HUB_KWARGS if name in kwargs}
        )
        return cls(
            [
                CnnRnnProcessor.from_pretrained(pretrained_model_name_or_path, subfolder=subfolder_of(number), **kwargs)
                for number in range(len(config.captioners or ()))
            ]
        )

    def save_pretrained(self, save_directory: str | PathLike, push_to_hub: bool = False, **kwargs):
        """Save the processor of each captioner into the folder of the captioner."""
        for number, processor in enumerate(self.processors):
            processor.save_pretrained(Path(save_directory, subfolder_of(number)), push_to_hub, **kwargs)

    def _min_side(self, image: Any, draft: bool, kwargs: dict[str, Any]) -> int | None:
        sides = [CnnRnnProcessor._min_side(processor, image, draft, kwargs) for processor in self.processors]
        return None if None in sides else max(side for side in sides if side is not None)

    def _process_samples(self, samples: list, draft: bool, kwargs: dict[str, Any]) -> BatchFeature:
        processed = []
        for processor in self.processors:
            options = {**kwargs, "return_tensors": "pt"}
            processed.append(processor._process_samples(list(samples), draft, options)["pixel_values"])
        height, width = (max(pixels.shape[dim] for pixels in processed) for dim in (2, 3))
        whole = processed[0].new_full((len(samples), len(processed), 3, height, width), torch.nan)
        for number, pixels in enumerate(processed):
            whole[:, number, :, : pixels.shape[2], : pixels.shape[3]] = pixels
        return BatchFeature({"pixel_values": whole})


__all__ = ["CnnRnnEnsembleProcessor"]
