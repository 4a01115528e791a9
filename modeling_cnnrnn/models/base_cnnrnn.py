"""The base class of all models: initial weights, freezing of the CNN, loading that retries and refuses damaged files."""

import copy
import hashlib
import logging
import time
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants
from safetensors import safe_open
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import AutoConfig, AutoModel, GenerationConfig, PreTrainedModel
from transformers import initialization as init

from .configuration_base_cnnrnn import MAX_PARAMETERS, CnnRnnPreTrainedConfig
from .error_messages_cnnrnn import shown
from .loading_cnnrnn import CnnRnnLoadingError, Part, explain_errors, file_fault, find_pretrained
from .recurrence_cnnrnn import CnnRnnLSTMVariant


MAX_TENSORS = 2**14  # of a model; a ResNet-152 has about a thousand
MAX_WEIGHT = 1e12  # of trained weights; products of larger ones overflow
MAX_LENGTH = 10_000  # of a sentence
# fields of generation_config.json that are token ids, counts and numbers
TOKEN_FIELDS = (
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "decoder_start_token_id",
    "suppress_tokens",
    "begin_suppress_tokens",
    "forced_bos_token_id",
    "forced_eos_token_id",
)
COUNT_FIELDS = ("max_length", "max_new_tokens", "num_beams", "num_return_sequences")
NUMBER_FIELDS = (
    "temperature",
    "top_p",
    "top_k",
    "repetition_penalty",
    "length_penalty",
    "no_repeat_ngram_size",
    "min_length",
)

_checks_weights: ContextVar[bool] = ContextVar("checks_weights", default=False)


