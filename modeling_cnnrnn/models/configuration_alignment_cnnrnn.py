"""Configuration of the alignment of image regions and words."""

import math
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from .configuration_base_cnnrnn import MAX_PARAMETERS, CnnRnnPreTrainedConfig


# Deep Visual-Semantic Alignments to the letter, as keywords of the configuration: `CnnRnnAlignmentConfig(**PAPER, ...)`.
# Regions are the boxes of a detector, `boxes=`, and the whole image. It learns far more slowly than the defaults.
PAPER: dict[str, Any] = {
    "embedding_size": 1000,
    "hidden_size": 1000,
    "word_embedding_size": 300,
    "rnn_type": "rnn_relu",
    "normalize_embeddings": False,
    "score_type": "max",
    "word_reduction": "sum",
    "add_pooled_score": False,
    "contrastive_loss": "sum_hinge",
    "margin": 1.0,
    "word_dropout": 0.0,
    "feature_dropout": 0.5,
    "dropout": 0.5,
    "smoothness": 1.0,
}


@strict
class CnnRnnAlignmentConfig(CnnRnnPreTrainedConfig):
    r"""
    Configure a [`CnnRnnForImageTextRetrieval`]: a CNN that embeds the regions of an image, an RNN that embeds the words of a
    sentence in the same space, and the score of the two (Deep Visual-Semantic Alignments, https://arxiv.org/abs/1412.2306).

    The defaults are what learns well on Flickr8k; `PAPER` holds the paper's choices as keywords.

    Args:
        encoder (`PreTrainedConfig` or `dict`, *optional*, defaults to a ResNet-50):
            Configuration of any CNN, as in [`CnnRnnConfig`].
        vision_feature_layer (`int`, *optional*, defaults to -1):
            The layer of the CNN whose features are used, as in [`CnnRnnConfig`].
        reduced_feature_size (`int`, *optional*):
            Number of principal components that the channels of the CNN are reduced to, by a linear map that is not trained
            (see `CnnRnnRegionEncoder.fit_reduction`). By default the channels are projected as they are.
        region_grid_size (`int`, *optional*):
            The cells of the CNN are averaged to a grid of this height and width. By default each cell is a region.
        add_whole_image (`bool`, *optional*, defaults to `True`):
            Whether the whole image, the mean of its cells, is one more region, the last one.
        vocab_size (`int`, *optional*, defaults to 10000):
            Number of words, special tokens included.
        embedding_size (`int`, *optional*, defaults to 256):
            Size of the space that words and image regions are embedded in.
        word_embedding_size (`int`, *optional*, defaults to 300):
            Size of the word vectors that the RNN reads.
        rnn_type (`str`, *optional*, defaults to `"gru"`):
            How a word learns of its context: `"rnn_relu"` is the bidirectional RNN of the paper (equations 2 to 6), `"gru"`
            and `"lstm"` are bidirectional too, `"window"` sees two words on each side, `"none"` sees the word alone.
            Words with a window point at their object most reliably.
        hidden_size (`int`, *optional*, defaults to 256):
            Size of the recurrent state in each direction; a window has twice as many units.
        add_word_skip (`bool`, *optional*, defaults to `False`):
            Whether a linear map of the word vector is added to what its context says.
        normalize_embeddings (`bool`, *optional*, defaults to `True`):
            Whether regions and words have length 1, so that their products are cosines.
        score_type (`str`, *optional*, defaults to `"max"`):
            How an image and a word are compared: `"max"` takes the best region (equation 8; late interaction or MaxSim in
            later work), `"attention"` the cosine of the word with the mixture of regions that it attends to (SCAN,
            https://arxiv.org/abs/1803.08024), and `"pooled"` compares whole images with whole sentences alone.
        attention_sharpness (`float`, *optional*, defaults to 9.0):
            Inverse temperature lambda of `score_type="attention"`.
        word_reduction (`str`, *optional*, defaults to `"mean"`):
            Whether the scores of the words are averaged (`"mean"`) or added (`"sum"`, equation 8).
        add_pooled_score (`bool`, *optional*, defaults to `True`):
            Whether the cosine of the mean region and the mean word is added to the score.
        contrastive_loss (`str`, *optional*, defaults to `"info_nce"`):
            `"info_nce"` is CLIP's cross-entropy with a learned temperature, `"sum_hinge"` the ranking loss of the paper
            (equation 9), `"max_hinge"` that of the hardest negatives alone (VSE++, https://arxiv.org/abs/1707.05612).
        margin (`float`, *optional*, defaults to 0.2):
            Margin of the two ranking losses.
        logit_scale_init_value (`float`, *optional*, defaults to `log(1 / 0.02)`):
            Initial logarithm of the inverse temperature of `"info_nce"`. A mean of maxima moves in a narrow band, so it
            starts lower than CLIP's 0.07.
        smoothness (`float`, *optional*, defaults to 0.2):
            Gain beta of neighbouring words that share a region, in the unit of the scores.
        feature_dropout (`float`, *optional*, defaults to 0.2):
            Dropout of whole channels of the image features.
        word_dropout (`float`, *optional*, defaults to 0.2):
            Dropout of whole coordinates of the word vectors of a sentence.
        dropout (`float`, *optional*, defaults to 0.2):
            Dropout before the last layer of the words.
        initializer_range (`float`, *optional*, defaults to 0.05):
            Standard deviation of the initial word vectors and linear layers.
        pad_token_id, bos_token_id, eos_token_id, unk_token_id (`int`, *optional*, default to 0, 1, 2, 3):
            Ids of the special tokens. The first three are not words, and have no region.

    Raises:
        StrictDataclassFieldValidationError: a field has the wrong type or is not one of its choices.
        StrictDataclassClassValidationError: two fields do not fit each other; the sentence names them.

    ```python
    >>> from modeling_cnnrnn import CnnRnnAlignmentConfig, CnnRnnForImageTextRetrieval

    >>> model = CnnRnnForImageTextRetrieval(CnnRnnAlignmentConfig(rnn_type="window"))
    ```
    """

    model_type = "cnnrnn_alignment"
    sub_configs_defaults = {"encoder": SubConfigSpec(config_class=AutoConfig, model_type="resnet")}  # noqa: RUF012

    encoder: dict | PreTrainedConfig | None = None
    vision_feature_layer: int = -1
    reduced_feature_size: int | None = None
    region_grid_size: int | None = None
    add_whole_image: bool = True
    vocab_size: int = 10000
    embedding_size: int = 256
    word_embedding_size: int = 300
    rnn_type: Literal["gru", "lstm", "rnn_relu", "window", "none"] = "gru"
    hidden_size: int = 256
    add_word_skip: bool = False
    normalize_embeddings: bool = True
    score_type: Literal["max", "attention", "pooled"] = "max"
    attention_sharpness: float | int = 9.0
    word_reduction: Literal["mean", "sum"] = "mean"
    add_pooled_score: bool = True
    contrastive_loss: Literal["info_nce", "sum_hinge", "max_hinge"] = "info_nce"
    margin: float | int = 0.2
    logit_scale_init_value: float | int = math.log(1 / 0.02)
    smoothness: float | int = 0.2
    feature_dropout: float | int = 0.2
    word_dropout: float | int = 0.2
    dropout: float | int = 0.2
    initializer_range: float | int = 0.05
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    unk_token_id: int | None = 3

    def validate_architecture(self):
        """Check conditions on several fields; run by `@strict` when the configuration is made."""
        self._check_positive("vocab_size", "embedding_size", "word_embedding_size", "hidden_size")
        self._check_shares("feature_dropout", "word_dropout", "dropout")
        for name in ("reduced_feature_size", "region_grid_size"):
            if getattr(self, name) is not None:
                self._check_positive(name)
        self._check_encoder_size()
        size = max(self.hidden_size, self.embedding_size, self.reduced_feature_size or 0)
        parameters = self.word_embedding_size * (self.vocab_size + 8 * size) + 8 * size * size
        if parameters > MAX_PARAMETERS:
            raise ValueError(
                f"`vocab_size` ({self.vocab_size}), `word_embedding_size` ({self.word_embedding_size}), `hidden_size` "
                f"({self.hidden_size}) and `embedding_size` ({self.embedding_size}) make about {parameters:.1e} parameters, "
                "which no memory holds: pass smaller ones."
            )
        if self.score_type == "attention" and not self.normalize_embeddings:
            raise ValueError(
                "`score_type` is 'attention' but `normalize_embeddings` is False: attention compares directions, leave "
                "the embeddings normalized or pass `score_type='max'`."
            )
        for name in ("margin", "smoothness"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` is {getattr(self, name)}: pass 0 or more.")
        for token in self.special_token_ids():
            if not 0 <= token < self.vocab_size:
                raise ValueError(
                    f"The special token {token} is outside the vocabulary: pass ids from 0 to {self.vocab_size - 1}."
                )


__all__ = ["PAPER", "CnnRnnAlignmentConfig"]
