"""
Deep Visual-Semantic Alignments: a CNN embeds the regions of an image, a bidirectional RNN the words of a sentence, and the
best region of each word says how well the two fit (https://arxiv.org/abs/1412.2306, section 3.1).

    pixel_values (B, 3, H, W) -> CNN -> regions (B, R, E)
    input_ids (N, T) -> word vectors -> RNN in both directions -> words (N, T, E)
    regions x words -> (B, R, N, T) -> the best region -> (B, N, T) -> the mean word -> logits_per_image (B, N)
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import normalize
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput, can_return_tuple

from .alignment_cnnrnn import CnnRnnAlignmentMixin
from .base_cnnrnn import CnnRnnPreTrainedModel
from .configuration_alignment_cnnrnn import CnnRnnAlignmentConfig
from .loss_alignment_cnnrnn import contrastive_loss
from .region_encoder_cnnrnn import CnnRnnRegionEncoder, CnnRnnRegionOutput
from .similarity_cnnrnn import MAX_PRODUCTS, score_pooled, score_sentences
from .text_encoder_cnnrnn import CnnRnnTextEncoder


MAX_LOGIT_SCALE = math.log(100)  # as CLIP's


@dataclass
class CnnRnnWordOutput(BaseModelOutputWithPooling):
    """
    Words of sentences.

    Args:
        last_hidden_state: the words, `(num_sentences, T, embedding_size)`, 0 where a token is none.
        pooler_output: their mean, `(num_sentences, embedding_size)`, of length 1 where the words are.
        word_mask: which tokens are words, `(num_sentences, T)`.
    """

    last_hidden_state: torch.Tensor = None  # type: ignore[assignment]
    pooler_output: torch.Tensor = None  # type: ignore[assignment]
    word_mask: torch.Tensor = None  # type: ignore[assignment]


@dataclass
class CnnRnnAlignmentOutput(ModelOutput):
    """
    Scores of images and sentences, named as CLIP's.

    Args:
        loss: the ranking loss, if `return_loss=True`.
        logits_per_image: `(B, N)`: the scores, with `contrastive_loss="info_nce"` divided by the temperature.
        logits_per_text: `(N, B)`, the same.
        text_embeds: mean of the words of each sentence, `(N, embedding_size)`.
        image_embeds: mean of the regions of each image, `(B, embedding_size)`.
        text_model_output: the words.
        vision_model_output: the regions.
    """

    loss: torch.Tensor | None = None
    logits_per_image: torch.Tensor | None = None
    logits_per_text: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    image_embeds: torch.Tensor | None = None
    text_model_output: CnnRnnWordOutput | None = None
    vision_model_output: CnnRnnRegionOutput | None = None


class CnnRnnAlignmentPreTrainedModel(CnnRnnPreTrainedModel):
    """Initialize and load the models of the alignment."""

    config: CnnRnnAlignmentConfig
    _no_split_modules = ["CnnRnnTextEncoder"]  # noqa: RUF012
    _own_weights = "text_encoder."

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, CnnRnnAlignmentModel) and module.logit_scale is not None:
            init.constant_(module.logit_scale, self.config.logit_scale_init_value)


class CnnRnnAlignmentModel(CnnRnnAlignmentPreTrainedModel):
    """The regions of images and the words of sentences in one space, and how well they fit."""

    def __init__(self, config: CnnRnnAlignmentConfig):
        super().__init__(config)
        self.encoder = CnnRnnRegionEncoder(config)
        self.text_encoder = CnnRnnTextEncoder(config)
        self.logit_scale = None
        if config.contrastive_loss == "info_nce":
            self.logit_scale = nn.Parameter(torch.tensor(float(config.logit_scale_init_value)))
        self.post_init()

    def get_encoder(self, modality: str | None = None):
        return self.text_encoder if modality == "text" else self.encoder

    def get_input_embeddings(self):
        return self.text_encoder.embed_tokens

    def set_input_embeddings(self, value):
        self.text_encoder.embed_tokens = value

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: torch.Tensor | None = None,
        image_features: torch.Tensor | None = None,
        boxes: torch.Tensor | Sequence[torch.Tensor] | None = None,
        image_size: tuple[int, int] | None = None,
        output_boxes: bool = False,
        **kwargs,
    ) -> CnnRnnRegionOutput:
        """
        Embed the regions of images.

        Args:
            pixel_values: `(B, num_channels, height, width)`.
            image_features: `(B, num_cells, num_feature_channels)` from `get_encoder().get_image_features`, or reduced by
                `get_encoder().reduce_features`, or averaged to a coarser grid, in place of `pixel_values`.
            boxes: regions in place of the cells: `(B, num_boxes, 4)`, or for each image `(num_boxes, 4)`; x_min, y_min, x_max,
                y_max in parts of the width and height of the picture that the CNN sees, from 0 to 1. The whole image is added
                to them as to the cells. `find_view(processor, image).to_parts(boxes)` makes them of boxes in pixels.
            image_size: height and width of the `pixel_values` that `image_features` were computed from, if boxes are given or
                wanted, or the cells are no square.
            output_boxes: whether to return the boxes of the cells too.

        Returns:
            `last_hidden_state` `(B, R, embedding_size)`, `pooler_output` `(B, embedding_size)`, `region_mask` `(B, R)` or
            `None`, `boxes` and `centers`, see [`CnnRnnRegionOutput`].

        Raises:
            ValueError: neither or both of the inputs are given, they do not fit the model, or a box is outside the picture or
                has no area.
        """
        return self.encoder(pixel_values, image_features, boxes, image_size, output_boxes)

    @can_return_tuple
    def get_text_features(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs
    ) -> CnnRnnWordOutput:
        """
        Embed the words of sentences.

        Args:
            input_ids: `(N, T)`. Beginning, end and padding of a sentence are no words.
            attention_mask: `(N, T)`, 0 where a token is padding.

        Returns:
            `last_hidden_state` `(N, T, embedding_size)`, `pooler_output` `(N, embedding_size)`, `word_mask` `(N, T)`.

        Raises:
            ValueError: a sentence has no word that the vocabulary knows, or a token is outside it.
        """
        words, mask = self.text_encoder(input_ids, attention_mask)
        if self.config.normalize_embeddings:
            words = normalize(words, dim=-1)
        pooled = words.sum(dim=1) / mask.sum(dim=1, keepdim=True)
        if self.config.normalize_embeddings:
            pooled = normalize(pooled, dim=-1)
        return CnnRnnWordOutput(last_hidden_state=words, pooler_output=pooled, word_mask=mask)

    def similarity(
        self,
        image_output: CnnRnnRegionOutput,
        text_output: CnnRnnWordOutput,
        max_products: int = MAX_PRODUCTS,
    ) -> torch.Tensor:
        """
        Score all images with all sentences.

        Args:
            image_output: of `get_image_features`.
            text_output: of `get_text_features`.
            max_products: number of products of a region and a word that are in memory at once.

        Returns:
            `(B, N)` in float32, without the temperature.
        """
        config = self.config
        pooled = score_pooled(image_output.pooler_output, text_output.pooler_output)
        if config.score_type == "pooled":
            return pooled
        scores = score_sentences(
            image_output.last_hidden_state,
            text_output.last_hidden_state,
            text_output.word_mask,
            image_output.region_mask,
            config.attention_sharpness if config.score_type == "attention" else None,
            config.word_reduction,
            max_products,
        )
        return scores + pooled if config.add_pooled_score else scores

    def scale(self, scores: torch.Tensor) -> torch.Tensor:
        """Divide scores by the learned temperature, if there is one."""
        return scores if self.logit_scale is None else scores * self.logit_scale.clamp(max=MAX_LOGIT_SCALE).exp()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        image_features: torch.Tensor | None = None,
        boxes: torch.Tensor | Sequence[torch.Tensor] | None = None,
        image_size: tuple[int, int] | None = None,
        **kwargs,
    ) -> CnnRnnAlignmentOutput:
        """
        Score B images with N sentences, each with each.

        Args:
            pixel_values, image_features, boxes, image_size: as for `get_image_features`.
            input_ids: `(N, T)`, or `(B, K, T)` for K sentences of each image, N = B * K.
            attention_mask: as `input_ids`, 0 where a token is padding.

        Raises:
            ValueError: `input_ids` are missing, or as `get_image_features` and `get_text_features`.
        """
        if input_ids is None:
            raise ValueError("Pass `input_ids`, the words to compare the images with.")
        if input_ids.ndim == 3:
            attention_mask = None if attention_mask is None else attention_mask.flatten(0, 1)
            input_ids = input_ids.flatten(0, 1)
        image_output = self.get_image_features(pixel_values, image_features, boxes, image_size, return_dict=True)
        text_output = self.get_text_features(input_ids, attention_mask, return_dict=True)
        logits = self.scale(self.similarity(image_output, text_output))
        return CnnRnnAlignmentOutput(
            logits_per_image=logits,
            logits_per_text=logits.T,
            text_embeds=text_output.pooler_output,
            image_embeds=image_output.pooler_output,
            text_model_output=text_output,
            vision_model_output=image_output,
        )


class CnnRnnForImageTextRetrieval(CnnRnnAlignmentPreTrainedModel, CnnRnnAlignmentMixin):
    """
    Finds images by sentences and sentences by images, and says which words belong to which region.

    ```python
    >>> from modeling_cnnrnn import CnnRnnForImageTextRetrieval, CnnRnnProcessor

    >>> model = CnnRnnForImageTextRetrieval.from_pretrained("outputs/alignment")
    >>> processor = CnnRnnProcessor.from_pretrained("outputs/alignment")
    >>> inputs = processor(images=images, return_tensors="pt") | processor(text=sentences, return_tensors="pt")
    >>> model(**inputs).logits_per_image.softmax(dim=1)
    >>> model.align(images[0], sentences[0], processor)  # [(box, text, score), ...]
    ```

    The regions are cells of the CNN, or the boxes of any object detector of transformers:

    ```python
    >>> from modeling_cnnrnn import detect_boxes
    >>> from transformers import AutoImageProcessor, AutoModelForObjectDetection

    >>> detector = AutoModelForObjectDetection.from_pretrained("hustvl/yolos-tiny")
    >>> detector_processor = AutoImageProcessor.from_pretrained("hustvl/yolos-tiny")
    >>> boxes = detect_boxes(detector, detector_processor, images[0])  # [(left, top, right, bottom), ...] in pixels
    >>> model.align(images[0], sentences[0], processor, boxes=boxes)
    ```
    """

    def __init__(self, config: CnnRnnAlignmentConfig):
        super().__init__(config)
        self.model = CnnRnnAlignmentModel(config)
        self.post_init()

    def get_encoder(self, modality: str | None = None):
        return self.model.get_encoder(modality)

    def get_input_embeddings(self):
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value):
        self.model.set_input_embeddings(value)

    def get_image_features(self, *args, **kwargs) -> CnnRnnRegionOutput:
        """See [`CnnRnnAlignmentModel.get_image_features`]."""
        return self.model.get_image_features(*args, **kwargs)

    def get_text_features(self, *args, **kwargs) -> CnnRnnWordOutput:
        """See [`CnnRnnAlignmentModel.get_text_features`]."""
        return self.model.get_text_features(*args, **kwargs)

    def similarity(self, *args, **kwargs) -> torch.Tensor:
        """See [`CnnRnnAlignmentModel.similarity`]."""
        return self.model.similarity(*args, **kwargs)

    def save_pretrained(self, save_directory, *args, **kwargs):
        """Save as transformers does, and the code, so that `trust_remote_code=True` loads it without this package."""
        self.config.auto_map = {
            **(getattr(self.config, "auto_map", None) or {}),
            "AutoModel": "modeling_alignment_cnnrnn.CnnRnnAlignmentModel",
        }
        super().save_pretrained(save_directory, *args, **kwargs)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        image_features: torch.Tensor | None = None,
        boxes: torch.Tensor | Sequence[torch.Tensor] | None = None,
        image_size: tuple[int, int] | None = None,
        labels: torch.Tensor | None = None,
        image_ids: torch.Tensor | None = None,
        return_loss: bool | None = None,
        **kwargs,
    ) -> CnnRnnAlignmentOutput:
        """
        Score B images with N sentences, each with each, and compute the loss.

        Args:
            pixel_values, image_features, boxes, image_size: as for `get_image_features`.
            input_ids: `(N, T)`, or `(B, K, T)` for K sentences of each image, N = B * K.
            attention_mask: as `input_ids`, 0 where a token is padding.
            labels: the image of each sentence, an index from 0 to B - 1, `(N,)`. By default K = N / B sentences belong to each
                image, in order.
            image_ids: numbers of the images, `(B,)`: two rows of one number are not each other's negatives.
            return_loss: whether to compute the loss, by default if `labels` or `image_ids` are given.

        Returns:
            `loss`, `logits_per_image` `(B, N)`, `logits_per_text` `(N, B)`, `image_embeds`, `text_embeds`, and what they are
            made of, see [`CnnRnnAlignmentOutput`].

        Raises:
            ValueError: with a loss, the batch has one image alone, or the numbers of images and sentences do not fit.
        """
        outputs = self.model(
            pixel_values, input_ids, attention_mask, image_features, boxes, image_size, return_dict=True
        )
        if return_loss is None:
            return_loss = labels is not None or image_ids is not None
        if return_loss:
            num_images, num_sentences = outputs.logits_per_image.shape
            if labels is None:
                if num_sentences % num_images:
                    raise ValueError(
                        f"`input_ids` holds {num_sentences} sentences for {num_images} images: pass `labels`, the index of "
                        "the image of each sentence."
                    )
                images = torch.arange(num_images, device=outputs.logits_per_image.device)
                labels = images.repeat_interleave(num_sentences // num_images)
            outputs.loss = contrastive_loss(
                outputs.logits_per_image, labels, image_ids, self.config.contrastive_loss, self.config.margin
            )
        return outputs


__all__ = ["CnnRnnAlignmentModel", "CnnRnnAlignmentOutput", "CnnRnnForImageTextRetrieval", "CnnRnnWordOutput"]
