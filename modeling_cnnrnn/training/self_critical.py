"""
Self-critical training: sentences that the model draws itself are made more or less likely by how well they score.

The gradient of the expected reward r is that of `(r - b) * log p(sample)`, for any baseline b that does not depend on the
sample. b is the reward of the greedy sentence (https://arxiv.org/abs/1612.00563), or the mean reward of the other samples
of the image (https://arxiv.org/abs/2003.09971), which needs no further sentence.
"""

import zlib
from collections.abc import Hashable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Literal

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from ..metrics import CiderD, DocumentFrequency, cut_after_eos
from ..metrics.bleu import bleu
from ..metrics.diversity import UNFINISHED_ENDINGS
from ..metrics.ngrams import PairedCaptions, encode
from ..models.loss_cnnrnn import IGNORE_INDEX
from ..models.modeling_cnnrnn import CnnRnnForConditionalGeneration
from ..models.recurrence_cnnrnn import CnnRnnCache


class SelfCritical:
    """
    Turns a batch of images into a batch of samples, each weighted by its reward above the baseline.

    ```python
    self_critical = SelfCritical(processor.tokenizer, train_rows["captions"])
    batch, statistics = self_critical.sample(model, batch, rows)
    model(**batch).loss.backward()
    ```

    Several processes each sample and score the images of their own, with the same document frequencies.

    Args:
        tokenizer: of the model; a fast one, which knows where in a caption each word stands.
        references: the captions of each image of the training split, by row. No others: document frequencies of
            validation captions would tell what is said there.
        cider_weight, bleu_weight: the reward is so many times CIDEr-D, from 0 to 10, and BLEU-4, from 0 to 1.
        num_samples: sentences drawn for each image.
        baseline: `"leave_one_out"` or `"greedy"`.
        cross_entropy_weight: weight of the captions of the batch, which are learned beside the samples if it is not 0.
        max_length: of a sample, as in `generate`; by default that of the model's generation config.
        document_frequency: that of `references` by default, `self.document_frequency`. It has a `save` and a `load`, for
            a training on images of which these are a part.

    Raises:
        ValueError: there are no references, no reward, an unknown baseline, or too few samples for it.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        references: Sequence[Sequence[str]],
        cider_weight: float = 1.0,
        bleu_weight: float = 0.0,
        num_samples: int = 5,
        baseline: Literal["leave_one_out", "greedy"] = "leave_one_out",
        cross_entropy_weight: float = 0.0,
        max_length: int | None = None,
        document_frequency: DocumentFrequency | None = None,
    ):
        if baseline not in ("leave_one_out", "greedy"):
            raise ValueError(f"`baseline` is '{baseline}': pass 'leave_one_out' or 'greedy'.")
        fewest = 2 if baseline == "leave_one_out" else 1
        if num_samples < fewest:
            raise ValueError(
                f"`num_samples` is {num_samples}: pass {fewest} or more, the baseline '{baseline}' needs them."
            )
        for name, weight in (("cider_weight", cider_weight), ("bleu_weight", bleu_weight)):
            if weight < 0:
                raise ValueError(f"`{name}` is {weight}: pass 0 or more.")
        if cider_weight == bleu_weight == 0:
            raise ValueError("`cider_weight` and `bleu_weight` are 0: pass one above 0, or there is no reward.")
        self.tokenizer = tokenizer
        self.cider_weight, self.bleu_weight = cider_weight, bleu_weight
        self.num_samples = num_samples
        self.baseline = baseline
        self.cross_entropy_weight = cross_entropy_weight
        self.max_length = max_length
        self.references = encode_references(tokenizer, references)
        scored: dict[Hashable, list[np.ndarray]] = {row: own for row, own in enumerate(self.references) if own}
        if not scored:
            raise ValueError("`references` holds no caption: pass those of the training images.")
        if document_frequency is None:
            document_frequency = DocumentFrequency.from_references(list(scored.values()))
        self.document_frequency = document_frequency
        self._cider_d = CiderD(document_frequency, scored)

    @torch.no_grad()
    def sample(
        self, model: CnnRnnForConditionalGeneration, batch: Mapping[str, torch.Tensor], rows: Sequence[int]
    ) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
        """
        Draw sentences and score them.

        Samples are drawn in the mode that the model is in. The words are drawn one by one and their log-probabilities are
        taken in one pass later, where dropout would leave out other units than it did for the draw: turn it off first
        ([`turn_off_dropout`]), and the gradient is exact.

        Args:
            model: the captioner, unwrapped.
            batch: `pixel_values` or `image_features` of B images, and their `labels` `(B, K, T)`. Images without a label,
                such as those that could not be read, are not learned from.
            rows: which row of `references` each image is.

        Returns:
            The batch to call the model with: the images; `labels` `(B, num_samples, T)`, up to the first end token and
            padded with -100; and `caption_weights` `(B, num_samples)`. With a `cross_entropy_weight` the captions of the
            batch follow. And, for the log, means over the samples: `reward`; `baseline`; `length`, in words;
            `without_end`, the share that reached `max_length`; `unfinished`, the share that is empty or ends like "a man
            with a".
        """
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        captions = batch["labels"]
        if len(rows) != len(captions):
            raise ValueError(
                f"`rows` names {len(rows)} images and `batch` holds {len(captions)}: pass one row for each."
            )
        encoder = model.get_encoder()
        if "pixel_values" in inputs and not any(parameter.requires_grad for parameter in encoder.cnn.parameters()):
            # a frozen CNN sees the same in samples, greedy sentences and the training step
            inputs["image_features"], _ = encoder.get_image_features(inputs.pop("pixel_values"))

        sequences = self._draw_samples(model, inputs)
        sentences = cut_after_eos(sequences.cpu().numpy(), self.tokenizer.eos_token_id)
        is_learned = (captions != IGNORE_INDEX).flatten(1).any(dim=1).cpu().numpy()
        is_learned &= [bool(self.references[row]) for row in rows]
        candidates = [
            sentences[start : start + self.num_samples] for start in range(0, len(sentences), self.num_samples)
        ]
        if self.baseline == "greedy":
            greedy = cut_after_eos(self._generate_greedily(model, inputs).cpu().numpy(), self.tokenizer.eos_token_id)
            candidates = [[*samples, sentence] for samples, sentence in zip(candidates, greedy, strict=True)]
        learned = np.flatnonzero(is_learned).tolist()
        rewards = np.zeros((len(rows), len(candidates[0])))
        if learned:
            rewards[learned] = self.score([candidates[image] for image in learned], [rows[image] for image in learned])
        if self.baseline == "greedy":
            rewards, baseline = rewards[:, :-1], rewards[:, -1:]
        else:
            baseline = (rewards.sum(axis=1, keepdims=True) - rewards) / (self.num_samples - 1)

        is_end = sequences == self.tokenizer.eos_token_id
        is_behind_end = is_end.cumsum(dim=1) - is_end.long() > 0
        labels = sequences.masked_fill(is_behind_end, IGNORE_INDEX).unflatten(0, (len(rows), self.num_samples))
        labels[torch.from_numpy(~is_learned).to(labels.device)] = IGNORE_INDEX
        weights = torch.from_numpy(rewards - baseline).to(labels.device, torch.float32)
        if self.cross_entropy_weight:
            # one pass for both, which is also all that `DistributedDataParallel` allows before a backward pass
            length = max(labels.shape[-1], captions.shape[-1])
            padded = [
                torch.nn.functional.pad(part, (0, length - part.shape[-1]), value=IGNORE_INDEX)
                for part in (labels, captions)
            ]
            labels = torch.cat(padded, dim=1)
            weights = torch.cat([weights, weights.new_full(captions.shape[:2], self.cross_entropy_weight)], dim=1)

        words = [ids[ids != self.tokenizer.eos_token_id].tolist() for ids in sentences]
        endings = [text.split()[-1:] for text in self.tokenizer.batch_decode(words)]
        statistics = {
            "reward": float(rewards[learned].mean()) if learned else 0.0,
            "baseline": float(np.broadcast_to(baseline, rewards.shape)[learned].mean()) if learned else 0.0,
            "length": float(np.mean([len(ids) for ids in words])),
            "without_end": 1 - is_end.any(dim=1).float().mean().item(),
            "unfinished": float(np.mean([not ending or ending[0] in UNFINISHED_ENDINGS for ending in endings])),
        }
        return {**inputs, "labels": labels, "caption_weights": weights}, statistics

    def score(self, candidates: Sequence[Sequence[np.ndarray]], rows: Sequence[int]) -> np.ndarray:
        """
        Rewards of sentences.

        Args:
            candidates: of each image as many sentences as of the others, as token ids. The end token counts as a word:
                otherwise sentences that break off before "with a" dog would score like whole ones.
            rows: which row of `references` each image is.

        Returns:
            `(num_images, num_sentences)`.
        """
        sentences = list(chain.from_iterable(candidates))
        rewards = np.zeros(len(sentences))
        if self.cider_weight:
            rewards += self.cider_weight * self._cider_d.score(sentences, image_ids=rows)
        if self.bleu_weight:
            references = [self.references[row] for row, own in zip(rows, candidates, strict=True) for _ in own]
            captions = encode([*chain.from_iterable(references), *sentences])
            _, scores = bleu(PairedCaptions(captions, np.array([len(own) for own in references])))
            rewards += self.bleu_weight * scores[-1]
        return rewards.reshape(len(rows), -1)

    def _draw_samples(self, model: CnnRnnForConditionalGeneration, inputs: dict) -> torch.Tensor:
        # The log-probability that is learned is that of the whole vocabulary: nothing that the model's own generation
        # config asks for (suppressed words, penalties, top-k) may change what is drawn. Padding alone is drawn and not
        # learned; a trained model never writes it. Unlike in `generate`, samples that have ended cost nothing more.
        regions = model.get_encoder()(**inputs, return_dict=True).last_hidden_state
        regions = regions.repeat_interleave(self.num_samples, dim=0)
        max_length = self.max_length if self.max_length is not None else model.generation_config.max_length
        words = torch.full((len(regions), 1), model.config.decoder_start_token_id, device=regions.device)
        sequences = words.new_full((len(regions), max_length - 1), model.config.pad_token_id)
        rows = torch.arange(len(regions), device=regions.device)  # those that have not ended
        cache = CnnRnnCache()
        for step in range(max_length - 1):
            hidden_states = model.model.decoder(words, encoder_hidden_states=regions, past_key_values=cache)[0]
            words = model.lm_head(hidden_states[:, -1]).float().softmax(dim=-1).multinomial(1)
            sequences[rows, step] = words.squeeze(1)
            goes_on = (words.squeeze(1) != self.tokenizer.eos_token_id).nonzero().squeeze(1)
            if not len(goes_on):
                return sequences[:, : step + 1]
            rows, words, regions = rows[goes_on], words[goes_on], regions[goes_on]
            cache.batch_select_indices(goes_on)
        return sequences

    def _generate_greedily(self, model, inputs: dict) -> torch.Tensor:
        # what the model would write when it is used: without dropout, and as its generation config says
        was_training = model.training
        model.eval()
        try:
            length = self.max_length or model.generation_config.max_length
            return model.generate(**inputs, max_length=length, do_sample=False, num_beams=1)[:, 1:]
        finally:
            model.train(was_training)


def turn_off_dropout(model: torch.nn.Module):
    """
    Let a model that goes on training drop nothing any more.

    With dropout, what is rewarded are sentences that the model would never write when it is used. On Flickr8k, half an
    epoch of self-critical training took CIDEr from 0.490 to 0.447 with it and to 0.510 without.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0


