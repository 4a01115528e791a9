"""Configuration of the CNN+RNN captioner."""

from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from .architectures_cnnrnn import architecture_options
from .configuration_base_cnnrnn import MAX_LAYERS, MAX_PARAMETERS, CnnRnnPreTrainedConfig


DEFAULT_MAX_LENGTH = 32  # of a sentence, in tokens with the start and the end


@strict
class CnnRnnConfig(CnnRnnPreTrainedConfig):
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
        feature_map_size (`int`, *optional*):
            Side of the square grid that the feature map is averaged to, whatever the size of the image; also to a larger
            one (14 in a well-known Show, Attend and Tell in PyTorch). By default the grid is that of the CNN.
        feature_size (`int`, *optional*):
            Number of channels of image features that come from outside (`image_features`): there is then no `encoder`.
        vocab_size (`int`, *optional*, defaults to 10000):
            Number of words, special tokens included.
        rnn_type (`str`, *optional*, defaults to `"lstm"`):
            Recurrent layer of the decoder: `"lstm"`, `"gru"`, `"rnn_tanh"`, `"rnn_relu"`, `"lstm_maxout"` (two candidates
            for the memory, of which the larger counts, https://arxiv.org/abs/1612.00563) or `"lstm_linear_output"` (no
            tanh after the memory, https://arxiv.org/abs/1411.4555, equation 8).
        hidden_size (`int`, *optional*, defaults to 512):
            Size of the recurrent state.
        embedding_size (`int`, *optional*, defaults to 512):
            Size of the space that words are embedded in.
        embedding_activation (`str`, *optional*, defaults to `"none"`):
            `"relu"` to apply it to the embedded words.
        feature_projection (`str`, *optional*, defaults to `"linear"`):
            How the features of a region are embedded: `"linear"`, `"relu"` (after the same) or `"none"` (as they are).
        region_size (`int`, *optional*, defaults to `embedding_size`, or to the channels of features as they are):
            Size of the space of image regions.
        image_projection (`bool`, *optional*, defaults to `False`):
            Whether the image is a projection of its own of the mean of its features, and not the mean of its regions.
        num_hidden_layers (`int`, *optional*, defaults to 1):
            Number of recurrent layers.
        image_injection (`str`, *optional*, defaults to `"first_token"`):
            How the image, as the mean of its regions, enters the decoder, beside what attention sees:
            - `"first_token"`: it is read before the first word (NIC, https://arxiv.org/abs/1411.4555; NeuralTalk2);
            - `"initial_state"`: it sets the state that the first word is read in (Show, Attend and Tell,
              https://arxiv.org/abs/1502.03044, section 3.1.2);
            - `"bias_first_step"`: it is added to the input of the first step only (Deep Visual-Semantic Alignments,
              https://arxiv.org/abs/1412.2306);
            - `"bias_every_step"`: it is added to the input of every step (the RNN of NeuralTalk);
            - `"none"`: attention alone sees it.
        initial_state_activation (`str`, *optional*, defaults to `"tanh"`):
            Of the state that `"initial_state"` sets: `"tanh"` or `"linear"`.
        attention_type (`str`, *optional*, defaults to `"none"`):
            How the image regions are weighed again for each word; with `"none"` the image enters only through
            `image_injection`:
            - `"additive"`: what is seen joins the input of the first layer (Show, Attend and Tell);
            - `"att2in"`: it joins the memory of an LSTM, unseen by its gates (https://arxiv.org/abs/1612.00563, section
              2.2);
            - `"adaptive"`: it and a visual sentinel join the output (https://arxiv.org/abs/1612.01887);
              `"adaptive_mlp"` with the further layers of its authors' code;
            - `"up_down"`: an attention LSTM looks, and a language LSTM reads what it sees
              (https://arxiv.org/abs/1707.07998), both without dropout between them.
        attention_gate (`str`, *optional*, defaults to `"scalar"`):
            The gate beta of `"additive"`: one number (`"scalar"`), one for each feature (`"vector"`) or `"none"`.
        attention_activation (`str`, *optional*, defaults to `"tanh"`):
            Where state and regions are compared: `"tanh"` or, not if `"adaptive"`, `"relu"`.
        deep_output (`str`, *optional*, defaults to `"none"`):
            Whether the next word is predicted from the last word, the state and what is seen together (Show, Attend and
            Tell): their sum in the space of the words as it is (`"linear"`), or its `"tanh"`.
        attention_size (`int`, *optional*, defaults to 512):
            Size of the space in which state and regions are compared.
        attention_regularization (`float`, *optional*, defaults to 0.0):
            Weight lambda of the doubly stochastic term of Show, Attend and Tell, in training only.
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
            Whether the words are read and written with the same matrix; needs `embedding_size == hidden_size`, or a deep
            output.
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
    feature_map_size: int | None = None
    feature_size: int | None = None
    vocab_size: int = 10000
    rnn_type: Literal["lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_maxout", "lstm_linear_output"] = "lstm"
    hidden_size: int = 512
    embedding_size: int = 512
    embedding_activation: Literal["none", "relu"] = "none"
    feature_projection: Literal["linear", "relu", "none"] = "linear"
    region_size: int | None = None
    image_projection: bool = False
    num_hidden_layers: int = 1
    image_injection: Literal["first_token", "initial_state", "bias_first_step", "bias_every_step", "none"] = (
        "first_token"
    )
    initial_state_activation: Literal["tanh", "linear"] = "tanh"
    attention_type: Literal["none", "additive", "att2in", "adaptive", "adaptive_mlp", "up_down"] = "none"
    attention_size: int = 512
    attention_gate: Literal["scalar", "vector", "none"] = "scalar"
    attention_activation: Literal["tanh", "relu"] = "tanh"
    deep_output: Literal["none", "linear", "tanh"] = "none"
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
        if self.feature_size is not None:
            self.encoder = None  # of which the base class makes a ResNet
        if self.decoder_start_token_id is None:
            self.decoder_start_token_id = self.bos_token_id

    @classmethod
    def from_architecture(cls, name: str, **kwargs):
        """
        Make the configuration of a published captioner.

        Args:
            name: of one of `ARCHITECTURES`, such as `"up_down"`.
            kwargs: the other fields; a field given here wins over the architecture.

        Raises:
            ValueError: there is no architecture of that name.
            StrictDataclassFieldValidationError, StrictDataclassClassValidationError: as the class.
        """
        return cls(**{**architecture_options(name), **kwargs})

    @property
    def has_image_input(self) -> bool:
        """Whether the image stands beside the words in the input of the first layer."""
        return self.image_injection in ("bias_first_step", "bias_every_step")

    @property
    def output_size(self) -> int:
        """Size of the vectors that words are predicted from."""
        return self.hidden_size if self.deep_output == "none" else self.embedding_size

    def validate_architecture(self):
        """Check conditions on several fields; run by `@strict` when the configuration is made."""
        self._check_positive("vocab_size", "hidden_size", "embedding_size", "num_hidden_layers", "attention_size")
        for name in ("region_size", "feature_map_size", "feature_size"):
            if getattr(self, name) is not None:
                self._check_positive(name)
        self._check_size()
        self._check_shares("dropout", "embedding_dropout", "feature_dropout", "label_smoothing")
        if self.attention_regularization < 0:
            raise ValueError(f"`attention_regularization` is {self.attention_regularization}: pass 0 or more.")
        if self.attention_regularization > 0 and self.attention_type == "none":
            raise ValueError(
                f"`attention_regularization` is {self.attention_regularization} but `attention_type` is 'none': "
                "there is no attention to regularize, pass `attention_type='additive'` or leave it at 0."
            )
        self._check_decoder()
        if self.tie_word_embeddings and self.embedding_size != self.output_size:
            raise ValueError(
                f"`tie_word_embeddings` needs `embedding_size` ({self.embedding_size}) to equal `hidden_size` "
                f"({self.hidden_size}): make them equal or leave the embeddings untied."
            )
        self._check_special_tokens()

    def _check_decoder(self):
        """Check that the parts of the decoder fit each other."""
        kind, region_size = self.attention_type, self.region_size or self.embedding_size
        is_lstm, is_adaptive = self.rnn_type.startswith("lstm"), kind.startswith("adaptive")
        refusals = [
            (
                kind == "none" and self.image_injection == "none",
                "`image_injection` and `attention_type` are both 'none': no image would be seen, pass one of them.",
            ),
            (
                kind == "none" and self.image_projection,
                "`image_projection` is `True` but `attention_type` is 'none': the image is all that is projected then.",
            ),
            (
                self.image_injection == "first_token" and region_size != self.embedding_size,
                f"`region_size` is {region_size}: for `image_injection='first_token'` it must equal `embedding_size` "
                f"({self.embedding_size}).",
            ),
            (
                (kind == "att2in" or is_adaptive) and not is_lstm,
                f"`attention_type` is '{kind}' and `rnn_type` is '{self.rnn_type}': pass an LSTM, which has a memory.",
            ),
            (
                is_adaptive and self.num_hidden_layers != 1,
                f"`num_hidden_layers` is {self.num_hidden_layers}: `attention_type='{kind}'` needs 1.",
            ),
            (
                kind == "up_down" and self.num_hidden_layers != 2,
                f"`num_hidden_layers` is {self.num_hidden_layers}: `attention_type='up_down'` needs 2.",
            ),
            (
                is_adaptive and self.attention_activation != "tanh",
                f"`attention_activation` is '{self.attention_activation}': `attention_type='{kind}'` needs 'tanh'.",
            ),
            (
                kind == "adaptive" and self.feature_projection != "none" and region_size != self.hidden_size,
                f"`region_size` is {region_size}: for `attention_type='adaptive'` it must equal `hidden_size` "
                f"({self.hidden_size}).",
            ),
            (
                self.deep_output != "none" and (is_adaptive or kind == "up_down"),
                f"`deep_output` is '{self.deep_output}': `attention_type='{kind}'` has an output of its own, pass 'none'.",
            ),
        ]
        for is_refused, sentence in refusals:
            if is_refused:
                raise ValueError(sentence)

    def _check_size(self):
        """Refuse a model that would fill the memory, before any of it is allocated."""
        if self.encoder is not None:
            self._check_encoder_size()
        if self.num_hidden_layers > MAX_LAYERS:
            raise ValueError(f"`num_hidden_layers` is {self.num_hidden_layers}: pass a number up to {MAX_LAYERS}.")
        size = max(self.hidden_size, self.embedding_size, self.region_size or 0, self.feature_size or 0)
        parameters = size * (self.vocab_size + 8 * size * self.num_hidden_layers + self.attention_size)
        if parameters > MAX_PARAMETERS:
            raise ValueError(
                f"`vocab_size` ({self.vocab_size}), `hidden_size` ({self.hidden_size}), `embedding_size` "
                f"({self.embedding_size}), `num_hidden_layers` ({self.num_hidden_layers}) and `attention_size` "
                f"({self.attention_size}) make about {parameters:.1e} parameters, which no memory holds: pass smaller ones."
            )

    def _check_special_tokens(self):
        """Check that special tokens are different tokens of the vocabulary."""
        special = self.special_token_ids()
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
