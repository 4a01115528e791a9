"""What the Space does with a picture: sentences, how probable they are, and where the model looked for each word."""

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
    What the model wrote.

    Attributes:
        text: the sentence, its prompt included.
        log_probability: of what follows the prompt, with the end, in nats; as `score` of the `image-to-text` pipeline.
        words: each word that the model wrote, as the tokenizer has it.
        word_probabilities: the probability of each.
        maps: for each the picture that the model saw, dark where it did not look; none without attention.
    """

    text: str
    log_probability: float
    words: list[str]
    word_probabilities: list[float]
    maps: list[Image.Image]


class Captioner:
    """
    A captioner of the Hub or a folder.

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
        max_new_tokens: int = 24,
        prompt: str = "",
    ) -> list[Sentence]:
        """
        Write sentences about a picture.

        Args:
            picture: an image of PIL, or the path of an image file.
            num_sentences: how many.
            num_beams: width of the search for the best sentences; it is at least `num_sentences`.
            temperature: draw sentences by chance instead, the more daring the higher.
            max_new_tokens: how many words a sentence has at most.
            prompt: how all sentences begin.

        Returns:
            The sentences: those of the search in its order, those drawn by their probability.

        Raises:
            ValueError: the picture cannot be used, or the prompt holds a word that the captioner does not know.
        """
        if isinstance(picture, str | Path):
            picture = Path(picture).read_bytes()  # errors then do not tell where it lies on the server
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
        # one pass over the finished sentences gives probabilities and attention, whatever the way of decoding
        outputs = self.model(
            decoder_input_ids=sequences[None, :, :-1],
            encoder_outputs=encoder_outputs,
            use_cache=False,
            output_attentions=True,
        )
        targets = sequences[:, 1:, None]
        log_probabilities = outputs.logits[0].float().log_softmax(dim=-1).gather(-1, targets)[..., 0]  # (K, T)
        attentions = [None] * num_sentences
        if outputs.cross_attentions:
            attentions = outputs.cross_attentions[0][:, 0].float().cpu().numpy()  # (K, T, num_regions)
        num_read = inputs["input_ids"].shape[1] if "input_ids" in inputs else 1
        seen = self.seen_part(picture)
        sentences = [
            self._sentence(ids, num_read, log_probability, attention, seen)
            for ids, log_probability, attention in zip(
                sequences.tolist(), log_probabilities.tolist(), attentions, strict=True
            )
        ]
        return sentences if temperature is None else sorted(sentences, key=lambda s: -s.log_probability)

    def seen_part(self, picture: Image.Image | bytes) -> Image.Image:
        """The picture as the CNN sees it: cut out and resized, its colours as they were."""
        pixels = self.processor(images=picture, do_rescale=False, do_normalize=False, return_tensors="np").pixel_values
        return Image.fromarray(pixels[0].transpose(1, 2, 0).clip(0, 255).astype(np.uint8))

    def _prepare(self, picture: Image.Image | bytes, prompt: str):
        try:
            inputs = self.processor(images=picture, text=prompt or None, return_tensors="pt")
        except ValueError as error:
            raise ValueError(str(error).replace("`images`", "The picture")) from error
        if prompt and self.processor.tokenizer.unk_token_id in inputs["input_ids"]:
            raise ValueError(f"The captioner does not know all words of the prompt '{prompt}': begin with others.")
        return inputs.to(self.model.device)

    def _sentence(
        self,
        ids: list[int],
        num_read: int,
        log_probabilities: list[float],
        attention: np.ndarray | None,
        seen: Image.Image,
    ) -> Sentence:
        """The sentence of `(T + 1,)` tokens, of which the first `num_read` were given."""
        end = self.processor.tokenizer.eos_token_id
        stop = ids.index(end, num_read) + 1 if end in ids[num_read:] else len(ids)
        # what each token adds to the text; "'s" of "man's" is a word of its own
        texts = [self.processor.decode(ids[:i], skip_special_tokens=True) for i in range(num_read, stop + 1)]
        words, probabilities, maps = [], [], []
        for i in range(num_read, stop):
            word = texts[i - num_read + 1][len(texts[i - num_read]) :].strip()
            if word:
                words.append(word)
                probabilities.append(math.exp(log_probabilities[i - 1]))
                if attention is not None and (veiled := veil(seen, attention[i - 1])) is not None:
                    maps.append(veiled)
        return Sentence(texts[-1], sum(log_probabilities[num_read - 1 : stop - 1]), words, probabilities, maps)


def veil(picture: Image.Image, attention: np.ndarray) -> Image.Image | None:
    """
    A picture, dark where the model does not look.

    Args:
        attention: weights of the regions, `(num_regions,)`, row by row.

    Returns:
        The veiled picture, enlarged if it is small; `None` if the regions are no grid.
    """
    columns = round(math.sqrt(len(attention) * picture.width / picture.height))
    if not columns or len(attention) % columns:
        return None
    scale = max(1, MIN_TILE_SIZE // max(picture.size))  # a drawn picture stays as it is, pixel by pixel
    picture = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
    grid = Image.fromarray(attention.reshape(-1, columns) / attention.max())
    light = np.asarray(grid.resize(picture.size, Image.Resampling.BICUBIC)).clip(0, 1)
    visible = 1 - VEIL_OPACITY * (1 - light)
    return Image.fromarray((np.asarray(picture) * visible[..., None]).astype(np.uint8))
