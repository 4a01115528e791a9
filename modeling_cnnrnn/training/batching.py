"""From a caption dataset to the batches of a training step: several captions of one image share one look at it."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from ..processing_cnnrnn import CnnRnnProcessor, load_rgb


IGNORED = -100


class CaptionDataset(Dataset):
    """
    The images of a dataset with their captions as token ids.

    What is drawn at random (crops, which captions) depends on `seed`, `epoch` and the index alone, so that a training
    that was stopped goes on with the very same batches, whatever the number of workers.

    Args:
        dataset: rows of `image`, `image_id` and `captions`, as `load_caption_dataset` returns them.
        processor: the image processor and tokenizer of the model.
        captions_per_image: captions of an image in one step; an image that has more shows others in the next epoch.
        max_length: longest caption in tokens, the end token included; what is longer is cut, and still ends.
        augmentation: a callable from an RGB image and a `random.Random` to an RGB image.
        image_features: in place of the images, stored features `(num_images, num_regions, num_feature_channels)`.
        broken: rows known to be broken, each with the reason; others are found when they are opened.
        preload: keep the processed images in memory, where there is no augmentation and they are small.
        seed: of all that is drawn at random.
    """

    def __init__(
        self,
        dataset: datasets.Dataset,
        processor: CnnRnnProcessor,
        captions_per_image: int = 5,
        max_length: int = 32,
        augmentation=None,
        image_features: np.ndarray | None = None,
        broken: Mapping[int, str] | None = None,
        preload: bool = False,
        seed: int = 0,
    ):
        if image_features is not None and len(image_features) != len(dataset):
            raise ValueError(
                f"`image_features` holds {len(image_features)} images and `dataset` {len(dataset)}: make them anew."
            )
        self.images = dataset.select_columns(["image"]).cast_column("image", datasets.Image(decode=False))
        self.image_ids: list[str] = dataset["image_id"][:]
        self.processor = processor
        self.captions_per_image = captions_per_image
        self.augmentation = augmentation
        self.image_features = image_features
        self.broken = dict(broken or {})
        self.seed = seed
        self.epoch = 0
        captions: list[list[str]] = dataset["captions"][:]
        tokens = iter(processor.tokenizer([c for row in captions for c in row], add_special_tokens=False)["input_ids"])
        end = [processor.tokenizer.eos_token_id]
        self.labels = [[next(tokens)[: max_length - 1] + end for _ in row] for row in captions]
        # a caption of unknown words teaches only to write <unk>
        unlearnable = {processor.tokenizer.unk_token_id, processor.tokenizer.eos_token_id}
        self.num_captions_left_out = sum(unlearnable.issuperset(caption) for row in self.labels for caption in row)
        self.labels = [[caption for caption in row if not unlearnable.issuperset(caption)] for row in self.labels]
        self.pixel_values = None
        if preload and augmentation is None and image_features is None:
            self.pixel_values = [self[index]["pixel_values"] for index in range(len(self))]

    def __len__(self) -> int:
        return len(self.image_ids)

    def _open(self, index: int) -> Image.Image:
        return load_stored_image(self.images[index]["image"])

    def _process(self, image: Image.Image) -> torch.Tensor:
        return self.processor(images=image, images_kwargs={"return_tensors": "pt"})["pixel_values"][0]

    def __getitem__(self, index: int) -> dict[str, Any]:
        # a string seeds `random.Random` alike in every process, a tuple does not
        rng = random.Random(f"{self.seed}-{self.epoch}-{index}")
        labels = self.labels[index]
        if len(labels) > self.captions_per_image:
            labels = rng.sample(labels, self.captions_per_image)
        example: dict[str, Any] = {"labels": labels, "image_id": self.image_ids[index]}
        error = self.broken.get(index)
        if self.image_features is not None:
            example["image_features"] = torch.from_numpy(np.array(self.image_features[index]))
        elif self.pixel_values is not None:
            example["pixel_values"] = self.pixel_values[index]
        elif error is None:
            try:
                image = self._open(index)
                if self.augmentation is not None:
                    image = self.augmentation(image, rng)
                example["pixel_values"] = self._process(image)
            except (OSError, ValueError) as reason:
                error = str(reason)
        if error is not None:
            # a blank with nothing to learn takes its place, so that batches keep their shape in every process
            example |= {"labels": [], "error": error}
            if self.image_features is None:
                example["pixel_values"] = self._process(Image.new("RGB", (64, 64)))
        return example


def load_stored_image(value: dict | Image.Image | str) -> Image.Image:
    """An RGB image from a cell of an image column, decoded or not. Raises OSError or ValueError if it is broken."""
    if isinstance(value, dict):
        value = value["path"] if value.get("bytes") is None else value["bytes"]
    return load_rgb(value)


def collate_captions(examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """
    One batch from examples of [`CaptionDataset`].

    Returns:
        `pixel_values` `(B, 3, H, W)` or `image_features` `(B, R, C)`; `labels` `(B, K, T)` padded with -100, K being the
        largest number of captions of one image; `broken`, what could not be read, as (image id, reason).
    """
    num_captions = max(1, *(len(example["labels"]) for example in examples))
    length = max((len(caption) for example in examples for caption in example["labels"]), default=1)
    labels = torch.full((len(examples), num_captions, length), IGNORED)
    for row, example in zip(labels, examples, strict=True):
        for target, caption in zip(row, example["labels"], strict=False):
            target[: len(caption)] = torch.tensor(caption)
    name = "image_features" if "image_features" in examples[0] else "pixel_values"
    return {
        name: torch.stack([example[name] for example in examples]),
        "labels": labels,
        "broken": [(example["image_id"], example["error"]) for example in examples if "error" in example],
    }


class RandomResizedCrop:
    """
    Cut a random part out of an image and turn it over now and then (Szegedy et al., https://arxiv.org/abs/1409.4842).

    Args:
        scale: smallest and largest share of the image's area that is kept.
        ratio: smallest and largest change of the image's width to height.
        flip_probability: of a mirror image. 0 by default, because captions say left and right.
    """

    def __init__(
        self,
        scale: tuple[float, float] = (0.6, 1.0),
        ratio: tuple[float, float] = (0.8, 1.25),
        flip_probability: float = 0.0,
    ):
        if not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError(f"`scale` is {scale}: pass two shares of the area, 0 < smallest <= largest <= 1.")
        self.scale, self.ratio, self.flip_probability = scale, ratio, flip_probability

    def __call__(self, image: Image.Image, rng: random.Random) -> Image.Image:
        area = rng.uniform(*self.scale)
        stretch = rng.uniform(*self.ratio) ** 0.5
        width = min(image.width, max(1, round(image.width * area**0.5 * stretch)))
        height = min(image.height, max(1, round(image.height * area**0.5 / stretch)))
        left, top = rng.randint(0, image.width - width), rng.randint(0, image.height - height)
        image = image.crop((left, top, left + width, top + height)).resize(image.size, Image.Resampling.BILINEAR)
        if rng.random() < self.flip_probability:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return image
