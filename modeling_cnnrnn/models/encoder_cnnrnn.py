"""
The image encoder: a CNN, and the projection of its regions into the space of the words.

    pixel_values (B, 3, H, W) -> CNN -> image_features (B, R, C) -> projection -> regions (B, R, E)
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

import torch
from torch import nn
from transformers import AutoModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import can_return_tuple

from .base_cnnrnn import CnnRnnPreTrainedModel
from .configuration_base_cnnrnn import CnnRnnPreTrainedConfig
from .configuration_cnnrnn import CnnRnnConfig
from .configuration_convnet_cnnrnn import ConvNetConfig
from .modeling_convnet_cnnrnn import ConvNetModel
from .receptive_field_cnnrnn import measure_cell_centers


@dataclass
class CnnRnnEncoderOutput(BaseModelOutput):
    """
    The regions of images as the decoder sees them.

    Attributes:
        last_hidden_state: `(batch_size, num_regions, region_size)`.
        pooler_output: the image as a whole, `(batch_size, region_size)`, with `config.image_projection`.
        image_features_mask: `(batch_size, num_regions)`, `False` where a region is padding; `None` if none is.
    """

    pooler_output: torch.Tensor | None = None
    image_features_mask: torch.Tensor | None = None

    @classmethod
    def of(cls, encoder_outputs: BaseModelOutput | dict | tuple | list) -> "CnnRnnEncoderOutput":
        """Copy the outputs of the encoder, as an object or as a tuple of what is not `None`."""
        if isinstance(encoder_outputs, dict):
            return cls(**encoder_outputs)
        regions, *others = encoder_outputs
        tensors = [other for other in others if isinstance(other, torch.Tensor)]
        return cls(
            last_hidden_state=regions,
            hidden_states=next((other for other in others if isinstance(other, tuple)), None),
            pooler_output=next((tensor for tensor in tensors if tensor.is_floating_point()), None),
            image_features_mask=next((tensor for tensor in tensors if not tensor.is_floating_point()), None),
        )


class CnnRnnImageEncoder(CnnRnnPreTrainedModel):
    """Any CNN of transformers, and its feature map."""

    def __init__(self, config: CnnRnnPreTrainedConfig):
        super().__init__(config)
        if config.encoder is None:  # type: ignore[attr-defined]
            self.cnn = nn.Module()  # features come from outside
            # all that has a dtype where there is no projection either
            self.cnn.register_buffer("nothing", torch.empty(0), persistent=False)
        elif config.encoder.model_type == ConvNetConfig.model_type:  # type: ignore[attr-defined]
            # the Auto class of transformers does not know it where this package is not installed
            self.cnn = ConvNetModel._from_config(config.encoder)
        else:
            self.cnn = AutoModel.from_config(config.encoder)
        self.checkpoint = _Checkpoint()
        self._centers: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = {}

    @torch.no_grad()
    def _num_feature_channels(self) -> int:
        """Count the channels of the CNN's feature map on a black image; raise a `ValueError` if it returns none."""
        kind = f"`encoder` (`model_type` '{getattr(self.config.encoder, 'model_type', None)}')"
        remedy = "pass a CNN such as ResNet, ConvNeXt, EfficientNet or MobileNet."
        size = getattr(self.config.encoder, "image_size", None) or 64
        height, width = (size, size) if isinstance(size, int) else size
        parameter = next(self.cnn.parameters())
        pixel_values = parameter.new_zeros(1, getattr(self.config.encoder, "num_channels", 3), height, width)
        try:
            features = self._feature_map(self.cnn.eval(), pixel_values)[0]
        except (AttributeError, TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{kind} does not turn an image into a feature map ({error}): {remedy}") from error
        finally:
            self.cnn.train(self.training)
        if features.ndim != 4:
            raise ValueError(
                f"{kind} returns features of shape {tuple(features.shape)} and not (batch, channels, height, width): "
                + remedy
            )
        return features.shape[1]

    def _feature_map(self, cnn: nn.Module, pixel_values: torch.Tensor, output_hidden_states: bool = False):
        feature_map, hidden_states = self._run_cnn(cnn, pixel_values, output_hidden_states)
        size = getattr(self.config, "feature_map_size", None)
        if size is not None and feature_map.ndim == 4:
            feature_map = nn.functional.adaptive_avg_pool2d(feature_map, size)
        return feature_map, hidden_states

    def _run_cnn(self, cnn: nn.Module, pixel_values: torch.Tensor, output_hidden_states: bool):
        layer = self.config.vision_feature_layer
        outputs = cnn(pixel_values, output_hidden_states=output_hidden_states or layer != -1, return_dict=True)
        if layer == -1:
            return outputs.last_hidden_state, outputs.hidden_states if output_hidden_states else None
        if not -len(outputs.hidden_states) <= layer < len(outputs.hidden_states):
            raise ValueError(
                f"`vision_feature_layer` is {layer} but the CNN has {len(outputs.hidden_states)} hidden states."
            )
        return outputs.hidden_states[layer], outputs.hidden_states if output_hidden_states else None

    def train(self, mode: bool = True):
        """Switch the mode as in torch, but keep a frozen CNN and frozen BatchNorm layers in evaluation mode."""
        super().train(mode)
        if not any(parameter.requires_grad for parameter in self.cnn.parameters()):
            self.cnn.eval()
        elif mode:
            self._centers.clear()
        for module in self.cnn.modules():
            is_norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
            if is_norm and not any(parameter.requires_grad for parameter in module.parameters()):
                module.eval()
        return self

    def get_image_features(
        self, pixel_values: torch.Tensor, output_hidden_states: bool = False
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...] | None]:
        """
        Run the CNN alone. The features of a frozen CNN are worth storing: pass them as `image_features` later.

        Args:
            pixel_values: `(batch_size, num_channels, height, width)`, as the image processor returns them.

        Returns:
            The image features `(batch_size, num_regions, num_feature_channels)`, and the hidden states of the CNN, or
            `None`.

        Raises:
            ValueError: the batch is empty, has another number of channels than the CNN, or holds NaN or infinite pixels.
        """
        features, hidden_states = self.compute_feature_map(pixel_values, output_hidden_states)
        return features.flatten(2).transpose(1, 2), hidden_states

    def compute_feature_map(
        self, pixel_values: torch.Tensor, output_hidden_states: bool = False
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...] | None]:
        """Run the CNN alone, as `get_image_features`, and return its feature map `(batch_size, channels, height, width)`."""
        self._check_pixel_values(pixel_values)
        pixel_values = pixel_values.to(self.dtype)
        is_learning = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in self.cnn.parameters())
        if self.checkpoint.gradient_checkpointing and self.training and is_learning:
            with _CheckpointedBlocks(self.cnn, self.checkpoint):
                return self._feature_map(self.cnn, pixel_values, output_hidden_states)
        return self._feature_map(self.cnn, pixel_values, output_hidden_states)

    def cell_centers(self, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Return where the cells of the feature map look, measured once for each size of pictures, until the CNN is trained further.

        Returns:
            The middles of the rows `(H',)` and of the columns `(W',)`, in parts of the height and the width.
        """
        self._check_has_cnn()
        if (height, width) not in self._centers:
            num_channels = getattr(self.config.encoder, "num_channels", 3)
            # in float32: processors are slow at gradients of half precision, or have none
            cnn = self.cnn if self.cnn.dtype == torch.float32 else copy.deepcopy(self.cnn).float()
            picture = torch.zeros(1, num_channels, height, width, device=self.device)
            mode = self.training
            cnn.eval()
            try:
                rows, columns = measure_cell_centers(lambda pictures: self._feature_map(cnn, pictures)[0], picture)
            finally:
                self.train(mode)
            self._centers[height, width] = rows / height, columns / width
        return self._centers[height, width]

    def _check_has_cnn(self):
        if self.config.encoder is None:
            raise ValueError(
                "This captioner has no CNN of its own: pass `image_features` in place of `pixel_values`, "
                f"(batch_size, num_regions, {self.config.feature_size}), from the CNN or the detector that it was trained with."
            )

    def _check_pixel_values(self, pixel_values: torch.Tensor):
        self._check_has_cnn()
        num_channels = getattr(self.config.encoder, "num_channels", 3)
        if pixel_values.ndim != 4 or pixel_values.shape[1] != num_channels:
            raise ValueError(
                f"`pixel_values` has shape {tuple(pixel_values.shape)}: pass (batch_size, {num_channels}, height, "
                "width), as the processor returns it."
            )
        if pixel_values.shape[0] == 0:
            raise ValueError("`pixel_values` is an empty batch: pass at least one image.")
        if not torch.compiler.is_compiling() and not pixel_values.isfinite().all():
            raise ValueError("`pixel_values` holds NaN or infinite values: check how the images were read.")


class CnnRnnEncoder(CnnRnnImageEncoder):
    """The encoder of the captioner: a CNN, and the projection of its regions into the space of the word embeddings."""

    config: CnnRnnConfig

    def __init__(self, config: CnnRnnConfig):
        super().__init__(config)
        self.num_channels = config.feature_size or self._num_feature_channels()
        region_size = config.region_size or config.embedding_size
        if config.feature_projection == "none":
            if config.region_size is None:
                config.region_size = region_size = self.num_channels
                config.validate()
            elif region_size != self.num_channels:
                raise ValueError(
                    f"`region_size` is {region_size} but regions have {self.num_channels} features: leave it out, or pass "
                    "`feature_projection='linear'`."
                )
        has_projection = config.feature_projection != "none"
        self.projection = nn.Linear(self.num_channels, region_size) if has_projection else None
        self.image_projection = nn.Linear(self.num_channels, region_size) if config.image_projection else None
        self.dropout = nn.Dropout(config.feature_dropout)
        self.post_init()

    def _embed(self, features: torch.Tensor, projection: nn.Module | None) -> torch.Tensor:
        if projection is not None:
            features = projection(features)
        return self.dropout(torch.relu(features) if self.config.feature_projection == "relu" else features)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        image_features: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        image_features_mask: torch.Tensor | None = None,
        **kwargs,
    ) -> CnnRnnEncoderOutput:
        """
        Embed the regions of images.

        Args:
            pixel_values: `(batch_size, num_channels, height, width)`.
            image_features: `(batch_size, num_regions, num_feature_channels)`, in place of `pixel_values`: the first result of
                `get_image_features`, or of a detector of regions.
            image_features_mask: `(batch_size, num_regions)`, 0 where a region is padding.

        Returns:
            `last_hidden_state` `(batch_size, num_regions, region_size)`. A decoder without attention reads only the
            mean of the regions: `num_regions` is then 1.

        Raises:
            ValueError: neither or both are given, an image has no region, or as `get_image_features`.
        """
        hidden_states = None
        if pixel_values is not None and image_features is None:
            if output_hidden_states is None:
                output_hidden_states = self.config.output_hidden_states
            image_features, hidden_states = self.get_image_features(pixel_values, bool(output_hidden_states))
        elif image_features is None or pixel_values is not None:
            raise ValueError("Pass either `pixel_values` or `image_features` (or `encoder_outputs`), and not both.")
        image_features = image_features.to(self._feature_dtype())
        mask = self._check_image_features(image_features, image_features_mask)
        if mask is not None:
            image_features = image_features.masked_fill(~mask[..., None], 0)
        pooler_output = None
        if self.image_projection is not None:
            pooler_output = self._embed(mean_region(image_features, mask), self.image_projection)
        if self.config.attention_type == "none":
            image_features, mask = mean_region(image_features, mask)[:, None], None
        return CnnRnnEncoderOutput(
            last_hidden_state=self._embed(image_features, self.projection),
            hidden_states=hidden_states,
            pooler_output=pooler_output,
            image_features_mask=mask,
        )

    def _feature_dtype(self) -> torch.dtype:
        """The precision of the weights or, where regions are features of a detector as they are, of the buffer beside them."""
        return next(t.dtype for t in chain(self.parameters(), self.buffers()) if t.is_floating_point())

    def _check_image_features(self, features: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor | None:
        """Check shapes, and return the mask as booleans, or `None` if no region is masked."""
        if features.ndim != 3 or features.shape[2] != self.num_channels or features.shape[0] == 0:
            raise ValueError(
                f"`image_features` has shape {tuple(features.shape)}: pass (batch_size, num_regions, {self.num_channels})."
            )
        if features.shape[1] == 0:
            raise ValueError(f"`image_features` has shape {tuple(features.shape)}: an image needs at least one region.")
        if mask is None:
            return None
        if mask.shape != features.shape[:2]:
            raise ValueError(
                f"`image_features_mask` has shape {tuple(mask.shape)} for `image_features` of shape "
                f"{tuple(features.shape)}: pass {tuple(features.shape[:2])}."
            )
        mask = mask.to(device=features.device, dtype=torch.bool)
        if not torch.compiler.is_compiling():
            if mask.all():
                return None
            empty = (~mask.any(dim=1)).nonzero().flatten().tolist()
            if empty:
                raise ValueError(
                    f"`image_features_mask` leaves image {empty[0]} of the batch without a region: leave the image out."
                )
        return mask


def mean_region(regions: torch.Tensor, region_mask: torch.Tensor | None) -> torch.Tensor:
    """Average the regions `(B, R, region_size)` of each image but those that are masked, `(B, region_size)`."""
    if region_mask is None:
        return regions.mean(dim=1)
    weights = region_mask.to(regions.dtype)
    return (weights[:, None] @ regions).squeeze(1) / weights.sum(dim=1, keepdim=True)


def cnn_blocks(module: nn.Module) -> Iterator[nn.Module]:
    """
    Find the blocks of a CNN: the elements of its outermost `nn.ModuleList`s and `nn.Sequential`s.

    They are the four stages of transformers' ResNet, the single blocks of EfficientNet.
    """
    for child in module.children():
        if isinstance(child, (nn.ModuleList, nn.Sequential)):
            yield from child
        else:
            yield from cnn_blocks(child)


class _Checkpoint(GradientCheckpointingLayer):
    """Run a block again in the backward pass while `activation_checkpointing_enable()` is in force."""

    def forward(self, block, *args, **kwargs):
        return block(*args, **kwargs)


class _CheckpointedBlocks:
    """
    Let each block of a CNN forget its activations and compute them again in the backward pass, within this context.

    The second computation leaves the statistics of BatchNorm alone.
    """

    def __init__(self, cnn: nn.Module, checkpoint: _Checkpoint):
        self.blocks = list(cnn_blocks(cnn))
        self.checkpoint = checkpoint

    def __enter__(self):
        for block in self.blocks:
            block.forward = self._wrap(block, block.forward)

    def __exit__(self, *exception):
        for block in self.blocks:
            del block.forward  # the instance attribute: the class's own method shows again

    def _wrap(self, block: nn.Module, forward):
        runs = 0

        def run(*args, **kwargs):
            nonlocal runs
            runs += 1
            norms = [m for m in block.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)] if runs > 1 else []
            statistics = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
            for norm in norms:
                norm.momentum, norm.num_batches_tracked = 0.0, None
            try:
                return forward(*args, **kwargs)
            finally:
                for norm, (momentum, num_batches_tracked) in zip(norms, statistics, strict=True):
                    norm.momentum, norm.num_batches_tracked = momentum, num_batches_tracked

        return lambda *args, **kwargs: self.checkpoint(run, *args, **kwargs)


__all__ = ["CnnRnnEncoder", "CnnRnnEncoderOutput", "CnnRnnImageEncoder", "cnn_blocks", "mean_region"]