class CnnRnnPreTrainedModel(PreTrainedModel):
    """Initialize, load and freeze weights, for all models of this package."""

    config: CnnRnnPreTrainedConfig
    config_class: type[Any]  # of `config`, in each subclass; transformers sets it
    base_model_prefix = "model"
    main_input_name = "pixel_values"
    input_modalities = ["image", "text"]  # noqa: RUF012
    supports_gradient_checkpointing = True
    _no_split_modules = ["CnnRnnDecoder"]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _is_stateful = True  # a recurrent state cannot be rolled back: no assisted generation
    _own_weights = "decoder."  # in the names of weights that no model may load and not use

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, cache_dir=None, check_weights=True, **kwargs):
        """
        Load a model as transformers does, and compute with it what the saved one computed, to the last bit.

        Retries while the Hub returns a 5xx error, and refuses weights that are damaged on the way.

        Args:
            check_weights (`bool`, *optional*, defaults to `True`): whether to refuse weights that are missing, not finite,
                or of a decoder other than that of config.json. `False` initializes missing weights at random, as
                transformers does, and those of other sizes if `ignore_mismatched_sizes=True`.

        Raises:
            OSError: as in transformers, or the Hub keeps returning a 5xx error, or the weights arrived damaged.
            CnnRnnLoadingError: a file is missing, damaged or wrong, or its weights are not those of the model. It is both
                an `OSError` and a `ValueError`, and names the file, and the field where one is at fault.
        """
        place = find_pretrained(pretrained_model_name_or_path)
        _refuse_faulty_generation_config(place, kwargs.get("subfolder") or "")
        token = _checks_weights.set(check_weights)
        try:
            with explain_errors(place, cls._parts(), cache_dir=cache_dir, **kwargs), _LimitedSize():
                loaded = cls._load_with_retries(place, *model_args, cache_dir=cache_dir, **kwargs)
                model = loaded[0] if isinstance(loaded, tuple) else loaded
                if model.can_generate():
                    check_generation_config(model.generation_config, model.config.vocab_size)
                    if model.generation_config.eos_token_id is None and model.config.eos_token_id is not None:
                        raise ValueError("`eos_token_id` of generation_config.json is missing: sentences would not end")
        finally:
            _checks_weights.reset(token)
        if check_weights:
            if place is not None and Path(place).is_dir() and not hasattr(model, "hf_quantizer"):
                check_dtypes(model, Path(place, kwargs.get("subfolder") or ""))
            check_finite(model, place)
        align_weights(model)
        return loaded

    @classmethod
    def from_encoder_pretrained(
        cls, pretrained_model_name_or_path: str, tokenizer=None, encoder_kwargs: dict | None = None, **config_kwargs
    ):
        """
        Make a model from a pretrained CNN and untrained other layers, to train it from ImageNet weights.

        Args:
            pretrained_model_name_or_path: name on the Hub or folder of any CNN checkpoint.
            tokenizer: sets the size of the vocabulary and the ids of the special tokens.
            encoder_kwargs: arguments of `AutoModel.from_pretrained` (`revision`, `trust_remote_code`, ...), and
                `check_weights=False` to initialize at random what the checkpoint lacks.
            config_kwargs: fields of the configuration of this class.

        Raises:
            ValueError: the checkpoint is not a CNN.
            CnnRnnLoadingError: a file is damaged, or weights are missing or not finite. Those of a classifier's head, which
                these models have not, may be there.
        """
        encoder_kwargs = {"dtype": torch.float32, **(encoder_kwargs or {})}
        check_weights = encoder_kwargs.pop("check_weights", True)
        loading_kwargs = {key: value for key, value in encoder_kwargs.items() if key != "dtype"}
        with explain_errors(pretrained_model_name_or_path, (), **loading_kwargs):
            encoder_config = AutoConfig.from_pretrained(pretrained_model_name_or_path, **loading_kwargs)
        if tokenizer is None:
            model = cls(cls.config_class(encoder=encoder_config, **config_kwargs))
        else:
            model = cls(cls.config_class.from_tokenizer(tokenizer, encoder=encoder_config, **config_kwargs))
        encoder = model.get_encoder()
        with explain_errors(pretrained_model_name_or_path, (), **encoder_kwargs), _without_report_of_unexpected():
            encoder.cnn, info = AutoModel.from_pretrained(
                pretrained_model_name_or_path, output_loading_info=True, **encoder_kwargs
            )
        if check_weights:
            check_keys(pretrained_model_name_or_path, info["missing_keys"], [], [])
            check_finite(encoder.cnn, pretrained_model_name_or_path)
        align_weights(encoder.cnn)
        encoder.train(model.training)
        model.config.encoder.dtype = None  # type: ignore[union-attr]  # the model has one dtype, its own
        model.config.encoder._name_or_path = ""  # type: ignore[union-attr]  # a folder of this machine is nobody else's
        return model.eval()

    @classmethod
    def _load_with_retries(cls, place, *model_args, cache_dir=None, **kwargs):
        name = str(place)
        cache = Path(cache_dir or constants.HF_HUB_CACHE, "models--" + name.replace("/", "--"))
        before = _times_of_blobs(cache)
        for wait in (1, 2, 4, None):
            try:
                return super().from_pretrained(place, *model_args, cache_dir=cache_dir, **kwargs)
            except OSError as error:
                status = getattr(getattr(error.__cause__, "response", None), "status_code", 0)
                if status < 500:
                    raise
                if wait is None:
                    raise OSError(f"'{name}' cannot be loaded: the Hub answers {status}; try again later.") from error
                time.sleep(wait)
            finally:
                _refuse_damaged(name, cache, before)
        raise AssertionError("the last retry returns or raises")

    @classmethod
    def _parts(cls) -> tuple[Part, ...]:
        """List what a folder must hold beside the weights, to find the field at fault."""

        def build(folder: Path):
            config = cls.config_class._from_folder(folder)
            with torch.device("meta"), _LimitedSize():
                cls._from_config(config)  # in its dtype

        def check_generation(folder: Path):
            vocab_size = cls.config_class._from_folder(folder).vocab_size
            if (folder / "generation_config.json").exists():
                check_generation_config(GenerationConfig.from_pretrained(folder), vocab_size)

        return Part(("config.json",), build), Part(("generation_config.json", "config.json"), check_generation)

    @staticmethod
    def _finalize_model_loading(model, load_config, loading_info):
        """Refuse weights that do not fit before transformers allocates others in their place."""
        if _checks_weights.get():
            fitting = copy.copy(loading_info)
            model._adjust_missing_and_unexpected_keys(fitting)
            is_ignored = load_config.ignore_mismatched_sizes
            check_keys(
                load_config.pretrained_model_name_or_path,
                _without_tied(fitting.missing_keys, model.all_tied_weights_keys),
                []
                if load_config.hf_quantizer
                else [key for key in fitting.unexpected_keys if model._own_weights in key],
                [] if is_ignored else fitting.mismatched_keys,
            )
        return PreTrainedModel._finalize_model_loading(model, load_config, loading_info)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, (nn.RNNBase, CnnRnnLSTMVariant)):  # the base method knows only nn.LSTM
            for name, parameter in module.named_parameters():
                if name.startswith("weight_ih"):
                    init.xavier_uniform_(parameter)
                elif name.startswith("weight_hh"):
                    for gate in parameter.chunk(parameter.shape[0] // module.hidden_size):
                        gate._is_hf_initialized = getattr(parameter, "_is_hf_initialized", False)  # type: ignore[attr-defined]
                        init.orthogonal_(gate)
                else:
                    init.zeros_(parameter)
            is_lstm = isinstance(module, (nn.LSTM, CnnRnnLSTMVariant))
            if is_lstm and not getattr(module.bias_ih_l0, "_is_hf_initialized", False):
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


@contextmanager
def _without_report_of_unexpected():
    """Keep transformers from reporting the head of a classifier, which is meant to be left out, if nothing else is amiss."""

    def is_wanted(record: logging.LogRecord) -> bool:
        message = record.getMessage()
        return "UNEXPECTED" not in message or "MISSING" in message or "MISMATCH" in message

    logger = logging.getLogger(PreTrainedModel.__module__)
    logger.addFilter(is_wanted)
    try:
        yield
    finally:
        logger.removeFilter(is_wanted)


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


def _refuse_faulty_generation_config(place, subfolder: str):
    """Say what transformers does not: it goes on without the generation_config.json that it cannot read."""
    path = Path(place or "", subfolder, "generation_config.json")
    fault = file_fault(path) if path.is_file() else None
    if fault:
        raise CnnRnnLoadingError(f"{shown(path)} {fault}.")


class _LimitedSize(TorchFunctionMode):
    """Stop building a model whose configuration asks for more than any memory holds, in this thread alone."""

    def __init__(self):
        super().__init__()
        self.tensors, self.parameters = 0, 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func is torch.empty:  # what torch's layers make their parameters of
            self.tensors, self.parameters = self.tensors + 1, self.parameters + result.numel()
            if self.tensors > MAX_TENSORS or self.parameters > MAX_PARAMETERS:
                raise ValueError("the model is larger than any memory")
        return result


def check_generation_config(config: GenerationConfig, vocab_size: int):
    """
    Check the fields of a generation configuration that a captioner uses.

    Raises:
        ValueError: a token is outside the vocabulary, a count is no positive number, or a number is none.
    """
    for name in TOKEN_FIELDS:
        value = getattr(config, name, None)
        tokens = value if isinstance(value, list) else [] if value is None else [value]
        if not all(type(token) is int and 0 <= token < vocab_size for token in tokens):
            raise ValueError(f"`{name}` is {shown(value, 80)}, not of the vocabulary of {vocab_size} words")
        if value == [] or (
            isinstance(value, list) and name in ("pad_token_id", "bos_token_id", "decoder_start_token_id")
        ):
            raise ValueError(f"`{name}` is {shown(value, 80)}, not a token id")
    if config.suppress_tokens is not None and not isinstance(config.suppress_tokens, list):
        raise ValueError(f"`suppress_tokens` is {shown(config.suppress_tokens, 80)}, not a list of token ids")
    for name in COUNT_FIELDS:
        value = getattr(config, name, None)
        if value is not None and (type(value) is not int or not 1 <= value <= MAX_LENGTH):
            raise ValueError(f"`{name}` is {shown(value, 80)}, not a number from 1 to {MAX_LENGTH}")
    for name in NUMBER_FIELDS:
        value = getattr(config, name, None)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or not value >= -1e9):
            raise ValueError(f"`{name}` is {shown(value, 80)}, not a number")
    if config.max_length is not None and config.max_new_tokens is None and config.max_length < 2:
        raise ValueError(f"`max_length` is {config.max_length}, which leaves no room for a word after the start token")


