"""
The seeing half: what all models of the package have in common, and the CNN with the projection of its regions.

    pixel_values (B, 3, H, W) -> CNN -> image_features (B, R, C) -> projection -> regions (B, R, E)
"""

import hashlib
import time
from pathlib import Path

import torch
from huggingface_hub import constants
from torch import nn
from transformers import AutoModel, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import can_return_tuple

from .configuration_cnnrnn import CnnRnnConfig


class CnnRnnPreTrainedModel(PreTrainedModel):
    """Weights' initialisation, loading and saving, and the freezing of the CNN."""

    config_class = CnnRnnConfig
    base_model_prefix = "model"
    main_input_name = "pixel_values"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["CnnRnnDecoder"]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _is_stateful = True  # a recurrent state cannot be rolled back: no assisted generation

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, cache_dir=None, **kwargs):
        """
        As in transformers, but what is loaded computes what was saved to the last bit, also on a CPU.

        Weights are asked for again while the Hub answers with a server error, and are refused if they arrive damaged.

        Raises:
            OSError: as in transformers; the Hub goes on answering with a server error; the weights arrived damaged.
        """
        name = str(pretrained_model_name_or_path)
        cache = Path(cache_dir or constants.HF_HUB_CACHE, "models--" + name.replace("/", "--"))
        before = _times_of_blobs(cache)
        for wait in (1, 2, 4, None):
            try:
                loaded = super().from_pretrained(
                    pretrained_model_name_or_path, *model_args, cache_dir=cache_dir, **kwargs
                )
                break
            except OSError as error:
                status = getattr(getattr(error.__cause__, "response", None), "status_code", 0)
                if status < 500:
                    raise
                if wait is None:
                    raise OSError(f"'{name}' cannot be loaded: the Hub answers {status}; try again later.") from error
                time.sleep(wait)
            finally:
                _refuse_damaged(name, cache, before)
        align_weights(loaded[0] if isinstance(loaded, tuple) else loaded)
        return loaded

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, nn.RNNBase):  # the base method knows only nn.LSTM
            for name, parameter in module.named_parameters():
                if name.startswith("weight_ih"):
                    init.xavier_uniform_(parameter)
                elif name.startswith("weight_hh"):
                    for gate in parameter.chunk(parameter.shape[0] // module.hidden_size):
                        gate._is_hf_initialized = getattr(parameter, "_is_hf_initialized", False)
                        init.orthogonal_(gate)
                else:
                    init.zeros_(parameter)
            if isinstance(module, nn.LSTM) and not getattr(module.bias_ih_l0, "_is_hf_initialized", False):
                # a forget gate that starts open lets the gradient reach the image through the whole sentence
                init.ones_(module.bias_ih_l0[module.hidden_size : 2 * module.hidden_size])

    def freeze_encoder(self):
        """Keep the CNN as it is: no gradient, no dropout, and BatchNorm statistics that do not move."""
        encoder = self.get_encoder()
        encoder.cnn.requires_grad_(False)
        encoder.train(encoder.training)

    def unfreeze_encoder(self):
        """Finetune the CNN, all but its BatchNorm layers: small batches of captions would ruin their statistics."""
        encoder = self.get_encoder()
        encoder.cnn.requires_grad_(True)
        for module in encoder.cnn.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.requires_grad_(False)
        encoder.train(encoder.training)


def _times_of_blobs(cache: Path) -> dict[Path, int]:
    """When each LFS file of a repository came into the cache, where its name is the SHA-256 that it has on the Hub."""
    blobs = [path for path in (cache / "blobs").glob("*") if len(path.name) == 64 and path.exists()]
    return {path: path.stat().st_mtime_ns for path in blobs}


def _refuse_damaged(name: str, cache: Path, before: dict[Path, int]):
    """huggingface_hub looks at the size alone of what it downloads: delete what has come since and is something else."""
    damaged = []
    for blob in dict(_times_of_blobs(cache).items() - before.items()):
        with blob.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != blob.name:
                damaged.append(blob.resolve())
    links = [link for link in (cache / "snapshots").rglob("*") if link.resolve() in damaged]
    for path in (*links, *damaged):
        path.unlink(missing_ok=True)
    if damaged:
        files = ", ".join(sorted({link.name for link in links}))
        raise OSError(f"'{name}' arrived damaged ({files}), and what arrived is deleted: load it once more.")


def align_weights(model: nn.Module):
    """A file's tensors lie at any address; matrix products on a CPU round otherwise there than where torch puts them."""
    for tensor in (*model.parameters(), *model.buffers()):
        if type(tensor.data) is torch.Tensor and tensor.device.type == "cpu" and tensor.data_ptr() % 64 != 0:
            tensor.data = tensor.data.clone()


class CnnRnnEncoder(CnnRnnPreTrainedModel):
    """A CNN and the projection of its regions into the space of the word embeddings."""

    def __init__(self, config: CnnRnnConfig):
        super().__init__(config)
        self.cnn = AutoModel.from_config(config.encoder)
        self.projection = nn.Linear(self._num_feature_channels(), config.embedding_size)
        self.dropout = nn.Dropout(config.feature_dropout)
        self.checkpoint = _Checkpoint()
        self.post_init()

    @torch.no_grad()
    def _num_feature_channels(self) -> int:
        """Channels of the CNN's feature map; raises a `ValueError` where there is none."""
        kind = f"`encoder` (`model_type` '{self.config.encoder.model_type}')"
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
        """As in torch, but what has no gradient stays in evaluation: a frozen CNN, and each frozen BatchNorm."""
        super().train(mode)
        if not any(parameter.requires_grad for parameter in self.cnn.parameters()):
            self.cnn.eval()
        for module in self.cnn.modules():
            is_norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
            if is_norm and not any(parameter.requires_grad for parameter in module.parameters()):
                module.eval()
        return self

    def extract_image_features(
        self, pixel_values: torch.Tensor, output_hidden_states: bool = False
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...] | None]:
        """
        What the CNN sees. With a frozen CNN this is worth storing: pass it as `image_features` later.

        Args:
            pixel_values: `(batch_size, num_channels, height, width)`, as the image processor returns them.

        Returns:
            The image features `(batch_size, num_regions, num_feature_channels)`, and the hidden states of the CNN.

        Raises:
            ValueError: an empty batch, another number of channels than the CNN takes, or pixels that are not finite.
        """
        self._check_pixel_values(pixel_values)
        pixel_values = pixel_values.to(self.projection.weight.dtype)
        is_learning = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in self.cnn.parameters())
        if self.checkpoint.gradient_checkpointing and self.training and is_learning:
            with _CheckpointedBlocks(self.cnn, self.checkpoint):
                features, hidden_states = self._feature_map(self.cnn, pixel_values, output_hidden_states)
        else:
            features, hidden_states = self._feature_map(self.cnn, pixel_values, output_hidden_states)
        return features.flatten(2).transpose(1, 2), hidden_states

    def _check_pixel_values(self, pixel_values: torch.Tensor):
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

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        image_features: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        **kwargs,
    ) -> BaseModelOutput:
        """
        Args:
            pixel_values: `(batch_size, num_channels, height, width)`.
            image_features: in place of `pixel_values`, what `extract_image_features` returned.

        Returns:
            `last_hidden_state` `(batch_size, num_regions, embedding_size)`, what the decoder looks at. A decoder without
            attention sees the mean of the regions alone: there, `num_regions` is 1.
        """
        if (pixel_values is None) == (image_features is None):
            raise ValueError("Pass either `pixel_values` or `image_features` (or `encoder_outputs`), and not both.")
        hidden_states = None
        if image_features is None:
            if output_hidden_states is None:
                output_hidden_states = self.config.output_hidden_states
            image_features, hidden_states = self.extract_image_features(pixel_values, bool(output_hidden_states))
        image_features = image_features.to(self.projection.weight.dtype)
        if self.config.attention_type == "none":
            image_features = image_features.mean(dim=1, keepdim=True)
        regions = self.dropout(self.projection(image_features))
        return BaseModelOutput(last_hidden_state=regions, hidden_states=hidden_states)


class _Checkpoint(GradientCheckpointingLayer):
    """The switch of `activation_checkpointing_enable()`: while it is on, what runs through here is run again backward."""

    def forward(self, block, *args, **kwargs):
        return block(*args, **kwargs)


class _CheckpointedBlocks:
    """
    Within this context each block of a CNN forgets its activations and computes them again in the backward pass.

    Works on any CNN: its blocks are the elements of its outermost `nn.ModuleList`s and `nn.Sequential`s. The second
    computation does not count a second time in the statistics of BatchNorm.
    """

    def __init__(self, cnn: nn.Module, checkpoint: _Checkpoint):
        self.blocks = list(self._find(cnn))
        self.checkpoint = checkpoint

    def _find(self, module: nn.Module):
        for child in module.children():
            if isinstance(child, (nn.ModuleList, nn.Sequential)):
                yield from child
            else:
                yield from self._find(child)

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


__all__ = ["CnnRnnEncoder", "CnnRnnPreTrainedModel", "align_weights"]
