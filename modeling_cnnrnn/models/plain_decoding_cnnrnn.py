"""The sentences of a call of `generate` as they grow, by the forward pass of any model, on any device."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig


@dataclass
class Record:
    """What a call of `generate` with `return_dict_in_generate` returns of each step; lists that nobody asked for are `None`."""

    scores: list | None
    logits: list | None
    attentions: list | None
    hidden_states: list | None
    encoder_attentions: tuple | None
    encoder_hidden_states: tuple | None

    @classmethod
    def of(cls, config: GenerationConfig, encoder_outputs) -> "Record":
        wanted = config.return_dict_in_generate
        attentions, hidden_states = wanted and config.output_attentions, wanted and config.output_hidden_states
        return cls(
            scores=[] if wanted and config.output_scores else None,
            logits=[] if wanted and config.output_logits else None,
            attentions=[] if attentions else None,
            hidden_states=[] if hidden_states else None,
            encoder_attentions=encoder_outputs.get("attentions") if attentions else None,
            encoder_hidden_states=encoder_outputs.get("hidden_states") if hidden_states else None,
        )

    def outputs(self) -> dict:
        """The fields that greedy search, sampling and beam search share."""

        def as_tuple(steps: list | None) -> tuple | None:
            return tuple(steps) if steps is not None else None

        return {
            "scores": as_tuple(self.scores),
            "logits": as_tuple(self.logits),
            "encoder_attentions": self.encoder_attentions,
            "encoder_hidden_states": self.encoder_hidden_states,
            "decoder_attentions": (None,) * len(self.attentions) if self.attentions is not None else None,
            "cross_attentions": as_tuple(self.attentions),
            "decoder_hidden_states": as_tuple(self.hidden_states),
        }


class Recorder:
    """What both writers of this package do with the words and the scores of a step."""

    input_ids: torch.Tensor
    logits: torch.Tensor
    processors: list
    record: Record

    def process(self, scores: torch.Tensor) -> torch.Tensor:
        """Note logits and scores of the next word, and let the processors change the scores in between."""
        if self.record.logits is not None:
            self.record.logits.append(self.logits.clone())
        for processor in self.processors:
            scores = processor(self.input_ids, scores)
        if self.record.scores is not None:
            self.record.scores.append(scores)
        return scores

    def append(self, words: torch.Tensor):
        self.input_ids = torch.cat([self.input_ids, words[:, None]], dim=1)


class PlainWriter(Recorder):
    """
    The sentences of a call of `generate`, N rows, as they grow.

    Args:
        model: the captioner.
        input_ids: prompts, `(N / expand_size, T)`.
        model_kwargs: arguments of its forward pass.
        expand_size: rows that are made of each prompt.

    Attributes:
        input_ids: words so far, `(N, T)`.
        logits: of the next word, `(N, vocab_size)`.
    """

    def __init__(
        self,
        model: Any,
        input_ids: torch.Tensor,
        processors: list,
        config: GenerationConfig,
        model_kwargs: dict[str, Any],
        expand_size: int = 1,
    ):
        self.model, self.processors = model, processors
        self.input_ids, self.model_kwargs = model._expand_inputs_for_generation(
            expand_size, is_encoder_decoder=True, input_ids=input_ids, **model_kwargs
        )
        self.record = Record.of(config, self.model_kwargs["encoder_outputs"])
        self.read()

    def read(self):
        """Read the words that the model has not read."""
        inputs = self.model.prepare_inputs_for_generation(self.input_ids, **self.model_kwargs)
        outputs = self.model(**inputs, return_dict=True)
        self.model_kwargs = self.model._update_model_kwargs_for_generation(
            outputs, self.model_kwargs, is_encoder_decoder=True
        )
        self.logits = outputs.logits[:, -1].float()
        if self.record.attentions is not None:
            self.record.attentions.append(outputs.cross_attentions)
        if self.record.hidden_states is not None:
            self.record.hidden_states.append(outputs.decoder_hidden_states)

    def reorder(self, rows: torch.Tensor):
        """Let each sentence go on from that of another row of the same image."""
        self.input_ids = self.input_ids.index_select(0, rows)
        if self.final_cache() is not None:
            self.final_cache().reorder_cache(rows)

    def final_cache(self) -> Any:
        """The state after all words but the last."""
        return self.model_kwargs.get("past_key_values")


__all__ = ["PlainWriter", "Record", "Recorder"]
