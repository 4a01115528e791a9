"""Configuration of the CNN+RNN captioner."""

import os
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassClassValidationError, StrictDataclassFieldValidationError
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from .error_messages_cnnrnn import shown
from .loading_cnnrnn import Part, explain_errors


DEFAULT_MAX_LENGTH = 32  # of a sentence, in tokens with the start and the end
MAX_CNN_SIZE = 2**20  # of any number in the configuration of a CNN
MAX_LAYERS = 1000  # of a decoder, or of a stage of a CNN
MAX_PARAMETERS = 2**34  # of the decoder: 64 GiB in float32


@strict
class CnnRnnConfig(PreTrainedConfig):
    r"""
    Configure a [`CnnRnnForConditionalGeneration`]: a CNN that encodes an image and an RNN that writes the sentence.

    The defaults are Show and Tell (https://arxiv.org/abs/1411.4555) on a ResNet-50: the image is the first "word" that a
    one-layer LSTM reads.

    Args:
        encoder (`PreTrainedConfig` or `dict`, *optional*, defaults to a ResNet-50):
            Configuration of any CNN that `AutoModel` knows and that returns a feature map `(batch, channels, height,
            width)`: ResNet, RegNet, ConvNeXt, EfficientNet, MobileNet, BiT, ... or timm's through `TimmWrapperConfig`.
        vision_feature_layer (`int`, *optional*, defaults to -1):
            The layer of the CNN whose features are used: -1 is its `last_hidden_state`, any other number indexes its
            `hidden_states` (0 is the stem; negative numbers count from the end).
        vocab_size (`int`, *optional*, defaults to 10000):
            Number of words, special tokens included.
        rnn_type (`str`, *optional*, defaults to `"lstm"`):
            Recurrent layer of the decoder: `"lstm"`, `"gru"`, `"rnn_tanh"` or `"rnn_relu"`.
        hidden_size (`int`, *optional*, defaults to 512):
            Size of the recurrent state.
        embedding_size (`int`, *optional*, defaults to 512):
            Size of the space that words and image regions are embedded in.
        num_hidden_layers (`int`, *optional*, defaults to 1):
            Number of recurrent layers.
        image_injection (`str`, *optional*, defaults to `"first_token"`):
            How the image, as the mean of its regions, enters the decoder:
            - `"first_token"`: it is read before the first word (NIC, https://arxiv.org/abs/1411.4555; NeuralTalk2);
            - `"initial_state"`: it sets the state that the first word is read in (Show, Attend and Tell,
              https://arxiv.org/abs/1502.03044, section 3.1.2);
            - `"bias_first_step"`: it is added to the input of the first step only (Deep Visual-Semantic Alignments,
              https://arxiv.org/abs/1412.2306, equation 13);
            - `"bias_every_step"`: it is added to the input of every step (the default of NeuralTalk).
        attention_type (`str`, *optional*, defaults to `"none"`):
            `"additive"` weighs the image regions again before each word (Show, Attend and Tell: soft attention with
            its gate beta); with `"none"` the image enters only through `image_injection`.
        attention_size (`int`, *optional*, defaults to 512):
            Size of the space in which state and regions are compared.
        attention_regularization (`float`, *optional*, defaults to 0.0):
            Weight lambda of the doubly stochastic term of Show, Attend and Tell (equation 14), in training only.
        dropout (`float`, *optional*, defaults to 0.5):
            Dropout between recurrent layers and before the vocabulary.
        embedding_dropout (`float`, *optional*, defaults to 0.0):
            Dropout of the word embeddings.
        feature_dropout (`float`, *optional*, defaults to 0.0):
            Dropout of the embedded image regions.
        label_smoothing (`float`, *optional*, defaults to 0.0):
            Share of the target's probability that is spread over the whole vocabulary, in training only.
        initializer_range (`float`, *optional*, defaults to 0.05):
            Standard deviation of the initial word embeddings and linear layers.
        tie_word_embeddings (`bool`, *optional*, defaults to `False`):
            Whether the words are read and written with the same matrix; needs `embedding_size == hidden_size`.
        use_cache (`bool`, *optional*, defaults to `True`):
            Whether the decoder returns its recurrent state, so that generation reads each word once.
        pad_token_id, bos_token_id, eos_token_id, unk_token_id (`int`, *optional*, default to 0, 1, 2, 3):
            Ids of the special tokens, all different. `unk_token_id=None` if the tokenizer has no unknown words.
        decoder_start_token_id (`int`, *optional*, defaults to `bos_token_id`):
            The token that every sentence starts from.

    Raises:
        StrictDataclassFieldValidationError: a field has the wrong type or is not one of its choices.
        StrictDataclassClassValidationError: two fields do not fit each other; the sentence names them.

    ```python
    >>> from modeling_cnnrnn import CnnRnnConfig, CnnRnnForConditionalGeneration

    >>> config = CnnRnnConfig(attention_type="additive", image_injection="initial_state")
    >>> model = CnnRnnForConditionalGeneration(config)
    ```
    """

    model_type = "cnnrnn"
    sub_configs_defaults = {"encoder": SubConfigSpec(config_class=AutoConfig, model_type="resnet")}  # noqa: RUF012
    keys_to_ignore_at_inference = ["past_key_values", "encoder_last_hidden_state"]  # noqa: RUF012

    encoder: dict | PreTrainedConfig | None = None
    vision_feature_layer: int = -1
    vocab_size: int = 10000
    rnn_type: Literal["lstm", "gru", "rnn_tanh", "rnn_relu"] = "lstm"
    hidden_size: int = 512
    embedding_size: int = 512
    num_hidden_layers: int = 1
    image_injection: Literal["first_token", "initial_state", "bias_first_step", "bias_every_step"] = "first_token"
    attention_type: Literal["none", "additive"] = "none"
    attention_size: int = 512
    attention_regularization: float | int = 0.0
    dropout: float | int = 0.5
    embedding_dropout: float | int = 0.0
    feature_dropout: float | int = 0.0
    label_smoothing: float | int = 0.0
    initializer_range: float | int = 0.05
    tie_word_embeddings: bool = False
    use_cache: bool = True
    is_encoder_decoder: bool = True
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    unk_token_id: int | None = 3
    decoder_start_token_id: int | None = None

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.decoder_start_token_id is None:
            self.decoder_start_token_id = self.bos_token_id

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs
    ):
        """
        Load a configuration, see [`~transformers.PreTrainedConfig.from_pretrained`].

        Raises:
            OSError: as in transformers.
            CnnRnnLoadingError: there is no configuration of a captioner, or a field of it is wrong.
        """
        with explain_errors(pretrained_model_name_or_path, (Part(("config.json",), cls._from_folder),), **kwargs):
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    @classmethod
    def _from_folder(cls, folder: os.PathLike):
        config_dict, _ = cls.get_config_dict(folder)
        return cls.from_dict(config_dict)

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs):
        """
        Read a configuration file, see [`~transformers.PreTrainedConfig.get_config_dict`].

        Raises:
            ValueError: there is none, or it is that of another model.
        """
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if not config_dict:
            raise ValueError("there is no config.json")
        if config_dict.get("model_type") != cls.model_type:
            raise ValueError(f"`model_type` is {shown(config_dict.get('model_type'), 80)}, not {cls.model_type!r}")
        return config_dict, kwargs

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        """
        Make a configuration from its fields, see [`~transformers.PreTrainedConfig.from_dict`].

        Raises:
            ValueError: a field has the wrong type or value; the sentence names it.
        """
        try:
            return super().from_dict(config_dict, **kwargs)
        except (StrictDataclassFieldValidationError, StrictDataclassClassValidationError) as error:
            # their messages have several lines, of which the last is the reason
            place = f"config.json of {shown(kwargs['name_or_path'])}: " if kwargs.get("name_or_path") else ""
            raise ValueError(place + shown(error.__cause__ or error)) from error

    @classmethod
    def from_tokenizer(cls, tokenizer, **kwargs) -> "CnnRnnConfig":
        """
        Make the configuration of a captioner that writes the words of a tokenizer.

        Args:
            tokenizer: sets `vocab_size` and the ids of the special tokens.
            kwargs: the other fields; a field given here wins over the tokenizer.

        Raises:
            StrictDataclassFieldValidationError, StrictDataclassClassValidationError: as the class.
        """
        names = ("pad_token_id", "bos_token_id", "eos_token_id", "unk_token_id")
        return cls(**{"vocab_size": len(tokenizer)} | {name: getattr(tokenizer, name) for name in names} | kwargs)

    def validate_architecture(self):
        """Check conditions on several fields; run by `@strict` when the configuration is made."""
        for name in ("vocab_size", "hidden_size", "embedding_size", "num_hidden_layers", "attention_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}: pass a positive number.")
        self._check_size()
        for name in ("dropout", "embedding_dropout", "feature_dropout", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}: pass a number in [0, 1).")
        if self.attention_regularization < 0:
            raise ValueError(f"`attention_regularization` is {self.attention_regularization}: pass 0 or more.")
        if self.attention_regularization > 0 and self.attention_type == "none":
            raise ValueError(
                f"`attention_regularization` is {self.attention_regularization} but `attention_type` is 'none': "
                "there is no attention to regularize, pass `attention_type='additive'` or leave it at 0."
            )
        if self.tie_word_embeddings and self.embedding_size != self.hidden_size:
            raise ValueError(
                f"`tie_word_embeddings` needs `embedding_size` ({self.embedding_size}) to equal `hidden_size` "
                f"({self.hidden_size}): make them equal or leave the embeddings untied."
            )
        self._check_special_tokens()

    def _check_size(self):
        """Refuse a model that would fill the memory, before any of it is allocated."""
        for name, value in vars(self.encoder).items():
            for number in value if isinstance(value, list | tuple) else [value]:
                limit = MAX_LAYERS if name in ("depths", "num_hidden_layers") else MAX_CNN_SIZE
                if type(number) is int and number > limit:
                    raise ValueError(f"`encoder.{name}` is {shown(value, 80)}: pass numbers up to {limit}.")
        if self.num_hidden_layers > MAX_LAYERS:
            raise ValueError(f"`num_hidden_layers` is {self.num_hidden_layers}: pass a number up to {MAX_LAYERS}.")
        size = max(self.hidden_size, self.embedding_size)
        parameters = size * (self.vocab_size + 8 * size * self.num_hidden_layers + self.attention_size)
        if parameters > MAX_PARAMETERS:
            raise ValueError(
                f"`vocab_size` ({self.vocab_size}), `hidden_size` ({self.hidden_size}), `embedding_size` "
                f"({self.embedding_size}), `num_hidden_layers` ({self.num_hidden_layers}) and `attention_size` "
                f"({self.attention_size}) make about {parameters:.1e} parameters, which no memory holds: pass smaller ones."
            )

    def _check_special_tokens(self):
        """Check that special tokens are different tokens of the vocabulary."""
        eos_token_ids = self.eos_token_id if isinstance(self.eos_token_id, list) else [self.eos_token_id]
        special = [
            i for i in (self.pad_token_id, self.bos_token_id, *eos_token_ids, self.unk_token_id) if i is not None
        ]
        if len(set(special)) < len(special):
            # if the end token is also the padding, it has no loss, and sentences never end
            raise ValueError(
                f"`pad_token_id` ({self.pad_token_id}), `bos_token_id` ({self.bos_token_id}), `eos_token_id` "
                f"({self.eos_token_id}) and `unk_token_id` ({self.unk_token_id}) must be different tokens."
            )
        start = self.decoder_start_token_id
        for token in special if start is None else (*special, start):
            if not 0 <= token < self.vocab_size:
                raise ValueError(
                    f"`pad_token_id` ({self.pad_token_id}), `bos_token_id` ({self.bos_token_id}), `eos_token_id` "
                    f"({self.eos_token_id}), `unk_token_id` ({self.unk_token_id}) and `decoder_start_token_id` ({start}) "
                    f"must be tokens of the vocabulary, from 0 to {self.vocab_size - 1}: {token} is not."
                )


__all__ = ["DEFAULT_MAX_LENGTH", "CnnRnnConfig"]
