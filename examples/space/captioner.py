"""Describe a picture for the Space: sentences, their probabilities, and where the model looked for each word."""

import contextlib
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor


with contextlib.suppress(ImportError):  # where the package is installed, its classes go before the repository's code
    import modeling_cnnrnn  # noqa: F401

MIN_TILE_SIZE = 256  # pixels of an attention map's longest side
VEIL_OPACITY = 0.82


@dataclass
class Sentence:
    """
    A sentence about a picture.

    Attributes:
        text: the sentence, with its prompt.
        log_probability: log-probability in nats of the tokens after the prompt, with the end token; the same as `score` of
            the `image-to-text` pipeline.
        words: each word that the model wrote, as the tokenizer has it.
        word_probabilities: the probability of each word.
        maps: for each word the picture that the model saw, dark where it did not look; none without attention.
    """

    text: str
    log_probability: float
    words: list[str]
    word_probabilities: list[float]
    maps: list[Image.Image]


class Captioner:
    """
    Load a captioner from the Hub or a folder.

    Args:
        model_id: its name on the Hub or its folder.

    Raises:
        OSError: there is no such captioner.
    """

    def __init__(self, model_id: str):
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.processor = AutoProcessor.from_pretrained(model_id, trust_remote_code=True)
        model = AutoModelForImageTextToText.from_pretrained(model_id, trust_remote_code=True, dtype=torch.float32)
        self.model = model.to(device).eval()
        self.has_attention = self.model.config.attention_type != "none"

    @torch.inference_mode()
    def describe(
        self,
        picture: Image.Image | str | Path,
        num_sentences: int = 1,
        num_beams: int = 3,
        temperature: float | None = None,
        max_new_tokens: int | None = None,
        prompt: str = "",
    ) -> list[Sentence]:
        """
        Write sentences about a picture.

        Args:
            picture: an image of PIL, or the path of an image file.
            num_sentences: number of sentences.
            num_beams: number of beams of the search for the best sentences; at least `num_sentences` are used.
            temperature: sample sentences instead; the higher, the more daring.
            max_new_tokens: number of tokens of a sentence at most; by default as the model's generation config says.
            prompt: the beginning of all sentences.

        Returns:
            The sentences, in the order of the search, or by their probability if they are sampled.

        Raises:
            ValueError: the picture cannot be read, or the prompt has a word that the captioner does not know.
        """
        if isinstance(picture, str | Path):
            picture = Path(picture).read_bytes()  # error messages then do not show its path on the server
        inputs = self._prepare(picture, prompt.strip())
        decoding = {"num_beams": max(num_beams, num_sentences), "do_sample": False}
        if temperature is not None:
            decoding = {"num_beams": 1, "do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        encoder_outputs = self.model.get_encoder()(inputs.pop("pixel_values"))
        sequences = self.model.generate(
            encoder_outputs=encoder_outputs,
            **inputs,
            **decoding,
            num_return_sequences=num_sentences,
            max_new_tokens=max_new_tokens,
        )
        num_given = inputs["input_ids"].shape[1] if "input_ids" in inputs else 1  # the start token and the prompt
        scores = self.model.score_sentences(
            sequences, encoder_outputs, output_attentions=True, num_prompt_tokens=num_given - 1
        )
        seen = self.seen_part(picture)
        offset = self._offset_of_cells(seen) if self.has_attention else (0.0, 0.0)
        sentences = []
        for index, mask in enumerate(scores.mask):
            log_probs = scores.log_probs[index, mask].tolist()
            attention = None if scores.attentions is None else scores.attentions[index, mask].cpu().numpy()
            ids = sequences[index, : num_given + len(log_probs)].tolist()
            sentences.append(self._sentence(ids, log_probs, attention, seen, offset))
        return sentences if temperature is None else sorted(sentences, key=lambda s: -s.log_probability)

    def seen_part(self, picture: Image.Image | bytes) -> Image.Image:
        """Return the picture as the CNN sees it: cropped and resized, with its colours."""
        pixels = self.processor(images=picture, do_rescale=False, do_normalize=False, return_tensors="np").pixel_values
        return Image.fromarray(pixels[0].transpose(1, 2, 0).clip(0, 255).astype(np.uint8))

    def _offset_of_cells(self, seen: Image.Image) -> tuple[float, float]:
        """Measure how far below and right of its place a cell of the CNN looks, in cells; padding shifts it."""
        if not hasattr(self.model.get_encoder(), "cell_centers"):  # the code of an older captioner
            return 0.0, 0.0
        rows, columns = self.model.get_encoder().cell_centers(seen.height, seen.width)
        return len(rows) * float(rows[0]) - 0.5, len(columns) * float(columns[0]) - 0.5

    def _prepare(self, picture: Image.Image | bytes, prompt: str):
        try:
            inputs = self.processor(images=picture, text=prompt or None, return_tensors="pt")
        except ValueError as error:
            raise ValueError(str(error).replace("`images`", "The picture")) from error
        if prompt and self.processor.tokenizer.unk_token_id in inputs["input_ids"]:
            raise ValueError(f"The captioner does not know all words of the prompt '{prompt}': begin with others.")
        return inputs.to(self.model.device)

    def _sentence(
        self, ids: list[int], log_probs: list[float], attention: np.ndarray | None, seen: Image.Image, offset
    ) -> Sentence:
        """Make the sentence of tokens of which the last ones, with these log-probabilities and attention, were written."""
        start = len(ids) - len(log_probs)
        # the text that each token adds; "'s" of "man's" is a word of its own
        texts = [self.processor.decode(ids[:i], skip_special_tokens=True) for i in range(start, len(ids) + 1)]
        words, probabilities, maps = [], [], []
        for index, log_prob in enumerate(log_probs):
            word = texts[index + 1][len(texts[index]) :].strip()
            if word:
                words.append(word)
                probabilities.append(math.exp(log_prob))
                if attention is not None and (veiled := veil(seen, attention[index], offset)) is not None:
                    maps.append(veiled)
        return Sentence(texts[-1], sum(log_probs), words, probabilities, maps)


def veil(picture: Image.Image, attention: np.ndarray, offset: tuple[float, float] = (0.0, 0.0)) -> Image.Image | None:
    """
    Darken a picture where the model does not look.

    Args:
        attention: weights of the regions, `(num_regions,)`, row by row.
        offset: how far below and right of their places the regions are, in regions.

    Returns:
        The veiled picture, enlarged if it is small; `None` if the regions are no grid.
    """
    columns = round(math.sqrt(len(attention) * picture.width / picture.height))
    if not columns or len(attention) % columns:
        return None
    scale = max(1, MIN_TILE_SIZE // max(picture.size))  # a drawn picture stays as it is, pixel by pixel
    picture = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
    grid = np.pad(attention.reshape(-1, columns) / attention.max(), 1, mode="edge")
    top, left = (1 - min(max(shift, -1.0), 1.0) for shift in offset)
    part = (left, top, left + grid.shape[1] - 2, top + grid.shape[0] - 2)
    light = np.asarray(Image.fromarray(grid).resize(picture.size, Image.Resampling.BICUBIC, part)).clip(0, 1)
    visible = 1 - VEIL_OPACITY * (1 - light)
    return Image.fromarray((np.asarray(picture) * visible[..., None]).astype(np.uint8))
