"""
A small CNN, and the classifier made of it.

    pixel_values (B, 3, H, W) -> whitening -> layers -> last_hidden_state (B, C, h, w) -> pooling (B, F) -> logits (B, N)

With its default configuration it is the network of airbench94 (https://arxiv.org/abs/2404.00498), with other layers that of
ConvNetJS's CIFAR-10 page (https://cs.stanford.edu/people/karpathy/convnetjs/demo/cifar10.html).
"""

import math

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BaseModelOutputWithPoolingAndNoAttention,
    ImageClassifierOutputWithNoAttention,
)
from transformers.utils import can_return_tuple

from .configuration_convnet_cnnrnn import ConvNetConfig, is_padded


class ConvNetWhitening(nn.Module):
    """Make the pixels of each patch uncorrelated, by fixed filters and their negatives."""

    def __init__(self, config: ConvNetConfig):
        super().__init__()
        self.num_filters = config.num_channels * config.whitening_size**2
        self.convolution = nn.Conv2d(config.num_channels, 2 * self.num_filters, config.whitening_size)
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.activation(self.convolution(pixel_values))


class ConvNetBatchNorm(nn.BatchNorm2d):
    """BatchNorm with a bias and no scale."""

    def __init__(self, num_features: int, momentum: float):
        super().__init__(num_features, momentum=momentum)
        self.register_parameter("weight", None)


class ConvNetLayer(GradientCheckpointingLayer):
    """Convolutions, the first of which is pooled."""

    def __init__(self, config: ConvNetConfig, in_channels: int, layer: dict):
        super().__init__()
        channels, kernel_size, has_norm = layer["channels"], layer["kernel_size"], config.norm == "batch_norm"
        padding = kernel_size // 2 if is_padded(layer) else 0
        self.convolutions, self.norms = nn.ModuleList(), nn.ModuleList()
        for index in range(layer["depth"]):
            inputs, stride = (channels, 1) if index else (in_channels, layer["stride"])
            self.convolutions.append(nn.Conv2d(inputs, channels, kernel_size, stride, padding, bias=not has_norm))
            norm = ConvNetBatchNorm(channels, config.batch_norm_momentum) if has_norm else nn.Identity()
            self.norms.append(norm)
        self.pool = nn.MaxPool2d(layer["pool_size"]) if layer["pool_size"] > 1 else nn.Identity()
        self.activation = ACT2FN[config.hidden_act]
        self.residual = layer["residual"]

    def forward(self, hidden_state: torch.Tensor) -> torch.Tensor:
        first: torch.Tensor | None = None
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            hidden_state = convolution(hidden_state)
            if first is None:
                hidden_state = self.pool(hidden_state)
            hidden_state = self.activation(norm(hidden_state))
            first = hidden_state if first is None else first
        return hidden_state + first if self.residual and first is not None else hidden_state


class ConvNetPreTrainedModel(PreTrainedModel):
    """Initialize and load the models of this file."""

    config: ConvNetConfig
    base_model_prefix = "convnet"
    main_input_name = "pixel_values"
    input_modalities = ["image"]  # noqa: RUF012
    supports_gradient_checkpointing = True
    _no_split_modules = ["ConvNetLayer"]  # noqa: RUF012

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d):
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            if not getattr(module.weight, "_is_hf_initialized", False):
                # as many channels as there are pass unchanged, so that a deep network begins as a shallow one
                init.dirac_(module.weight[: module.in_channels])
        elif isinstance(module, nn.Linear) and self.config.divide_logits:
            init.normal_(module.weight)


