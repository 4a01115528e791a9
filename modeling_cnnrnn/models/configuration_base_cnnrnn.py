"""What the configurations of all models of this package share: loading that says which field is wrong, and limits of size."""

import os
from typing import Any

from huggingface_hub.errors import StrictDataclassClassValidationError, StrictDataclassFieldValidationError
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from .configuration_convnet_cnnrnn import ConvNetConfig
from .error_messages_cnnrnn import shown
from .loading_cnnrnn import CnnRnnLoadingError, Part, explain_errors, find_pretrained


MAX_CNN_SIZE = 2**20  # of any number in the configuration of a CNN
MAX_LAYERS = 1000  # of a decoder, or of a stage of a CNN
MAX_PARAMETERS = 2**34  # beside the CNN: 64 GiB in float32

# the encoder of a model that was loaded as remote code may be one, and the Auto class knows only CNNs of transformers
if ConvNetConfig.model_type not in CONFIG_MAPPING:  # or the package is there, and registers its own
    AutoConfig.register(ConvNetConfig.model_type, ConvNetConfig)


class CnnRnnPreTrainedConfig(PreTrainedConfig):
    """Load the configuration of a CNN and an RNN, and check its CNN and its special tokens."""

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs
    ):
        """
        Load a configuration, see [`~transformers.PreTrainedConfig.from_pretrained`].

        Raises:
            OSError: as in transformers.
            CnnRnnLoadingError: there is no configuration of such a model, or a field of it is wrong.
        """
        place = find_pretrained(pretrained_model_name_or_path)
        with explain_errors(place, (Part(("config.json",), cls._from_folder),), **kwargs):
            return super().from_pretrained(place, **kwargs)

    @classmethod
    def _from_folder(cls, folder: os.PathLike):
        config_dict, _ = cls.get_config_dict(folder)
        return cls.from_dict(config_dict)

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs):
        """
        Read a configuration file, see [`~transformers.PreTrainedConfig.get_config_dict`].

        Raises:
            ValueError: there is none, or it does not say of which model.
            CnnRnnLoadingError: it is that of another model.
        """
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if not config_dict:
            raise ValueError("there is no config.json")
        kind = config_dict.get("model_type")
        if kind == f"{cls.model_type}_onnx":
            raise CnnRnnLoadingError(
                f"{shown(pretrained_model_name_or_path)} is an exported captioner: run the captioner.py in it, pass it to "
                "`pipeline`, or pass here the captioner that it was made of."
            )
        if kind != cls.model_type and kind in list(CONFIG_MAPPING):
            raise CnnRnnLoadingError(
                f"{shown(pretrained_model_name_or_path)} is a model of the kind {kind!r}: pass one of the kind {cls.model_type!r}."
            )
        if kind != cls.model_type:
            raise ValueError(f"`model_type` is {shown(kind, 80)}, not {cls.model_type!r}")
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
    def from_tokenizer(cls, tokenizer, **kwargs):
        """
        Make the configuration of a model of the words of a tokenizer.

        Args:
            tokenizer: sets `vocab_size` and the ids of the special tokens.
            kwargs: the other fields; a field given here wins over the tokenizer.

        Raises:
            StrictDataclassFieldValidationError, StrictDataclassClassValidationError: as the class.
        """
        names = ("pad_token_id", "bos_token_id", "eos_token_id", "unk_token_id")
        return cls(**{"vocab_size": len(tokenizer)} | {name: getattr(tokenizer, name) for name in names} | kwargs)

    def _check_positive(self, *names: str):
        for name in names:
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}: pass a positive number.")

    def _check_shares(self, *names: str):
        for name in names:
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}: pass a number in [0, 1).")

    def _check_encoder_size(self):
        """Refuse a CNN that would fill the memory, before any of it is allocated."""
        for name, value in vars(self.encoder).items():  # type: ignore[attr-defined]
            for number in value if isinstance(value, list | tuple) else [value]:
                limit = MAX_LAYERS if name in ("depths", "num_hidden_layers") else MAX_CNN_SIZE
                if type(number) is int and number > limit:
                    raise ValueError(f"`encoder.{name}` is {shown(value, 80)}: pass numbers up to {limit}.")

    def special_token_ids(self) -> list[int]:
        """List the ids of padding, beginning, end and unknown words, as far as there are such tokens."""
        eos_token_ids = self.eos_token_id if isinstance(self.eos_token_id, list) else [self.eos_token_id]
        tokens = (self.pad_token_id, self.bos_token_id, *eos_token_ids, self.unk_token_id)  # type: ignore[attr-defined]
        return [token for token in tokens if token is not None]


__all__ = ["MAX_CNN_SIZE", "MAX_LAYERS", "MAX_PARAMETERS", "CnnRnnPreTrainedConfig"]