def encode_references(
    tokenizer: PreTrainedTokenizerBase, references: Sequence[Sequence[str]]
) -> list[list[np.ndarray]]:
    """
    Token ids of the captions of each image, with the end token; captions without a word are left out.

    A word that the tokenizer does not know has an id of its own behind the vocabulary: it counts among the words of its
    caption, and a sampled `<unk>` does not match it.
    """
    captions = iter(_token_ids(tokenizer, [caption for row in references for caption in row]))
    return [[ids for ids in islice(captions, len(row)) if ids.size > 1] for row in references]


def _token_ids(tokenizer: PreTrainedTokenizerBase, captions: list[str], batch_size: int = 4096) -> Iterator[np.ndarray]:
    vocab_size = len(tokenizer)
    for start in range(0, len(captions), batch_size):  # the places of the words of all captions would fill the memory
        texts = captions[start : start + batch_size]
        encoded = tokenizer(texts, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True)
        for text, ids, places in zip(texts, encoded["input_ids"], encoded["offset_mapping"], strict=True):
            ids = np.array([*ids, tokenizer.eos_token_id])
            for place in np.flatnonzero(ids == tokenizer.unk_token_id):
                first, last = places[place]
                # the same in each run and process, as document frequencies that were saved need it
                checksum = zlib.crc32(text[first:last].lower().encode())
                ids[place] = vocab_size + checksum % (2**31 - vocab_size)
            yield ids