class ConvNetModel(ConvNetPreTrainedModel):
    """The CNN alone: a feature map."""

    # of a classifier, when its CNN becomes the encoder of something else
    _keys_to_ignore_on_load_unexpected = [r"^classifier\."]  # noqa: RUF012

    def __init__(self, config: ConvNetConfig):
        super().__init__(config)
        channels = config.num_channels
        self.whitening = None
        if config.whitening_size:
            self.whitening = ConvNetWhitening(config)
            channels = 2 * self.whitening.num_filters
        self.layers = nn.ModuleList()
        for layer in config.layers or ():
            self.layers.append(ConvNetLayer(config, channels, layer))
            channels = layer["channels"]
        self.num_features = channels
        if config.pooling == "flatten":
            self.num_features *= config.feature_size(config.image_size) ** 2
        self.post_init()

    @torch.no_grad()
    def initialize_whitening(self, pixel_values: torch.Tensor, epsilon: float = 5e-4) -> None:
        """
        Compute the filters of the whitening layer from pictures, and fix them.

        They are the eigenvectors of the covariance of patches, divided by the roots of their eigenvalues
        (https://arxiv.org/abs/2404.00498, section 3.2).

        Args:
            pixel_values: some thousand pictures, `(num_images, num_channels, height, width)`, normalized as in training.
            epsilon: added to the eigenvalues, so that directions without contrast are not blown up.

        Raises:
            ValueError: the model has no whitening layer.
        """
        if self.whitening is None:
            raise ValueError("`whitening_size` of the configuration is 0: there is no whitening layer to initialize.")
        weight, size = self.whitening.convolution.weight, self.config.whitening_size
        patches = pixel_values.float().unfold(2, size, 1).unfold(3, size, 1)  # (N, C, H', W', size, size)
        patches = patches.permute(0, 2, 3, 1, 4, 5).flatten(0, 2).flatten(1)
        eigenvalues, eigenvectors = torch.linalg.eigh(patches.T @ patches / len(patches))
        filters = eigenvectors.T / (eigenvalues.clamp(min=0)[:, None] + epsilon).sqrt()
        filters = filters.flip(0).view(-1, *weight.shape[1:])  # the strongest first
        weight.copy_(torch.cat([filters, -filters]))
        weight.requires_grad_(False)

    @can_return_tuple
    def forward(
        self, pixel_values: torch.Tensor, output_hidden_states: bool | None = None, **kwargs
    ) -> BaseModelOutputWithPoolingAndNoAttention:
        """
        Compute the feature map of pictures.

        Args:
            pixel_values: `(batch_size, num_channels, height, width)`.

        Returns:
            `last_hidden_state` `(batch_size, channels, h, w)` and `pooler_output` `(batch_size, num_features)`; the hidden
            states are the input of the layers and the output of each.

        Raises:
            ValueError: `pixel_values` has another shape than the configuration says, or is too small.
        """
        self._check_pixel_values(pixel_values)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        hidden_state = pixel_values if self.whitening is None else self.whitening(pixel_values)
        hidden_states = [hidden_state]
        for layer in self.layers:
            hidden_state = layer(hidden_state)
            hidden_states.append(hidden_state)
        if self.config.pooling == "flatten":
            pooled = hidden_state.flatten(1)
        else:
            pooled = hidden_state.amax((2, 3)) if self.config.pooling == "max" else hidden_state.mean((2, 3))
        return BaseModelOutputWithPoolingAndNoAttention(
            last_hidden_state=hidden_state,
            pooler_output=pooled,
            hidden_states=tuple(hidden_states) if output_hidden_states else None,
        )

    def _check_pixel_values(self, pixel_values: torch.Tensor):
        num_channels, image_size = self.config.num_channels, self.config.image_size
        if pixel_values.ndim != 4 or pixel_values.shape[1] != num_channels:
            raise ValueError(
                f"`pixel_values` has shape {tuple(pixel_values.shape)}: pass (batch_size, {num_channels}, height, width)."
            )
        height, width = pixel_values.shape[2:]
        if self.config.pooling == "flatten" and (height, width) != (image_size, image_size):
            raise ValueError(
                f"`pixel_values` are pictures of {height} x {width}: `pooling` is 'flatten', pass {image_size} x {image_size}."
            )
        if min(self.config.feature_size(height), self.config.feature_size(width)) < 1:
            smallest = self.config.min_image_size
            raise ValueError(
                f"`pixel_values` are pictures of {height} x {width}, of which these layers leave nothing: the smallest are "
                f"{smallest} x {smallest}."
            )


class ConvNetForImageClassification(ConvNetPreTrainedModel):
    """The CNN with a linear classifier of its pooled features."""

    def __init__(self, config: ConvNetConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.convnet = ConvNetModel(config)
        self.classifier = nn.Linear(self.convnet.num_features, config.num_labels or 0, bias=not config.divide_logits)
        self.post_init()

    def save_pretrained(self, save_directory, *args, **kwargs):
        """Save as transformers does, and the code, so that `trust_remote_code=True` loads it without this package."""
        self.config.auto_map = {
            **(getattr(self.config, "auto_map", None) or {}),
            "AutoModel": "modeling_convnet_cnnrnn.ConvNetModel",
        }
        super().save_pretrained(save_directory, *args, **kwargs)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        **kwargs,
    ) -> ImageClassifierOutputWithNoAttention:
        """
        Classify pictures.

        Args:
            pixel_values: `(batch_size, num_channels, height, width)`.
            labels: class of each picture, `(batch_size,)`; -100 for none.

        Returns:
            `logits` `(batch_size, num_labels)`, and with `labels` the cross-entropy as `loss`.

        Raises:
            ValueError: as [`ConvNetModel`].
        """
        outputs = self.convnet(pixel_values, output_hidden_states=output_hidden_states, return_dict=True)
        logits = self.classifier(outputs.pooler_output)
        if self.config.divide_logits:
            logits = logits / self.classifier.in_features
        loss = None if labels is None else self.loss_function(labels, logits, self.config, **kwargs)
        return ImageClassifierOutputWithNoAttention(loss=loss, logits=logits, hidden_states=outputs.hidden_states)


__all__ = ["ConvNetForImageClassification", "ConvNetModel"]