def check_keys(place, missing, unexpected, mismatched):
    """
    Refuse weights that are not those of the model.

    Args:
        place: folder or repository of the weights.
        missing: names of parameters that the weights lack.
        unexpected: names of weights that the model lacks.
        mismatched: `(name, shape in the weights, shape in the model)`.

    Raises:
        CnnRnnLoadingError: one of the three is not empty.
    """
    remedy = "take config.json and the weights from one captioner"
    for name, saved, built in sorted(mismatched):
        raise CnnRnnLoadingError(
            f"The weights in {shown(place)} do not fit config.json: {shown(name)} has shape {tuple(saved)} in the weights and "
            f"{tuple(built)} by config.json ({len(mismatched)} such weights): {remedy}."
        )
    faults = []
    if missing:
        faults.append(f"lack {len(missing)} that the model needs ({_first(missing)})")
    if unexpected:
        faults.append(f"hold {len(unexpected)} that the model does not use ({_first(unexpected)})")
    if faults:
        raise CnnRnnLoadingError(
            f"The weights in {shown(place)} {' and '.join(faults)}: {remedy}, or pass `check_weights=False` to initialize "
            "what is missing at random."
        )


def _first(names) -> str:
    return ", ".join(shown(name, 80) for name in sorted(names)[:3]) + (", ..." if len(names) > 3 else "")


