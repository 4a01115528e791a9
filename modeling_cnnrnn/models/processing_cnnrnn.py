"""Prepare images, prompts and captions for the CNN+RNN captioner: `pixel_values`, `input_ids`, `labels`."""

import os
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any, Self

import numpy as np
import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import RemoteEntryNotFoundError
from PIL import Image
from transformers import (
    AutoImageProcessor,
    BitImageProcessorPil,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_processing_utils import get_size_dict
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, ImageInput, SizeDict
from transformers.tokenization_utils_base import TextInput
from transformers.utils import to_py_obj

from .image_loading_cnnrnn import is_unit_range, load_image
from .loading_cnnrnn import CnnRnnLoadingError, explain_errors, find_pretrained
from .loss_cnnrnn import IGNORE_INDEX
from .processor_checks_cnnrnn import (
    HUB_KWARGS,
    MAX_RESIZED_PIXELS,
    PROCESSOR_PARTS,
    check_image_size,
    check_strings,
    check_vocabulary,
    needed_side,
    try_image_processor,
    try_tokenizer,
)


try:
    from huggingface_hub.utils import httpx  # what transformers loads its images with
except ImportError:
    import httpx  # type: ignore[no-redef]

# A JPEG that is decoded at three times the size to which it is resized, or more, gives pixels in [0, 1] that differ by 0.002
# in the mean; at twice the size, by 0.004.
DRAFT_MARGIN = 3.0


class CnnRnnProcessor(ProcessorMixin):
    r"""
    Combine the image processor of a CNN and the tokenizer of a captioner.

    Args:
        image_processor: any image processor of transformers. It receives RGB images and resizes, rescales and normalizes
            them as its configuration says.
        tokenizer: any tokenizer with different padding, beginning and end tokens, such as `build_tokenizer` makes.

    Raises:
        ValueError: `tokenizer` lacks one of the three tokens, or uses one for two purposes.

    ```python
    >>> processor = CnnRnnProcessor.from_encoder_pretrained("microsoft/resnet-50", tokenizer)
    >>> inputs = processor(images=image, text_target=["a dog jumps over a bar"], return_tensors="pt")
    >>> processor.batch_decode(model.generate(**processor(images=image, return_tensors="pt")), skip_special_tokens=True)
    ['a dog jumps over a bar']
    ```
    """

    # A prompt does not end, so the tokenizer's template, which ends a sentence, is not for it; `__call__` adds `<bos>`.
    text_kwargs = {"add_special_tokens": False, "padding": True}  # noqa: RUF012

    def __init__(self, image_processor, tokenizer):
        marks = {name: getattr(tokenizer, f"{name}_token_id", None) for name in ("pad", "bos", "eos")}
        if isinstance(tokenizer, PreTrainedTokenizerBase) and (None in marks.values() or len(set(marks.values())) < 3):
            raise ValueError(
                f"`tokenizer` must have three different tokens for padding, beginning and end of a sentence, their ids "
                f"are {marks}: add what is missing, as in `tokenizer.add_special_tokens({{'bos_token': '<bos>'}})`."
            )
        super().__init__(image_processor, tokenizer)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: str | PathLike, **kwargs
    ) -> Self:
        """
        Load a processor, see [`~transformers.ProcessorMixin.from_pretrained`], and try it on a picture and a word.

        Args:
            trust_remote_code (`bool`, *optional*, defaults to `False`): whether code of the repository may run, where its
                image processor or tokenizer is not of transformers. `False` raises an error; nobody is asked.

        Raises:
            OSError: the folder or repository has no processor, or cannot be read.
            CnnRnnLoadingError: a file is missing, damaged or wrong, or the tokenizer has words that the captioner beside
                it lacks. It is both an `OSError` and a `ValueError`, and names the file, and the field where one is at
                fault.
        """
        place = find_pretrained(pretrained_model_name_or_path)
        # a question on the terminal would keep a job waiting
        kwargs["trust_remote_code"] = bool(kwargs.get("trust_remote_code"))
        with explain_errors(place, PROCESSOR_PARTS, **kwargs):
            processor = cls._load(place, **kwargs)
            try_image_processor(processor.image_processor)
            try_tokenizer(processor.tokenizer)
        check_vocabulary(processor.tokenizer, place, {key: kwargs[key] for key in HUB_KWARGS if key in kwargs})
        return processor

    @classmethod
    def _load(cls, place: str | PathLike, **kwargs) -> Self:
        try:
            return super().from_pretrained(place, **kwargs)
        except httpx.TransportError as error:
            raise OSError(f"The processor of '{place}' could not be loaded ({error}): try again.") from error
        except (OSError, ValueError) as error:
            # transformers names a part of the processor, or other libraries
            image_processor = ("processor_config.json", "preprocessor_config.json")
            if all(_is_missing(place, name, kwargs) for name in image_processor) or _is_missing(
                place, "tokenizer.json", kwargs
            ):
                raise CnnRnnLoadingError(
                    f"'{place}' holds no processor (processor_config.json, tokenizer.json): pass a captioner, or save a "
                    "processor there with `processor.save_pretrained`."
                ) from error
            raise

    @classmethod
    def from_encoder_pretrained(
        cls,
        name_or_path: str | PathLike,
        tokenizer: PreTrainedTokenizerBase,
        image_size: int | None = None,
        **kwargs,
    ) -> Self:
        """
        Combine the image processor of a pretrained CNN with a tokenizer.

        Args:
            name_or_path: a repository of the Hub or a folder with a `preprocessor_config.json`.
            tokenizer: the tokenizer of the captions.
            image_size: height of `pixel_values`, in place of the CNN's own; the sizes of resizing and cropping change in
                proportion. Many CNNs recognize more in images somewhat larger than those of their training
                (https://arxiv.org/abs/1906.06423), and divide them into more regions.
            **kwargs: passed on to `AutoImageProcessor.from_pretrained`.

        Raises:
            OSError: there is no `preprocessor_config.json`.
            ValueError: `image_size` is less than 1.
        """
        return cls(load_image_processor(name_or_path, image_size, **kwargs), tokenizer)

    @classmethod
    def from_image_size(
        cls,
        image_size: int | tuple[int, int],
        tokenizer: PreTrainedTokenizerBase,
        center_crop: bool = False,
        image_mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
        image_std: Sequence[float] = IMAGENET_DEFAULT_STD,
        resample: Image.Resampling = Image.Resampling.BICUBIC,
    ) -> Self:
        """
        Combine an image processor of a given size, for a CNN that is trained from scratch, with a tokenizer.

        Args:
            image_size: height and width of `pixel_values`; one number for a square.
            tokenizer: the tokenizer of the captions.
            center_crop: whether the shortest edge of an image is resized to `image_size` and the middle is cut out. If
                not, the whole image is squashed to `image_size`, and none of it is lost.
            image_mean: mean of each channel of images in [0, 1].
            image_std: standard deviation of each channel of images in [0, 1].
            resample: the filter that resizes.

        Raises:
            ValueError: `image_size` is less than 1; `center_crop` with two different numbers as `image_size`.
        """
        check_image_size(image_size)
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        if center_crop and height != width:
            raise ValueError(
                f"`image_size` is {image_size}: `center_crop=True` needs one number, the size of a square."
            )
        image_processor = BitImageProcessorPil(
            size={"shortest_edge": height} if center_crop else {"height": height, "width": width},
            do_center_crop=center_crop,
            crop_size={"height": height, "width": width},
            image_mean=list(image_mean),
            image_std=list(image_std),
            resample=resample,
        )
        return cls(image_processor, tokenizer)

    def __call__(  # type: ignore[override]
        self,
        images: ImageInput | str | PathLike | list | None = None,
        text: TextInput | list[TextInput] | None = None,
        draft: bool = True,
        **kwargs: Any,
    ) -> BatchFeature:
        """
        Prepare images, prompts and captions for [`CnnRnnForConditionalGeneration`].

        Args:
            images: an image or several: anything that [`load_image`] takes, lists of it, or a 4-D array or tensor.
                Whether an array is in [0, 1] or in [0, 255] is inferred for each image; do not pass `do_rescale=False`.
            text: prompts that the model continues, one for each image, or one string for all. `""` is no prompt.
            draft: whether a JPEG file with at least six times the sides to which it is resized is decoded at a half, a
                quarter or an eighth of its size: twice as fast, and pixels in [0, 1] differ by 0.002 in the mean. `False`
                decodes every pixel, as of an image of PIL.
            text_target (`str`, `list[str]` or `list[list[str]]`, *optional*): captions to learn, one for each image,
                or for each image a list of the same number K of captions.
            return_tensors (`str`, *optional*): `"pt"` or `"np"`.
            padding, max_length, truncation, pad_to_multiple_of (*optional*): as in a tokenizer, for prompts and for
                captions. `max_length` counts `<bos>` or `<eos>`, which stay when the words at the end are cut off; as
                in a tokenizer that does not pad, it truncates unless `truncation=False`. Without `padding`, sequences
                are padded to the longest.
            **kwargs: other options of the tokenizer and of the image processor, also as `text_kwargs` and
                `images_kwargs`. `add_special_tokens=False` leaves out the `<bos>` of prompts; `input_data_format` says
                where the channels of an array are.

        Returns:
            The inputs for the arguments that were passed:
            - `pixel_values` `(batch_size, 3, height, width)`;
            - `input_ids` and `attention_mask` `(batch_size, T)`: `<bos>` and the prompt, padded on the right;
            - `labels` `(batch_size, T)` or `(batch_size, K, T)`: the caption and one `<eos>`, padded with -100.

        Raises:
            ValueError: no argument is passed, or an empty list; an image is not usable (see [`load_image`]), or so
                narrow that resizing it would fill the memory; a caption has no word, or no known word; the numbers of
                images, prompts or captions differ.
            OSError: an image cannot be read (see [`load_image`]).
        """
        merged = self._merge_kwargs(
            self.valid_processor_kwargs,  # type: ignore[arg-type]
            tokenizer_init_kwargs=self.tokenizer.init_kwargs,
            **kwargs,
        )
        text_kwargs, images_kwargs = merged["text_kwargs"], merged["images_kwargs"]
        return_tensors = images_kwargs.pop("return_tensors", None) or text_kwargs.get("return_tensors")
        captions = text_kwargs.pop("text_target", None)
        if images is None and text is None and captions is None:
            raise ValueError("Pass `images`, `text` or `text_target`: there is nothing to process.")

        data: dict[str, Any] = {}
        num_images = None
        if images is not None:
            samples, num_images = _as_batch(images)
            data.update(self._process_samples(samples, draft, images_kwargs))
        if text is not None:
            # what the caller says; the default of the class is for the tokenizer's template
            asked = {**kwargs, **kwargs.get("text_kwargs", {})}
            add_bos = asked.get("add_special_tokens") is not False
            data.update(self._process_prompts(text, num_images, add_bos, text_kwargs))
        if captions is not None:
            data["labels"] = self._process_captions(captions, num_images, text_kwargs)
        return BatchFeature(data, tensor_type=return_tensors)

    def load_image(self, image: Any, draft: bool = True, **options: Any) -> Image.Image:
        """
        Load an image for this processor, see [`load_image`].

        Args:
            draft: as in [`~CnnRnnProcessor.__call__`].
            options: arguments of [`load_image`].
        """
        return load_image(image, min_side=self._min_side(image, draft, {}), **options)

    def _min_side(self, image: Any, draft: bool, kwargs: dict[str, Any]) -> int | None:
        """Compute the side that a JPEG must keep; `None` for an image that somebody has opened: it stays as large as it is."""
        if not draft or isinstance(image, Image.Image):
            return None
        sizes = {name: kwargs[name] for name in ("do_resize", "size", "crop_pct") if name in kwargs}
        return needed_side(self.image_processor, DRAFT_MARGIN, **sizes)

    def _process_samples(self, samples: list, draft: bool, kwargs: dict[str, Any]) -> BatchFeature:
        data_format = kwargs.pop("input_data_format", None)
        rgb = []
        for i, sample in enumerate(samples):
            name = f"images[{i}]" if len(samples) > 1 else "images"
            if kwargs.get("do_rescale") is False and is_unit_range(sample):
                raise ValueError(
                    f"`{name}` is in [0, 1] and `do_rescale` is False: leave `do_rescale` out, images in [0, 1] and in "
                    f"[0, 255] are told apart and scaled once."
                )
            min_side = self._min_side(sample, draft, kwargs)
            image = load_image(sample, name=name, input_data_format=data_format, min_side=min_side)
            self._check_aspect_ratio(image, name, kwargs)
            rgb.append(image)
        if getattr(self.image_processor, "do_convert_rgb", None):
            kwargs.setdefault("do_convert_rgb", False)  # they are RGB, and transformers would copy each
        return self.image_processor(rgb, **kwargs)

    def _check_aspect_ratio(self, image: Image.Image, name: str, kwargs: dict[str, Any]):
        """Refuse an image that would fill the memory when its shortest edge is resized."""
        option = {key: kwargs.get(key, getattr(self.image_processor, key, None)) for key in ("do_resize", "size")}
        if not option["do_resize"] or option["size"] is None:
            return
        size = get_size_dict(option["size"], default_to_square=getattr(self.image_processor, "default_to_square", True))
        shortest_edge = size.get("shortest_edge")
        if not shortest_edge or size.get("longest_edge"):
            return
        longest_edge = shortest_edge * max(image.size) // min(image.size)
        if shortest_edge * longest_edge > max(MAX_RESIZED_PIXELS, image.width * image.height):
            raise ValueError(
                f"`{name}` has {image.width} x {image.height} pixels, which resizing to a shortest edge of "
                f"{shortest_edge} makes {shortest_edge} x {longest_edge}: crop it first."
            )

    def _process_prompts(
        self, text: TextInput | list[TextInput], num_images: int | None, add_bos: bool, kwargs: dict[str, Any]
    ) -> dict[str, list]:
        prompts = [text] * (num_images or 1) if isinstance(text, str) else list(text)
        check_strings(prompts, "text")
        if num_images is not None and len(prompts) != num_images:
            raise ValueError(
                f"`text` holds {len(prompts)} prompts for {num_images} images: pass one for each image, or one string."
            )
        bos = [self.tokenizer.bos_token_id] if add_bos else []
        limit = _max_length(kwargs, len(bos))
        prompts_ids = [bos + ids[:limit] for ids in self._encode(prompts)]
        return {
            "input_ids": _pad(prompts_ids, self.tokenizer.pad_token_id, kwargs),
            "attention_mask": _pad([[1] * len(ids) for ids in prompts_ids], 0, kwargs),
        }

    def _process_captions(
        self, captions: str | list[str] | list[list[str]], num_images: int | None, kwargs: dict[str, Any]
    ) -> list:
        groups: list[Any] = [captions] if isinstance(captions, str) else list(captions)
        if num_images is not None and len(groups) != num_images:
            raise ValueError(
                f"`text_target` holds {len(groups)} captions for {num_images} images: pass one caption for each image, "
                f"or for each image a list of its captions."
            )
        if not groups or not all(isinstance(group, list | tuple) for group in groups):
            return self._labels(groups, kwargs)
        sizes = {len(group) for group in groups}
        if len(sizes) != 1 or 0 in sizes:
            raise ValueError(
                f"`text_target` holds lists of {sorted(sizes)} captions: pass the same number for each image."
            )
        labels = self._labels([caption for group in groups for caption in group], kwargs)
        per_image = sizes.pop()
        return [labels[i : i + per_image] for i in range(0, len(labels), per_image)]

    def encode_captions(self, captions: list[str], max_length: int | None = None) -> list[list[int]]:
        """
        Encode captions as the model learns them: the token ids of the words, and one `<eos>`.

        Args:
            captions: sentences; an `<eos>` typed in one of them is a word like any other.
            max_length: largest number of tokens with the `<eos>`, which stays when the words at the end are cut off.

        Returns:
            The labels of each caption, not padded; those of a caption without a word are the `<eos>` alone.
        """
        limit = None if max_length is None else max_length - 1
        return [[*ids[:limit], self.tokenizer.eos_token_id] for ids in self._encode(captions)] if captions else []

    def _labels(self, captions: list[str], kwargs: dict[str, Any]) -> list[list[int]]:
        """Encode captions and pad them with -100 to one length."""
        check_strings(captions, "text_target")
        limit = _max_length(kwargs, 1)
        labels = self.encode_captions(captions, None if limit is None else limit + 1)
        for caption, ids in zip(captions, labels, strict=True):
            words = set(ids[:-1])
            if not words:
                raise ValueError(f"`text_target` holds the caption {caption!r}, which has no word: leave it out.")
            if words == {self.tokenizer.unk_token_id}:
                raise ValueError(
                    f"`text_target` holds the caption {caption!r}, of which the tokenizer knows no word: leave it out, "
                    f"or build the tokenizer from captions like it."
                )
        return _pad(labels, IGNORE_INDEX, kwargs)

    def _encode(self, texts: list[str]) -> list[list[int]]:
        # an "<eos>" that a caption's author has typed is a word like any other
        return self.tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    def batch_decode(self, sequences, skip_special_tokens: bool = False, **kwargs) -> list[str]:
        """
        Decode generated sequences or `labels` to sentences.

        Args:
            sequences: token ids `(batch_size, T)`, as tensor, array or lists; -100 is left out.
            skip_special_tokens: whether special tokens and repeated spaces are left out. The tokenizers that
                `build_tokenizer` makes leave out padding, beginning and end in any case.
            **kwargs: passed on to the tokenizer.
        """
        texts = self.tokenizer.batch_decode(
            [_without_ignored(sequence) for sequence in to_py_obj(sequences)],
            skip_special_tokens=skip_special_tokens,
            **kwargs,
        )
        return [" ".join(text.split()) for text in texts] if skip_special_tokens else texts

    def decode(self, token_ids, skip_special_tokens: bool = False, **kwargs) -> str | list[str]:
        """Decode one sequence `(T,)`, or a batch as [`~CnnRnnProcessor.batch_decode`] does."""
        token_ids = to_py_obj(token_ids)
        if isinstance(token_ids, int):
            token_ids = [token_ids]
        if token_ids and isinstance(token_ids[0], list | tuple):
            return self.batch_decode(token_ids, skip_special_tokens=skip_special_tokens, **kwargs)
        return self.batch_decode([token_ids], skip_special_tokens=skip_special_tokens, **kwargs)[0]

    def save_pretrained(self, save_directory, push_to_hub: bool = False, **kwargs):
        """Save both components to a folder, see [`~transformers.ProcessorMixin.save_pretrained`]."""
        try:
            return super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)
        finally:
            # an entry of the file alone: with it, this processor and one loaded from there would differ
            vars(self).pop("auto_map", None)

    @property
    def unused_input_names(self) -> list[str]:
        return ["token_type_ids"]


