"""What the page shows of a model: its layers, its answers to pictures that it was not trained on, and to one's own."""

from typing import Any

import torch
from accelerate import Accelerator
from PIL import Image
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel
from transformers.image_processing_backends import PilBackend

from ..data.batching import CaptionDataset, load_stored_image
from ..data.image_batches import LabelledImages
from ..evaluation.captions import GeneratedCaption, caption_pictures
from ..models.image_view_cnnrnn import find_view
from ..models.modeling_cnnrnn import CnnRnnForConditionalGeneration
from ..models.processing_cnnrnn import CnnRnnProcessor
from .layers import evaluation_mode, look_inside
from .pictures import png, thumbnail


NUM_TOP = 3


class View:
    """
    Show a model. This one shows nothing; a subclass overrides what its model has to show.

    Args:
        model: the model, not wrapped.
        accelerator: of the training.
    """

    def __init__(self, model: PreTrainedModel, accelerator: Accelerator):
        self.model, self.accelerator = model, accelerator

    def layers(self, turn: int) -> list[dict[str, Any]]:
        """Describe the layers as they process a picture, another one each `turn`, see [`look_inside`]."""
        return []

    def predictions(self, turn: int) -> list[dict[str, Any]]:
        """
        Answer pictures that the model was not trained on, others each `turn`.

        Returns:
            Of each picture: `image`; `label`, what would be right; and as `answer` returns them its `top` or its `words`.
        """
        return []

    def answer(self, image: Image.Image) -> dict[str, Any]:
        """
        Answer a picture.

        Returns:
            `top`: classes with their probabilities, the most probable first; or `words`: each with its `text`,
            `probability`, and the `map` of where the model looked.

        Raises:
            ValueError: this model does not answer pictures.
        """
        raise ValueError("This model is trained on something else than answers to single pictures.")


def rows_of_turn(number: int, size: int, turn: int) -> list[int]:
    """Choose some of a number of rows, others each turn until all have had theirs, without drawing random numbers."""
    order = torch.randperm(number, generator=torch.Generator().manual_seed(0))
    return order[(turn * size + torch.arange(min(size, number))) % number].tolist()


class ClassifierView(View):
    """
    Show a classifier.

    Args:
        model, accelerator: see [`View`].
        image_processor: the image processor of the model.
        dataset: pictures to show, which the model is not trained on.
    """

    num_pictures = 12

    def __init__(
        self, model: PreTrainedModel, accelerator: Accelerator, image_processor: PilBackend, dataset: LabelledImages
    ):
        super().__init__(model, accelerator)
        self.image_processor, self.dataset = image_processor, dataset
        self.classes = [str(name) for name in (model.config.id2label or {}).values()]

    def layers(self, turn: int) -> list[dict[str, Any]]:
        """Describe the layers as they process a picture."""
        rows = rows_of_turn(len(self.dataset), 1, turn)
        batch = self.dataset.collate(rows)
        pixel_values = self.dataset.normalize(batch["pixel_values"].to(self.accelerator.device))
        labels = batch["labels"].to(self.accelerator.device)

        def compute_loss() -> torch.Tensor:
            with self.accelerator.autocast():
                return cross_entropy(self.model(pixel_values=pixel_values).logits.float(), labels)

        return look_inside(self.model, compute_loss)

    def predictions(self, turn: int) -> list[dict[str, Any]]:
        """Classify some pictures."""
        rows = rows_of_turn(len(self.dataset), self.num_pictures, turn)
        pixels = self.dataset.collate(rows)["pixel_values"]
        tops = self._classify(self.dataset.normalize(pixels.to(self.accelerator.device)))
        return [
            {
                "image": png(Image.fromarray(picture.permute(1, 2, 0).numpy())),
                "label": self.classes[int(self.dataset.labels[row])],
                "top": top,
            }
            for row, picture, top in zip(rows, pixels, tops, strict=True)
        ]

    def answer(self, image: Image.Image) -> dict[str, Any]:
        """Classify a picture."""
        pixel_values = self.image_processor(image, return_tensors="pt")["pixel_values"]
        (top,) = self._classify(pixel_values.to(self.accelerator.device))
        return {"top": top}

    @torch.inference_mode()
    def _classify(self, pixel_values: torch.Tensor) -> list[list[tuple[str, float]]]:
        with evaluation_mode(self.model), self.accelerator.autocast():
            probabilities = self.model(pixel_values=pixel_values).logits.float().softmax(-1)
        found = probabilities.topk(min(NUM_TOP, len(self.classes)))
        return [
            [(self.classes[label], round(value, 4)) for label, value in zip(labels, values, strict=True)]
            for labels, values in zip(found.indices.tolist(), found.values.tolist(), strict=True)
        ]


