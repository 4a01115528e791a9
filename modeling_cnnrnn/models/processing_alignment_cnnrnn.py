"""Prepare images and sentences for the alignment, any number of each."""

from os import PathLike
from typing import Any

from transformers.feature_extraction_utils import BatchFeature
from transformers.image_utils import ImageInput
from transformers.tokenization_utils_base import TextInput

from .processing_cnnrnn import CnnRnnProcessor


class CnnRnnAlignmentProcessor(CnnRnnProcessor):
    r"""
    Combine the image processor of a CNN and a tokenizer, as [`CnnRnnProcessor`], for [`CnnRnnForImageTextRetrieval`].

    Each image is compared with each sentence, so that there may be any number of both, as in CLIP's processor.

    ```python
    >>> inputs = processor(images=image, text=["a dog", "two cats"], return_tensors="pt")
    >>> model(**inputs).logits_per_image.softmax(dim=1)
    ```
    """

    def __call__(  # type: ignore[override]
        self,
        images: ImageInput | str | PathLike | list | None = None,
        text: TextInput | list[TextInput] | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """
        Prepare images and sentences.

        Args:
            images: an image or several, as for [`CnnRnnProcessor`].
            text: a sentence or several.
            **kwargs: as for [`CnnRnnProcessor`].

        Returns:
            `pixel_values` `(num_images, 3, height, width)`, and `input_ids` and `attention_mask` `(num_sentences, T)`, the words
            alone, padded on the right.

        Raises:
            ValueError: as [`CnnRnnProcessor`], or a sentence has no word that the tokenizer knows.
            OSError: an image cannot be read.
        """
        if images is None or text is None:
            return self._call(images, text, **kwargs)
        inputs = self._call(images, None, **kwargs)
        inputs.update(self._call(None, text, **{name: kwargs[name] for name in kwargs if name != "text_target"}))
        return inputs

    def _call(self, images, text, **kwargs) -> BatchFeature:
        if text is not None:
            sentences = [text] if isinstance(text, str) else list(text)
            self.check_words(sentences)
            kwargs["add_special_tokens"] = False
        return super().__call__(images, text, **kwargs)

    def check_words(self, sentences: list[str]):
        """
        Refuse sentences that mean nothing to the model.

        Raises:
            ValueError: a sentence has no word that the tokenizer knows.
        """
        for sentence in sentences:
            if isinstance(sentence, str) and not set(self._encode([sentence])[0]) - {self.tokenizer.unk_token_id}:
                raise ValueError(
                    f"`text` holds {sentence!r}, of which the tokenizer knows no word: say it in other words."
                )


__all__ = ["CnnRnnAlignmentProcessor"]
