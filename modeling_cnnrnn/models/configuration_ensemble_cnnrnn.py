"""Configuration of several captioners that write one sentence."""

import math
from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .configuration_cnnrnn import CnnRnnConfig


SPECIAL_TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id", "unk_token_id", "decoder_start_token_id")


@strict
class CnnRnnEnsembleConfig(PreTrainedConfig):
    r"""
    Configure a [`CnnRnnEnsemble`].

    Args:
        captioners (`list[dict]`, *optional*, defaults to one [`CnnRnnConfig`]):
            Fields of the configuration of each captioner. Vocabulary and special tokens are those of the first, and must be
            those of all.
        weights (`list[float]`, *optional*, defaults to equal ones):
            How much each captioner counts, positive numbers; they are divided by their sum.
        average (`str`, *optional*, defaults to `"probabilities"`):
            What of the next word is averaged, `"probabilities"` or `"log_probabilities"`. The former writes what one
            captioner is sure of, the latter what none of them finds improbable.

    Raises:
        StrictDataclassFieldValidationError: a field has the wrong type or is not one of its choices.
        StrictDataclassClassValidationError: the captioners have not one vocabulary, or the weights are not one for each.
    """

    model_type = "cnnrnn_ensemble"
    keys_to_ignore_at_inference = ["past_key_values", "encoder_last_hidden_state"]  # noqa: RUF012

    captioners: list[dict] | None = None
    weights: list[float | int] | None = None
    average: Literal["probabilities", "log_probabilities"] = "probabilities"
    is_encoder_decoder: bool = True
    use_cache: bool = True
    vocab_size: int | None = None
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    unk_token_id: int | None = None
    decoder_start_token_id: int | None = None

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.captioners is None:
            self.captioners = [CnnRnnConfig().to_dict()]
        if self.captioners:
            for name in ("vocab_size", *SPECIAL_TOKENS):
                setattr(self, name, self.captioners[0].get(name))

    def validate_captioners(self):
        if not self.captioners:
            raise ValueError("`captioners` is an empty list: pass one captioner or more.")
        for number, captioner in enumerate(self.captioners):
            for name in ("vocab_size", *SPECIAL_TOKENS):
                if captioner.get(name) != getattr(self, name):
                    raise ValueError(
                        f"`{name}` is {captioner.get(name)} in captioner {number} and {getattr(self, name)} in the first: an "
                        "ensemble needs captioners of one vocabulary, trained with the same tokenizer."
                    )

    def validate_weights(self):
        weights = self.weights
        if weights is None:
            return
        if len(weights) != len(self.captioners or ()) or not all(w > 0 and math.isfinite(w) for w in weights):
            raise ValueError(
                f"`weights` is {weights} for {len(self.captioners or ())} captioners: pass a positive number for each."
            )


__all__ = ["CnnRnnEnsembleConfig"]
