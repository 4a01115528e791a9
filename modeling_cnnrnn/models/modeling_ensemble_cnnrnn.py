"""
An ensemble: several captioners, with different CNNs and decoders too, write one sentence.

    pixel_values (B, M, 3, H, W) -> M captioners -> their probabilities of the next word, averaged -> logits (N, T, V)

It is saved as a folder of folders, each of which is a captioner with its processor.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassClassValidationError
from torch import nn
from transformers import Cache, GenerationConfig, PreTrainedModel
from transformers.dynamic_module_utils import custom_object_save
from transformers.modeling_outputs import Seq2SeqLMOutput
from transformers.utils import ModelOutput

from .configuration_cnnrnn import CnnRnnConfig
from .configuration_ensemble_cnnrnn import CnnRnnEnsembleConfig
from .encoder_cnnrnn import CnnRnnEncoderOutput
from .fast_decoding_cnnrnn import Writer
from .generation_cnnrnn import CnnRnnGenerationMixin
from .loading_cnnrnn import CnnRnnLoadingError
from .loss_cnnrnn import IGNORE_INDEX
from .modeling_cnnrnn import CnnRnnForConditionalGeneration
from .processor_checks_cnnrnn import HUB_KWARGS
from .recurrence_cnnrnn import CnnRnnCache
from .training_steps_cnnrnn import is_plain


def subfolder_of(number: int) -> str:
    """Name the folder of a captioner in that of the ensemble."""
    return f"captioner_{number}"


@dataclass
class CnnRnnEnsembleEncoderOutput(ModelOutput):
    """
    What the captioners of an ensemble see.

    Attributes:
        last_hidden_state: the regions of the first captioner, `(batch_size, num_regions, region_size)`.
        captioners: the outputs of the encoder of each captioner.
    """

    last_hidden_state: torch.Tensor | None = None
    captioners: tuple[CnnRnnEncoderOutput, ...] | None = None

    @classmethod
    def of(cls, encoder_outputs: Any) -> "CnnRnnEnsembleEncoderOutput":
        """Copy the outputs of the encoder, as an object or as a tuple."""
        last_hidden_state, captioners = tuple(
            encoder_outputs.values() if isinstance(encoder_outputs, dict) else encoder_outputs
        )
        return cls(last_hidden_state, tuple(CnnRnnEncoderOutput.of(outputs) for outputs in captioners))


class CnnRnnEnsembleCache(CnnRnnCache):
    """
    The memories of the captioners of an ensemble between two words; travels as `past_key_values`.

    Attributes:
        caches: those of the captioners.
    """

    def __init__(self, caches: Sequence[CnnRnnCache]):
        Cache.__init__(self, layers=[])
        self.caches = list(caches)

    @property
    def state(self):  # type: ignore[override]
        return self.caches[0].state

    def reset(self):
        for cache in self.caches:
            cache.reset()

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.caches[0].get_seq_length()

    def reorder_cache(self, beam_idx: torch.Tensor):
        for cache in self.caches:
            cache.reorder_cache(beam_idx)

    def batch_repeat_interleave(self, repeats: int):
        for cache in self.caches:
            cache.batch_repeat_interleave(repeats)

    def batch_select_indices(self, indices: torch.Tensor):
        for cache in self.caches:
            cache.batch_select_indices(indices)


class CnnRnnEnsembleEncoder(nn.Module):
    """The CNNs of the captioners. It has no weights of its own: the captioners have them."""

    main_input_name = "pixel_values"

    def __init__(self, captioners: Sequence[CnnRnnForConditionalGeneration]):
        super().__init__()
        self.captioners = tuple(captioners)

    def forward(
        self, pixel_values: torch.Tensor | None = None, image_features: torch.Tensor | None = None, **kwargs
    ) -> CnnRnnEnsembleEncoderOutput:
        """
        Encode images.

        Args:
            pixel_values: of each captioner, `(batch_size, num_captioners, 3, height, width)`, filled up with NaN at the bottom
                and at the right where they differ in size, as [`CnnRnnEnsembleProcessor`] returns them; or one image for
                all, `(batch_size, 3, height, width)`.

        Raises:
            ValueError: they are missing, or of another shape.
        """
        count = len(self.captioners)
        if pixel_values is None or image_features is not None:
            raise ValueError("Pass `pixel_values` or `encoder_outputs`: `image_features` are of one captioner alone.")
        if pixel_values.ndim == 5 and pixel_values.shape[1] == count:
            images = [_without_filling(pixels) for pixels in pixel_values.unbind(1)]
        elif pixel_values.ndim == 4:
            images = [pixel_values] * count
        else:
            raise ValueError(
                f"`pixel_values` has shape {tuple(pixel_values.shape)}: pass (batch_size, {count}, 3, height, width), as the "
                "processor of the ensemble returns it."
            )
        encoded = tuple(
            captioner.get_encoder()(pixels) for captioner, pixels in zip(self.captioners, images, strict=True)
        )
        return CnnRnnEnsembleEncoderOutput(encoded[0].last_hidden_state, encoded)


def _without_filling(pixels: torch.Tensor) -> torch.Tensor:
    """Cut off the rows and columns at the bottom and at the right in which everything is NaN."""
    is_pixel = ~pixels.isnan().all(dim=1).all(dim=0)  # (height, width)
    height, width = (int(is_pixel.any(dim=dim).sum()) for dim in (1, 0))
    return pixels[:, :, :height, :width] if height and width else pixels


class EnsembleWriter(Writer):
    """
    The sentences of a call of `generate` on packed weights, as they grow, from what several captioners predict.

    Args:
        writers: of each captioner.
        average: makes one prediction of their logits.
    """

    def __init__(self, writers: Sequence[Writer], average: Callable[[Sequence[torch.Tensor]], torch.Tensor]):
        self.writers, self.average = writers, average
        self.input_ids, self.record, self.processors = writers[0].input_ids, writers[0].record, writers[0].processors
        self.logits = average([writer.logits for writer in writers])

    def read(self):
        for writer in self.writers:
            writer.input_ids = self.input_ids
            writer.read()
        self.logits = self.average([writer.logits for writer in self.writers])

    def reorder(self, rows: torch.Tensor):
        self.input_ids = self.input_ids.index_select(0, rows)
        for writer in self.writers:
            writer.reorder(rows)

    def final_cache(self) -> CnnRnnEnsembleCache:
        return CnnRnnEnsembleCache([writer.final_cache() for writer in self.writers])


class CnnRnnEnsemble(PreTrainedModel, CnnRnnGenerationMixin):
    """
    Several captioners that write one sentence: the probabilities of the next word are averaged at each step.

    ```python
    >>> from modeling_cnnrnn import CnnRnnEnsemble, CnnRnnEnsembleProcessor

    >>> places = ["outputs/first", "outputs/second"]
    >>> ensemble = CnnRnnEnsemble.from_captioners(places)
    >>> processor = CnnRnnEnsembleProcessor.from_captioners(places)
    >>> ensemble.generate(**processor(images="dog.jpg", return_tensors="pt"), num_beams=3)
    >>> ensemble.save_pretrained("outputs/ensemble")
    >>> processor.save_pretrained("outputs/ensemble")
    ```
    """

    config: CnnRnnEnsembleConfig
    captioners: Any  # the captioners, in a `ModuleList`
    main_input_name = "pixel_values"
    input_modalities = ["image", "text"]  # noqa: RUF012
    encoder_output_class = CnnRnnEnsembleEncoderOutput
    _is_stateful = True

    def __init__(
        self, config: CnnRnnEnsembleConfig, captioners: Sequence[CnnRnnForConditionalGeneration] | None = None
    ):
        super().__init__(config)
        if captioners is None:
            captioners = [
                CnnRnnForConditionalGeneration(CnnRnnConfig.from_dict(fields)) for fields in config.captioners or ()
            ]
        self.captioners = nn.ModuleList(captioners)
        self.generation_config = captioners[0].generation_config

    @classmethod
    def from_captioners(
        cls,
        captioners: Sequence[Any],
        weights: Sequence[float] | None = None,
        average: str = "probabilities",
        **kwargs,
    ) -> "CnnRnnEnsemble":
        """
        Make an ensemble.

        Args:
            captioners: captioners, or the folders or repositories to load them from.
            weights, average: as in [`CnnRnnEnsembleConfig`].
            kwargs: arguments of `from_pretrained` of each captioner.

        Raises:
            ValueError: their vocabularies or special tokens differ, or a weight is not positive.
        """
        loaded: list[Any] = [
            captioner
            if isinstance(captioner, nn.Module)
            else CnnRnnForConditionalGeneration.from_pretrained(captioner, **kwargs)
            for captioner in captioners
        ]
        try:
            config = CnnRnnEnsembleConfig(
                captioners=[captioner.config.to_dict() for captioner in loaded],
                weights=list(weights) if weights is not None else None,
                average=average,  # type: ignore[arg-type]
            )
        except StrictDataclassClassValidationError as error:  # whose message has several lines
            raise ValueError(str(error.__cause__)) from error
        return cls(config, loaded).eval()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, config=None, **kwargs):
        """
        Load an ensemble, each captioner from its folder, see [`CnnRnnForConditionalGeneration.from_pretrained`].

        Raises:
            OSError: as in transformers.
            CnnRnnLoadingError: a file is missing, damaged or wrong.
        """
        where = {name: kwargs[name] for name in HUB_KWARGS if name in kwargs}
        if config is None:
            config = CnnRnnEnsembleConfig.from_pretrained(pretrained_model_name_or_path, **where)
        captioners = [
            CnnRnnForConditionalGeneration.from_pretrained(
                pretrained_model_name_or_path, *model_args, subfolder=subfolder_of(number), **kwargs
            )
            for number in range(len(config.captioners))
        ]
        if [c.config.vocab_size for c in captioners] != [config.vocab_size] * len(captioners):
            raise CnnRnnLoadingError(
                f"The captioners in '{pretrained_model_name_or_path}' have other vocabularies than config.json says: save the "
                "ensemble again."
            )
        ensemble = cls(config, captioners).eval()
        ensemble.generation_config = GenerationConfig.from_pretrained(pretrained_model_name_or_path, **where)
        ensemble.name_or_path = str(pretrained_model_name_or_path)
        return ensemble

    def save_pretrained(self, save_directory: str | os.PathLike, *args, push_to_hub: bool = False, **kwargs):
        """
        Save each captioner into a folder of its own, and beside them what binds them together, with the code.

        Raises:
            ValueError: the ensemble should be pushed in the same call.
        """
        if push_to_hub:
            raise ValueError("`push_to_hub` is True: save the ensemble, then call its `push_to_hub`.")
        # imports in functions are copied too
        from .pipeline_cnnrnn import CUSTOM_PIPELINES

        for number, captioner in enumerate(self.captioners):
            captioner.save_pretrained(Path(save_directory, subfolder_of(number)), *args, **kwargs)
        self.config.auto_map = {
            **(getattr(self.config, "auto_map", None) or {}),
            "AutoModel": "modeling_ensemble_cnnrnn.CnnRnnEnsemble",
            "AutoProcessor": "processing_ensemble_cnnrnn.CnnRnnEnsembleProcessor",
        }
        self.config.custom_pipelines = CUSTOM_PIPELINES
        self.config.architectures = [type(self).__name__]
        if self._auto_class is not None:
            custom_object_save(self, save_directory, config=self.config)  # type: ignore[arg-type]
        self.config.save_pretrained(save_directory)
        self.generation_config.save_pretrained(save_directory)

    @property
    def processor_class(self) -> Any:
        """The class of its processor, which imports this file."""
        from .processing_ensemble_cnnrnn import CnnRnnEnsembleProcessor

        return CnnRnnEnsembleProcessor

    def get_encoder(self, modality: str | None = None) -> CnnRnnEnsembleEncoder:
        return CnnRnnEnsembleEncoder([*self.captioners])

    def get_input_embeddings(self):
        return self.captioners[0].get_input_embeddings()

    def get_output_embeddings(self):
        return None  # each captioner has its own

    def prepare_decoder_input_ids_from_labels(self, labels: torch.Tensor) -> torch.Tensor:
        return self.captioners[0].prepare_decoder_input_ids_from_labels(labels)

    def average(self, logits: Sequence[torch.Tensor]) -> torch.Tensor:
        """Average what the captioners predict: logits of each `(..., vocab_size)` to log-probabilities of the same shape."""
        log_probs = torch.stack([scores.float().log_softmax(dim=-1) for scores in logits])
        weights = log_probs.new_tensor(self.config.weights or [1.0] * len(logits))
        weights = (weights / weights.sum()).view(-1, *[1] * (log_probs.ndim - 1))
        if self.config.average == "probabilities":
            return (log_probs + weights.log()).logsumexp(dim=0)
        return (log_probs * weights).sum(dim=0).log_softmax(dim=-1)

    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        decoder_input_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        encoder_outputs: CnnRnnEnsembleEncoderOutput | tuple | None = None,
        image_features: torch.Tensor | None = None,
        past_key_values: CnnRnnEnsembleCache | None = None,
        use_cache: bool | None = None,
        num_items_in_batch: int | None = None,
        **kwargs,
    ) -> Seq2SeqLMOutput:
        """
        Predict words.

        Args:
            pixel_values: as in [`CnnRnnEnsembleEncoder`].
            labels: captions, of which the loss is computed; as in [`CnnRnnForConditionalGeneration`].
            decoder_input_ids, decoder_attention_mask, use_cache, num_items_in_batch: as there.
            encoder_outputs: result of `get_encoder()`, in place of `pixel_values`.

        Returns:
            `logits`: log-probabilities of the ensemble, `(batch_size, T, vocab_size)` or `(batch_size, K, T, vocab_size)`.
            `loss`: the cross-entropy per token, in nats.
        """
        if encoder_outputs is None:
            encoder_outputs = self.get_encoder()(pixel_values, image_features)
        encoded = CnnRnnEnsembleEncoderOutput.of(encoder_outputs)
        if decoder_input_ids is None and labels is not None:
            decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        use_cache = (self.config.use_cache if use_cache is None else use_cache) and labels is None
        caches = past_key_values.caches if past_key_values is not None else [None] * len(self.captioners)
        outputs = [
            captioner(
                encoder_outputs=images,
                decoder_input_ids=decoder_input_ids,
                decoder_attention_mask=decoder_attention_mask,
                past_key_values=cache,
                use_cache=use_cache,
            )
            for captioner, images, cache in zip(self.captioners, encoded.captioners or (), caches, strict=True)
        ]
        logits, loss = self.average([output.logits for output in outputs]), None
        if labels is not None:
            is_padding = torch.eq(labels, self.config.pad_token_id)  # type: ignore[arg-type]
            targets = labels.masked_fill(is_padding, IGNORE_INDEX).flatten()
            num_items = num_items_in_batch if num_items_in_batch is not None else (targets != IGNORE_INDEX).sum()
            loss = F.nll_loss(logits.flatten(0, -2), targets, ignore_index=IGNORE_INDEX, reduction="sum") / num_items
        cache = CnnRnnEnsembleCache([output.past_key_values for output in outputs]) if use_cache else None
        return Seq2SeqLMOutput(
            loss=loss,
            logits=logits,
            past_key_values=cache,  # type: ignore[arg-type]
            encoder_last_hidden_state=encoded.last_hidden_state,
        )

    def _fast_writer(
        self, input_ids, logits_processor, stopping_criteria, generation_config, kwargs, expand_size=1
    ) -> EnsembleWriter | None:
        """Make what the loops of this package need, if each captioner can; attention maps are of one captioner alone."""
        if generation_config.output_attentions or not is_plain(self, CnnRnnEnsemble):
            return None
        writers = []
        for captioner, images in zip(self.captioners, kwargs["encoder_outputs"]["captioners"], strict=True):
            own = {**kwargs, "encoder_outputs": images}
            writer = captioner._fast_writer(
                input_ids, logits_processor, stopping_criteria, generation_config, own, expand_size
            )
            if writer is None:
                return None
            writers.append(writer)
        return EnsembleWriter(writers, self.average)

    def _expand_inputs_for_generation(self, expand_size=1, is_encoder_decoder=False, input_ids=None, **model_kwargs):
        input_ids, model_kwargs = super()._expand_inputs_for_generation(  # type: ignore[misc]
            expand_size, is_encoder_decoder, input_ids, **model_kwargs
        )
        encoder_outputs = model_kwargs.get("encoder_outputs")
        if expand_size > 1 and encoder_outputs is not None:
            encoder_outputs["captioners"] = tuple(
                _repeat(outputs, expand_size) for outputs in encoder_outputs["captioners"]
            )
        return input_ids, model_kwargs


def _repeat(encoder_outputs: CnnRnnEncoderOutput, count: int) -> CnnRnnEncoderOutput:
    repeated: Any = {
        name: value.repeat_interleave(count, dim=0)
        for name, value in encoder_outputs.items()
        if isinstance(value, torch.Tensor)
    }
    return CnnRnnEncoderOutput(**repeated)


__all__ = ["CnnRnnEnsemble", "CnnRnnEnsembleCache", "CnnRnnEnsembleEncoderOutput"]