def _without_tied(missing: set[str], tied: dict[str, str]) -> set[str]:
    """Leave out parameters that share their tensor with one that is there."""
    shared = {name for pair in tied.items() for name in pair if not set(pair) <= missing}
    return missing - shared


@torch.no_grad()
def check_finite(model: nn.Module, place):
    """
    Refuse weights with NaN, infinite or huge values, and variances below 0: sentences written with them mean nothing.

    Raises:
        CnnRnnLoadingError: a parameter or buffer that is in memory and in floating point is not finite, or exceeds
            `MAX_WEIGHT`, or is a negative variance.
    """
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        is_plain = type(tensor.data) is torch.Tensor and tensor.dtype.is_floating_point and tensor.dtype.itemsize > 1
        if not is_plain or tensor.is_meta or not tensor.numel():
            continue
        # one pass without a copy: NaN and infinity are the extremes of what holds them
        low, high = tensor.aminmax()
        smallest = 0 if name.endswith("running_var") else -MAX_WEIGHT
        if not smallest <= low <= high <= MAX_WEIGHT:
            kind = "negative variances" if -MAX_WEIGHT <= low < smallest else "NaN, infinite or huge values"
            raise CnnRnnLoadingError(
                f"The weights in {shown(place)} hold {kind} (in {name}): take those of an earlier checkpoint, or pass "
                "`check_weights=False`."
            )


def check_dtypes(model: nn.Module, folder: Path):
    """
    Refuse integers where the model has floating-point weights: transformers converts them without a word.

    Raises:
        CnnRnnLoadingError: a file of the folder holds such a weight.
    """
    for path in folder.glob("model*.safetensors"):
        with safe_open(path, framework="pt") as file:
            saved = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point() and saved.get(name, "F").startswith(("I", "U", "BOOL")):
                raise CnnRnnLoadingError(
                    f"{shown(path)} holds {name} as numbers of type {saved[name]}, not in floating point: download the file "
                    "again, or pass `check_weights=False`."
                )


def align_weights(model: nn.Module):
    """Copy weights to aligned memory: CPU matrix products round differently for unaligned tensors."""
    for tensor in (*model.parameters(), *model.buffers()):
        if type(tensor.data) is torch.Tensor and tensor.device.type == "cpu" and tensor.data_ptr() % 64 != 0:
            tensor.data = tensor.data.clone()


__all__ = ["CnnRnnPreTrainedModel", "align_weights", "check_finite", "check_keys"]
