"""The base class of all models: initial weights, freezing of the CNN, loading that retries and refuses damaged files."""

import hashlib
import time
from pathlib import Path

import torch
from huggingface_hub import constants
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init

from .configuration_cnnrnn import CnnRnnConfig


class CnnRnnPreTrainedModel(PreTrainedModel):
    """Initialize, load and freeze weights, for all models of this package."""

    config: CnnRnnConfig
    base_model_prefix = "model"
    main_input_name = "pixel_values"
    input_modalities = ["image", "text"]  # noqa: RUF012
    supports_gradient_checkpointing = True
    _no_split_modules = ["CnnRnnDecoder"]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _is_stateful = True  # a recurrent state cannot be rolled back: no assisted generation

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, cache_dir=None, **kwargs):
        """
        Load a model as transformers does, and compute with it what the saved one computed, to the last bit.

        Retries while the Hub returns a 5xx error, and refuses weights that are damaged on the way.

        Raises:
            OSError: as in transformers, or the Hub keeps returning a 5xx error, or the weights arrived damaged.
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
                        gate._is_hf_initialized = getattr(parameter, "_is_hf_initialized", False)  # type: ignore[attr-defined]
                        init.orthogonal_(gate)
                else:
                    init.zeros_(parameter)
            if isinstance(module, nn.LSTM) and not getattr(module.bias_ih_l0, "_is_hf_initialized", False):
                # a forget gate that starts open lets the gradient reach the image through the whole sentence
                init.ones_(module.bias_ih_l0[module.hidden_size : 2 * module.hidden_size])  # type: ignore[index]

    def freeze_encoder(self):
        """Freeze the CNN: no gradients, no dropout, and fixed BatchNorm statistics."""
        encoder = self.get_encoder()
        encoder.cnn.requires_grad_(False)
        encoder.train(encoder.training)

    def unfreeze_encoder(self):
        """Unfreeze the CNN but for its BatchNorm layers: small batches of captions would ruin their statistics."""
        encoder = self.get_encoder()
        encoder.cnn.requires_grad_(True)
        for module in encoder.cnn.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.requires_grad_(False)
        encoder.train(encoder.training)


def _times_of_blobs(cache: Path) -> dict[Path, int]:
    """Return the modification time of each LFS file in the cache of a repository, where its name is its SHA-256."""
    blobs = [path for path in (cache / "blobs").glob("*") if len(path.name) == 64 and path.exists()]
    return {path: path.stat().st_mtime_ns for path in blobs}


def _refuse_damaged(name: str, cache: Path, before: dict[Path, int]):
    """Delete files that came since `before` and do not have their SHA-256: huggingface_hub checks only their size."""
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
    """Copy weights to aligned memory: CPU matrix products round differently for unaligned tensors."""
    for tensor in (*model.parameters(), *model.buffers()):
        if type(tensor.data) is torch.Tensor and tensor.device.type == "cpu" and tensor.data_ptr() % 64 != 0:
            tensor.data = tensor.data.clone()


__all__ = ["CnnRnnPreTrainedModel", "align_weights"]