def load_image_processor(name_or_path: str | PathLike, image_size: int | None = None, **kwargs):
    """
    Load the image processor of a pretrained CNN.

    Args:
        name_or_path: a repository of the Hub or a folder with a `preprocessor_config.json`.
        image_size: height of `pixel_values`, in place of the CNN's own; the sizes of resizing and cropping change in
            proportion.
        **kwargs: passed on to `AutoImageProcessor.from_pretrained`.

    Raises:
        OSError: there is no `preprocessor_config.json`.
        ValueError: `image_size` is less than 1.
    """
    check_image_size(image_size)
    image_processor = AutoImageProcessor.from_pretrained(name_or_path, **{"backend": "pil", **kwargs})
    if image_size is not None:
        is_cropped = getattr(image_processor, "do_center_crop", False)
        seen = image_processor.crop_size if is_cropped else image_processor.size
        factor = image_size / (seen.height or seen.shortest_edge)
        for name in ("size", "crop_size"):
            edges = getattr(image_processor, name, None)
            if edges is not None:
                scaled = {edge: round(length * factor) for edge, length in dict(edges).items()}
                setattr(image_processor, name, SizeDict(**scaled))
    return image_processor


def _is_missing(place: str | PathLike, name: str, kwargs: dict[str, Any]) -> bool:
    """Return whether a folder or repository that can be read has no file of this name."""
    if os.path.isdir(place):
        return not os.path.isfile(os.path.join(place, kwargs.get("subfolder") or "", name))
    try:
        hf_hub_download(str(place), name, **{key: kwargs[key] for key in HUB_KWARGS if key in kwargs})
    except RemoteEntryNotFoundError:
        return True
    except Exception:  # any other error says nothing about this file
        return False
    return False


