"""Configuration of a small CNN: the shapes of ConvNetJS's CIFAR-10 page and of airbench as one list of layers."""

from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN


# fields of a layer, with their defaults; `channels` has none
LAYER_DEFAULTS: dict[str, Any] = {
    "kernel_size": 3,
    "stride": 1,
    "depth": 1,
    "pool_size": 1,
    "residual": False,
    "padding": True,
}
LIMITS = {"channels": 2**14, "kernel_size": 2**6, "stride": 2**6, "depth": 2**7, "pool_size": 2**6}
MAX_LAYERS = 2**8
MAX_IMAGE_SIZE = 2**14
AIRBENCH94 = ({"channels": 64, "depth": 2, "pool_size": 2},) + 2 * ({"channels": 256, "depth": 2, "pool_size": 2},)


@strict
class ConvNetConfig(PreTrainedConfig):
    r"""
    Configure a [`ConvNetModel`]: plain convolutions, for small pictures and for CPUs.

    The defaults are the shape of airbench94 (https://arxiv.org/abs/2404.00498), which learns CIFAR-10 to 94 %.

    Args:
        layers (`list[dict]`, *optional*, defaults to airbench's three):
            A layer is `depth` convolutions, the first of which is pooled:
            `convolution -> maximum of each pool_size x pool_size -> norm -> activation`. Its fields:
            - `channels`: number of output channels;
            - `kernel_size` (3), `stride` (1, of the first convolution), `depth` (1), `pool_size` (1: no pooling);
            - `padding` (`True`): whether an odd kernel is padded, so that the size stays; an even one is not;
            - `residual` (`False`): whether the output of the first convolution is added to that of the last.
        whitening_size (`int`, *optional*, defaults to 2):
            Kernel size of a first layer that makes the pixels of each patch uncorrelated: its fixed filters are computed
            from pictures ([`ConvNetModel.initialize_whitening`]). 0 for none.
        norm (`str`, *optional*, defaults to `"batch_norm"`):
            `"batch_norm"`, without a scale, since the next convolution has one; or `"none"`.
        batch_norm_momentum (`float`, *optional*, defaults to 0.4):
            Share of a batch in the running statistics.
        hidden_act (`str`, *optional*, defaults to `"gelu"`):
            Activation after each convolution.
        pooling (`str`, *optional*, defaults to `"max"`):
            How the last feature map becomes a vector: `"max"` and `"mean"` over its cells, or `"flatten"`, which needs
            pictures of `image_size`.
        divide_logits (`bool`, *optional*, defaults to `True`):
            Whether the classifier has no bias and weights of variance 1, and its logits are divided by the number of
            features: it then bears airbench's learning rates.
        num_channels (`int`, *optional*, defaults to 3):
            Number of channels of a picture.
        image_size (`int`, *optional*, defaults to 32):
            Side of the pictures. Others may be passed to a model that does not flatten.

    Raises:
        StrictDataclassFieldValidationError: a field has the wrong type or is not one of its choices.
        StrictDataclassClassValidationError: a layer is none, or `image_size` is too small for the layers.

    ```python
    >>> from modeling_cnnrnn import ConvNetConfig, ConvNetForImageClassification

    >>> # ConvNetJS's network for CIFAR-10
    >>> layers = [{"channels": channels, "kernel_size": 5, "pool_size": 2} for channels in (16, 20, 20)]
    >>> config = ConvNetConfig(
    ...     layers=layers, whitening_size=0, norm="none", hidden_act="relu", pooling="flatten", divide_logits=False
    ... )
    >>> model = ConvNetForImageClassification(config)
    ```
    """

    model_type = "convnet"

    layers: list[dict] | None = None
    whitening_size: int = 2
    norm: Literal["batch_norm", "none"] = "batch_norm"
    batch_norm_momentum: float | int = 0.4
    hidden_act: str = "gelu"
    pooling: Literal["max", "mean", "flatten"] = "max"
    divide_logits: bool = True
    num_channels: int = 3
    image_size: int = 32

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        layers = AIRBENCH94 if self.layers is None else self.layers
        # what is no dict is refused after this
        self.layers = [LAYER_DEFAULTS | layer if isinstance(layer, dict) else layer for layer in layers]

    def validate_architecture(self):
        """Check the layers; run by `@strict` when the configuration is made."""
        layers = self.layers or []
        if not 1 <= len(layers) <= MAX_LAYERS:
            raise ValueError(f"`layers` has {len(layers)}: pass 1 to {MAX_LAYERS}.")
        for number, layer in enumerate(layers, 1):
            _check_layer(number, layer)
        if not 0 <= self.whitening_size <= LIMITS["kernel_size"]:
            raise ValueError(f"`whitening_size` is {self.whitening_size}: pass the side of a patch, or 0 for none.")
        if not 0 < self.batch_norm_momentum <= 1:
            raise ValueError(f"`batch_norm_momentum` is {self.batch_norm_momentum}: pass a number in (0, 1].")
        if not 1 <= self.num_channels <= LIMITS["channels"]:
            raise ValueError(f"`num_channels` is {self.num_channels}: pass a positive number.")
        if self.hidden_act not in ACT2FN:
            raise ValueError(f"`hidden_act` is {self.hidden_act!r:.80}: pass one of {', '.join(sorted(ACT2FN))}.")
        smallest = self.min_image_size
        if not smallest <= self.image_size <= MAX_IMAGE_SIZE:
            raise ValueError(
                f"`image_size` is {self.image_size}: these layers take pictures of {smallest} to {MAX_IMAGE_SIZE} pixels."
            )

    def feature_size(self, image_size: int) -> int:
        """Compute the side of the feature map that a picture of this side becomes; 0 or less if it is too small."""
        size = image_size - max(0, self.whitening_size - 1)
        for layer in self.layers or ():
            kernel, shrinks = layer["kernel_size"], not is_padded(layer)
            for index in range(layer["depth"]):
                size -= kernel - 1 if shrinks else 0
                size = -(-size // layer["stride"]) // layer["pool_size"] if index == 0 else size
                if size < 1:
                    return size
        return size

    @property
    def min_image_size(self) -> int:
        """The side of the smallest picture of which something is left."""
        smallest, largest = 1, MAX_IMAGE_SIZE + 1
        while smallest < largest:  # the size of the map grows with that of the picture
            middle = (smallest + largest) // 2
            smallest, largest = (smallest, middle) if self.feature_size(middle) > 0 else (middle + 1, largest)
        return smallest


def _check_layer(number: int, layer: dict[str, Any]):
    """Refuse a layer that cannot be built, by its number from 1."""
    switches = ("residual", "padding")
    if unknown := sorted(layer.keys() - LIMITS.keys() - set(switches), key=str):
        known = ", ".join([*LIMITS, *switches])
        raise ValueError(f"layer {number} of `layers` has the field {unknown[0]!r:.80}: the fields are {known}.")
    if "channels" not in layer:
        raise ValueError(f"layer {number} of `layers` has no `channels`: pass their number.")
    for name, limit in LIMITS.items():
        if type(layer[name]) is not int or not 1 <= layer[name] <= limit:
            raise ValueError(f"`{name}` of layer {number} is {layer[name]!r:.80}: pass a number from 1 to {limit}.")
    for name in switches:
        if type(layer[name]) is not bool:
            raise ValueError(f"`{name}` of layer {number} is {layer[name]!r:.80}: pass True or False.")
    if layer["residual"] and not is_padded(layer) and layer["depth"] > 1:
        raise ValueError(
            f"layer {number} has `residual`, which needs an odd `kernel_size` and `padding`, not {layer['kernel_size']} and "
            f"{layer['padding']}."
        )


def is_padded(layer: dict[str, Any]) -> bool:
    """Return whether the convolutions of a layer keep the size of a picture."""
    return layer["padding"] and layer["kernel_size"] % 2 == 1


__all__ = ["ConvNetConfig", "is_padded"]
