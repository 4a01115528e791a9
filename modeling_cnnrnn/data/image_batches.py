"""Make batches for training from labelled pictures that are kept in memory: no picture is opened twice."""

from collections.abc import Sequence
from typing import Any, Literal

import datasets
import numpy as np
import torch
from torch.utils.data import Dataset

from .batching import load_stored_image
from .reporting import left_out


Flip = Literal["alternating", "random", "none"]
MAX_BYTES = 2**35  # of the pictures in memory


class LabelledImages(Dataset):
    """
    Pictures and their classes in memory, as the image processor resizes and crops them, in 8 bits.

    An example is the number of its row; `collate` gathers and augments the pictures of a batch at once. Shifts and mirror
    images depend on `seed`, `epoch` and the row alone, so a training that is resumed sees the same batches.

    Attributes:
        pixels: the pictures, uint8 `(num_images, num_channels, height, width)`.
        labels: their classes, `(num_images,)`.
        image_ids: their names.
        broken: names of pictures that cannot be read, each with the reason. They are left out.
        epoch: the epoch whose batches are made.

    Args:
        rows: rows of `image`, `label` and `image_id`, as `load_labelled_dataset` returns them.
        image_processor: the image processor of the model, of the PIL backend.
        name: what messages call these pictures.
        max_shift: pixels that a picture is moved by at most, down and to the right or back; what leaves it comes back
            reflected.
        flip: which pictures are mirrored: `"alternating"`, each in every second epoch, a random half of them in the first
            (https://arxiv.org/abs/2404.00498, section 3.6); `"random"`; or `"none"`.
        seed: seed of the augmentation.

    Raises:
        ValueError: no picture can be read, or they do not fit into memory.
    """

    def __init__(
        self,
        rows: datasets.Dataset,
        image_processor: Any,
        name: str = "images",
        max_shift: int = 0,
        flip: Flip = "none",
        seed: int = 0,
    ):
        self.max_shift, self.flip, self.seed = max_shift, flip, seed
        self.image_mean = torch.tensor(image_processor.image_mean).view(-1, 1, 1)
        self.image_std = torch.tensor(image_processor.image_std).view(-1, 1, 1)
        self.broken: dict[str, str] = {}
        self.pixels, kept = self._read(rows, image_processor)
        left_out(name, "images that cannot be read", [f"{image}: {reason}" for image, reason in self.broken.items()])
        if not kept:
            raise ValueError(f"No picture of {name} can be read.")
        if max_shift >= min(self.pixels.shape[2:]):
            raise ValueError(f"`max_shift` is {max_shift}, but the pictures have {min(self.pixels.shape[2:])} pixels.")
        labels, image_ids = rows["label"][:], rows["image_id"][:]
        self.labels = torch.tensor([labels[row] for row in kept])
        self.image_ids: list[str] = [image_ids[row] for row in kept]
        self.epoch = 0

    def _read(self, rows: datasets.Dataset, processor: Any) -> tuple[torch.Tensor, list[int]]:
        """Decode all pictures; returns them and the rows they are of."""
        undecoded = rows.select_columns(["image"]).cast_column("image", datasets.Image(decode=False))
        pixels: np.ndarray | None = None
        kept: list[int] = []
        for row, image_id in enumerate(rows["image_id"][:]):
            try:
                picture = _resized(load_stored_image(undecoded[row]["image"], name=image_id), processor)
            except (OSError, ValueError) as error:
                self.broken[image_id] = str(error)
                continue
            if pixels is None:
                if picture.size * len(rows) > MAX_BYTES:
                    raise ValueError(
                        f"{len(rows)} pictures of {picture.shape[1]} x {picture.shape[2]} need {picture.size * len(rows) / 2**30:.0f} "
                        "GiB of memory: pass a smaller --image_size or --max_train_samples."
                    )
                pixels = np.empty((len(rows), *picture.shape), np.uint8)
            pixels[len(kept)] = picture
            kept.append(row)
        return torch.from_numpy(pixels[: len(kept)] if pixels is not None else np.empty((0, 3, 1, 1), np.uint8)), kept

    @property
    def epoch(self) -> int:
        """The epoch whose batches are made."""
        return self._epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._epoch = epoch
        number = len(self.labels)
        coins = torch.rand(number, generator=self._generator(0 if self.flip == "alternating" else epoch + 1)) < 0.5
        self._is_mirrored = torch.zeros(number, dtype=torch.bool) if self.flip == "none" else coins
        if self.flip == "alternating" and epoch % 2:
            self._is_mirrored = ~coins
        shifts = (2 * self.max_shift + 1, (2, number))
        self._shifts = torch.randint(*shifts, generator=self._generator(-epoch - 1)) - self.max_shift

    def _generator(self, stream: int) -> torch.Generator:
        return torch.Generator().manual_seed((self.seed << 32) + stream + 2**31)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> int:
        return index

    def collate(self, rows: Sequence[int]) -> dict[str, Any]:
        """
        Make the batch of these rows.

        Returns:
            `pixel_values` uint8 `(B, C, H, W)`, to be normalized by [`normalize`]; `labels` `(B,)`; `rows` `(B,)`.
        """
        index = torch.as_tensor(rows)
        return {"pixel_values": self._augmented(index), "labels": self.labels[index], "rows": index}

    def _augmented(self, rows: torch.Tensor) -> torch.Tensor:
        if self.flip == "none" and not self.max_shift:
            return self.pixels[rows]
        height, width = self.pixels.shape[2:]
        y = _reflected(torch.arange(height) + self._shifts[0, rows, None], height)  # (B, H)
        x = _reflected(torch.arange(width) + self._shifts[1, rows, None], width)  # (B, W)
        x = torch.where(self._is_mirrored[rows, None], x.flip(1), x)
        places = y[:, :, None] * width + x[:, None]  # (B, H, W)
        pixels = self.pixels[rows].flatten(2)
        return pixels.gather(2, places.flatten(1)[:, None].expand_as(pixels)).unflatten(2, (height, width))

    def normalize(self, pixels: torch.Tensor) -> torch.Tensor:
        """Turn 8-bit pixels into what the image processor makes of them, in the layout that is fastest for a CNN."""
        mean, std = self.image_mean.to(pixels.device), self.image_std.to(pixels.device)
        return ((pixels / 255 - mean) / std).contiguous(memory_format=torch.channels_last)


def _resized(image, processor: Any) -> np.ndarray:
    """Resize and crop a picture as the processor does, `(C, H, W)` in 8 bits."""
    size = dict(processor.size or {})
    is_plain = not getattr(processor, "do_center_crop", False) and not getattr(processor, "crop_pct", None)
    if is_plain and (size.get("width"), size.get("height")) == image.size:  # nothing to do, fifty thousand times
        return np.asarray(image).transpose(2, 0, 1)
    pixels = processor(image, do_rescale=False, do_normalize=False, return_tensors="np")["pixel_values"][0]
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def _reflected(index: torch.Tensor, size: int) -> torch.Tensor:
    """Reflect places outside of `0 ... size - 1` at the first or last one."""
    return size - 1 - (size - 1 - index.abs()).abs()