def _as_batch(images: Any) -> tuple[list, int]:
    """Make a list of images from one image or many; a sample in a list of lists may have no image. Also count samples."""
    if isinstance(images, np.ndarray | torch.Tensor):
        return (list(images), len(images)) if images.ndim == 4 and len(images) else ([images], 1)
    if isinstance(images, str | PathLike | bytes | Image.Image | Mapping) or not hasattr(images, "__iter__"):
        return [images], 1
    images = list(images)
    if not images:
        raise ValueError("`images` is an empty list: pass at least one image.")
    if not all(isinstance(sample, list | tuple) for sample in images):
        return images, len(images)
    flat = [image for sample in images for image in sample]
    if not flat or any(len(sample) > 1 for sample in images):
        raise ValueError(f"`images` holds lists of {[len(sample) for sample in images]} images: pass one in each.")
    return flat, len(images)


def _max_length(kwargs: dict[str, Any], num_special_tokens: int) -> int | None:
    """Return the number of words that `max_length` leaves room for."""
    max_length = kwargs.get("max_length")
    if max_length is None or kwargs.get("truncation", True) in (False, "do_not_truncate"):
        return None
    if max_length <= num_special_tokens:
        raise ValueError(f"`max_length` is {max_length}: pass {num_special_tokens + 1} or more, it counts all tokens.")
    return max_length - num_special_tokens


def _pad(sequences: list[list[int]], value: int, kwargs: dict[str, Any]) -> list[list[int]]:
    """Fill sequences with `value` on the right to one length."""
    padding = kwargs.get("padding", True)
    if padding in (False, "do_not_pad"):
        return sequences
    length = max(len(sequence) for sequence in sequences)
    if padding == "max_length":
        length = max(length, kwargs.get("max_length") or 0)
    multiple = kwargs.get("pad_to_multiple_of") or 1
    length = -(-length // multiple) * multiple
    return [sequence + [value] * (length - len(sequence)) for sequence in sequences]


def _without_ignored(sequence: list[int] | tuple[int, ...]) -> list[int]:
    """Leave out the -100 that pads `labels`."""
    return [token for token in sequence if token != IGNORE_INDEX]


__all__ = ["CnnRnnProcessor"]