class CaptionerView(View):
    """
    Show a captioner.

    Args:
        model, accelerator: see [`View`].
        processor: the processor of the model.
        dataset: pictures to show, which the model is not trained on, with their captions.
    """

    num_pictures = 6
    model: CnnRnnForConditionalGeneration

    def __init__(
        self,
        model: CnnRnnForConditionalGeneration,
        accelerator: Accelerator,
        processor: CnnRnnProcessor,
        dataset: CaptionDataset,
    ):
        super().__init__(model, accelerator)
        self.processor, self.dataset = processor, dataset
        self.rows = [row for row in range(len(dataset)) if row not in dataset.broken and dataset.labels[row]]

    def layers(self, turn: int) -> list[dict[str, Any]]:
        """Describe the layers as they process a picture and its first caption."""
        (row,) = self._rows(1, turn)
        image = load_stored_image(self.dataset.images[row]["image"])
        pixel_values = self.processor(images=image, return_tensors="pt")["pixel_values"].to(self.model.device)
        labels = torch.tensor([self.dataset.labels[row][0]], device=self.model.device)

        def compute_loss() -> torch.Tensor:
            with self.accelerator.autocast():
                return self.model(pixel_values=pixel_values, labels=labels).loss

        return look_inside(self.model, compute_loss)

    def predictions(self, turn: int) -> list[dict[str, Any]]:
        """Write a sentence about each of some pictures."""
        rows = self._rows(self.num_pictures, turn)
        images = [load_stored_image(self.dataset.images[row]["image"]) for row in rows]
        return [
            {"image": thumbnail(image), "label": self._reference(row), "words": words}
            for row, image, words in zip(rows, images, self._write(images), strict=True)
        ]

    def answer(self, image: Image.Image) -> dict[str, Any]:
        """Write a sentence about a picture."""
        (words,) = self._write([image])
        return {"words": words}

    def _rows(self, size: int, turn: int) -> list[int]:
        return [self.rows[index] for index in rows_of_turn(len(self.rows), size, turn)]

    def _reference(self, row: int) -> str:
        return str(self.processor.decode(self.dataset.labels[row][0], skip_special_tokens=True))

    def _write(self, images: list[Image.Image]) -> list[list[dict[str, Any]]]:
        with evaluation_mode(self.model), self.accelerator.autocast():
            captions = caption_pictures(self.model, self.processor, images)
        return [self._words(image, caption) for image, caption in zip(images, captions, strict=True)]

    def _words(self, image: Image.Image, caption: GeneratedCaption) -> list[dict[str, Any]]:
        """Lay each word's map on the picture: bright is where the model looked most."""
        maps = caption.attention_over(find_view(self.processor, image)) if caption.attention is not None else None
        words: list[dict[str, Any]] = []
        for index, (text, probability) in enumerate(zip(caption.words, caption.word_probabilities, strict=True)):
            text = "(end)" if text == self.processor.tokenizer.eos_token else text
            word: dict[str, Any] = {"text": text, "probability": round(probability, 4)}
            if maps is not None:
                cells = maps[index] / max(float(maps[index].max()), 1e-12)
                word["map"] = png(Image.fromarray((cells * 255).astype("uint8")))
            words.append(word)
        return words
