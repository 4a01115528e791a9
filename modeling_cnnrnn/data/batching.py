"""Make batches for training from a caption dataset: several captions of an image share one encoding of it."""

import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from ..models.loss_cnnrnn import IGNORE_INDEX
from ..models.processing_cnnrnn import CnnRnnProcessor, load_image
from ..models.processor_checks_cnnrnn import needed_side
from .region_features import RegionFeatures
from .reporting import left_out, some


logger = logging.getLogger(__name__)

# JPEGs are decoded at this many times the needed size, or more. Without the margin, features of a MobileNetV2 have a cosine
# of 0.95 with those of the whole image, with it 0.993; saving a JPEG at quality 75 in place of 90 gives 0.996.
DRAFT_MARGIN = 1.5


class CaptionDataset(Dataset):
    """
    Images of a dataset with their captions as token ids.

    Random choices (crops, captions) depend on `seed`, `epoch` and the index alone, so a training that is resumed sees the
    same batches, with any number of workers.

    Args:
        dataset: rows of `image`, `image_id` and `captions`, as `load_caption_dataset` returns them.
        processor: the image processor and tokenizer of the model.
        captions_per_image: captions of an image in one step; an image with more captions shows others in the next epoch.
        max_length: longest caption in tokens, with the end token; longer ones are cut before it.
        augmentation: a callable from an RGB image and a `random.Random` to an RGB image.
        image_features: in place of the images, stored features `(num_images, num_regions, num_feature_channels)`; or
            a list of these, one for each view of the images, one of which is chosen for each image and epoch; or those
            of a detector, of any number of regions for each image.
        broken: rows known to be broken, each with the reason; others are found when they are opened.
        preload: keep the processed images in memory.
        draft: decode a JPEG that is three or more times as large as the processor needs at a half, a quarter or an
            eighth of its size (PIL's draft mode): faster, and close to plain decoding, but not equal to it.
        seed: seed of all random choices.

    Attributes:
        cut: the image of each caption that is longer than `max_length`.
        unlearnable: the image of each caption without a known word, which is left out.

    Raises:
        ValueError: `image_features` and `dataset` differ in length; `preload` with `augmentation` or `image_features`.
    """

    def __init__(
        self,
        dataset: datasets.Dataset,
        processor: CnnRnnProcessor,
        captions_per_image: int = 5,
        max_length: int = 32,
        augmentation=None,
        image_features: np.ndarray | RegionFeatures | Sequence[np.ndarray] | None = None,
        broken: Mapping[int, str] | None = None,
        preload: bool = False,
        draft: bool = False,
        seed: int = 0,
    ):
        if preload and (augmentation is not None or image_features is not None):
            other = "augmentation" if augmentation is not None else "image_features"
            raise ValueError(f"`preload` has no effect with `{other}`: leave one of the two out.")
        if isinstance(image_features, np.ndarray | RegionFeatures):
            views: Any = [image_features]
        else:
            views = image_features
        for view in views or ():
            if len(view) != len(dataset):
                raise ValueError(
                    f"`image_features` holds {len(view)} images and `dataset` {len(dataset)}: compute them for this dataset."
                )
        self.images = dataset.select_columns(["image"]).cast_column("image", datasets.Image(decode=False))
        self.image_ids: list[str] = dataset["image_id"][:]
        self.processor = processor
        self.captions_per_image = captions_per_image
        self.augmentation = augmentation
        self.image_features = views
        self.has_regions = isinstance(image_features, RegionFeatures)
        self.broken = dict(broken or {})
        self.needed_side = needed_training_side(processor.image_processor, augmentation) if draft else None
        self.seed = seed
        self.epoch = 0
        self.max_length = max_length
        self.cut: list[str] = []
        self.unlearnable: list[str] = []
        self.labels = self._encode(dataset["captions"][:])
        self.pixel_values = None
        if preload:
            examples = [self[index] for index in range(len(self))]
            self.broken |= {index: example["error"] for index, example in enumerate(examples) if "error" in example}
            self.pixel_values = [example["pixel_values"] for example in examples]

    def _encode(self, captions: list[list[str]]) -> list[list[list[int]]]:
        """Make the labels of each image, and note the captions that are cut or left out."""
        tokenizer = self.processor.tokenizer
        whole = iter(self.processor.encode_captions([caption for row in captions for caption in row]))
        # a caption of unknown words teaches only to write <unk>
        unknown = {tokenizer.unk_token_id, tokenizer.eos_token_id}
        labels: list[list[list[int]]] = []
        for image_id, row in zip(self.image_ids, captions, strict=True):
            labels.append([])
            for ids in (next(whole) for _ in row):
                if unknown.issuperset(ids):
                    self.unlearnable.append(image_id)
                    continue
                if len(ids) > self.max_length:
                    self.cut.append(image_id)
                    ids = [*ids[: self.max_length - 1], tokenizer.eos_token_id]
                labels[-1].append(ids)
        return labels

    def check(self, split: str, remedy: str = "") -> None:
        """
        Count and name the captions that are cut or left out, and find out before the work whether there is an image.

        Args:
            split: what the dataset is called.
            remedy: what keeps captions whole.

        Raises:
            ValueError: none of the images can be read.
        """
        left_out(split, "captions without a known word, of", self.unlearnable)
        if self.cut:
            logger.warning(
                "Cut in %s: captions of more than %d tokens (%d): of %s%s.",
                split,
                self.max_length,
                len(self.cut),
                some(list(dict.fromkeys(self.cut))),
                remedy,
            )
        reasons = (self[index].get("error") for index in range(len(self)))
        reason = next(reasons, "there is none")
        if reason is not None and all(reasons):
            raise ValueError(f"None of the {len(self)} images of {split} can be read: {reason}")

    def __len__(self) -> int:
        return len(self.image_ids)

    def boxes(self, index: int) -> np.ndarray | None:
        """Return the boxes `(num_regions, 4)` of the regions of an image, where a detector has found them."""
        return self.image_features[0].boxes(index) if self.has_regions else None

    def _open(self, index: int) -> Image.Image:
        return load_stored_image(self.images[index]["image"], self.needed_side)

    def _process(self, image: Image.Image) -> torch.Tensor:
        return self.processor(images=image, images_kwargs={"return_tensors": "pt"})["pixel_values"][0]

    def __getitem__(self, index: int) -> dict[str, Any]:
        # a string seeds `random.Random` equally in every process, a tuple does not
        rng = random.Random(f"{self.seed}-{self.epoch}-{index}")
        labels = self.labels[index]
        if len(labels) > self.captions_per_image:
            labels = rng.sample(labels, self.captions_per_image)
        example: dict[str, Any] = {"labels": labels, "row": index}
        error = self.broken.get(index)
        if self.image_features is not None:
            view = rng.choice(self.image_features) if len(self.image_features) > 1 else self.image_features[0]
            try:
                example["image_features"] = torch.from_numpy(np.array(view[index]))
            except (OSError, ValueError) as reason:
                error = str(reason)
                example["image_features"] = torch.zeros(1, view.num_channels)
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
            # a blank image without captions replaces it, so that batches keep their shape in every process
            example |= {"labels": [], "error": error}
            if self.image_features is None:
                example["pixel_values"] = self._process(Image.new("RGB", (64, 64)))
        return example


def needed_training_side(image_processor, augmentation) -> int | None:
    """
    Compute the side in pixels that a JPEG must keep when it is decoded at a part of its size, as [`needed_side`] does.

    Args:
        image_processor: the image processor that resizes the decoded image.
        augmentation: crops the image before that.
    """
    share = augmentation.smallest_side if isinstance(augmentation, RandomResizedCrop) else 1.0
    return needed_side(image_processor, DRAFT_MARGIN / share)


def load_stored_image(
    value: dict | Image.Image | str | None, needed_side: int | None = None, name: str = "image"
) -> Image.Image:
    """
    Load the RGB image in a cell of an image column, decoded or not.

    Args:
        value: the cell.
        needed_side: if given, a JPEG is decoded at a half, a quarter or an eighth of its size where neither of its sides
            becomes shorter than this many pixels.
        name: what errors call an image that has no file name.

    Raises:
        OSError, ValueError: the image is broken, or there is none.
    """
    content: Any = value
    if isinstance(value, dict):
        content = value["path"] if value.get("bytes") is None else value["bytes"]
        name = (value.get("path") if content is value.get("bytes") else None) or name
    if content is None:
        raise ValueError(f"`{name}`: the row has no image.")
    return load_image(content, name=name, min_side=needed_side)


def collate_captions(examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """
    Make a batch of examples of [`CaptionDataset`].

    Returns:
        `pixel_values` `(B, 3, H, W)` or `image_features` `(B, R, C)`, with `image_features_mask` `(B, R)` where images have
        different numbers of regions; `labels` `(B, K, T)` padded with -100, K being the largest number of captions of one
        image; `rows`, the row number of each image; `broken`, the row number and the reason of each image that could not
        be read.
    """
    num_captions = max(1, *(len(example["labels"]) for example in examples))
    length = max((len(caption) for example in examples for caption in example["labels"]), default=1)
    labels = torch.full((len(examples), num_captions, length), IGNORE_INDEX)
    for row, example in zip(labels, examples, strict=True):
        for target, caption in zip(row, example["labels"], strict=False):
            target[: len(caption)] = torch.tensor(caption)
    name = "image_features" if "image_features" in examples[0] else "pixel_values"
    values = [example[name] for example in examples]
    images = {name: torch.stack(values)} if len({len(value) for value in values}) == 1 else pad_regions(values)
    return {
        **images,
        "labels": labels,
        "rows": [example["row"] for example in examples],
        "broken": [(example["row"], example["error"]) for example in examples if "error" in example],
    }


def pad_regions(features: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Pad the regions `(R_i, C)` of images to `image_features` `(B, R, C)` and `image_features_mask` `(B, R)`."""
    lengths = torch.tensor([len(own) for own in features])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    return {"image_features": pad_sequence(list(features), batch_first=True), "image_features_mask": mask}


@dataclass(frozen=True)
class RandomResizedCrop:
    """
    Crop a random part of an image, and mirror it now and then (Szegedy et al., https://arxiv.org/abs/1409.4842).

    Args:
        scale: smallest and largest share of the image's area that is kept.
        ratio: smallest and largest factor by which the ratio of width to height changes.
        flip_probability: probability of a mirror image; 0 by default, because captions say left and right.
    """

    scale: tuple[float, float] = (0.6, 1.0)
    ratio: tuple[float, float] = (0.8, 1.25)
    flip_probability: float = 0.0

    def __post_init__(self):
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"`scale` is {self.scale}: pass two shares of the area, 0 < smallest <= largest <= 1.")

    @property
    def smallest_side(self) -> float:
        """The smallest share of a side that is kept."""
        return (self.scale[0] * min(self.ratio[0], 1 / self.ratio[1])) ** 0.5

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
