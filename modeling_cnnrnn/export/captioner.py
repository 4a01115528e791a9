"""
Write sentences about photographs, with NumPy, Pillow and ONNX Runtime alone.

    python captioner.py photo.jpg [more.jpg ...] [--num_beams 3]
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


class Captioner:
    """The captioner in a folder that `cnnrnn export` has written; it uses `num_threads` threads."""

    def __init__(self, folder: str | Path = Path(__file__).parent, num_threads: int = 1):
        self.settings = json.loads(Path(folder, "captioner.json").read_text(encoding="utf-8"))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # weights that are stored in 8 bits become floats once, and not at each step
        options.add_session_config_entry(
            "session.disable_quant_qdq", str(int(self.settings["dtype"] == "int8-weights"))
        )
        self.encoder, self.decoder = (
            onnxruntime.InferenceSession(Path(folder, name), options, ["CPUExecutionProvider"])
            for name in ("encoder.onnx", "decoder.onnx")
        )
        self.features, self.outputs = ([o.name for o in graph.get_outputs()] for graph in (self.encoder, self.decoder))
        self.inputs = [i.name for i in self.decoder.get_inputs()]

    def load_pixels(self, source: Any) -> np.ndarray:
        """Load a path, file or image of PIL as the CNN sees it: RGB, resized and cropped, `(height, width, 3)`."""
        image = source
        if not isinstance(source, Image.Image):
            image = Image.open(source)
            side = self.settings["min_side"]
            image.draft("RGB", (side, side))  # decodes a large JPEG at a part of its size
        image = ImageOps.exif_transpose(image)
        if image.has_transparency_data:
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        size, crop = self.settings["size"], self.settings["crop_size"]
        if isinstance(size, int):  # of the shortest edge
            size = [max(size, int(size * edge / min(image.size))) for edge in image.size[::-1]]
        image = image.convert("RGB").resize(size[::-1], self.settings["resample"])
        if crop:
            top, left = ((edge - cropped) // 2 for edge, cropped in zip(size, crop, strict=True))
            image = image.crop((left, top, left + crop[1], top + crop[0]))
        return np.asarray(image)

    def generate(self, pixels: np.ndarray, **options: Any) -> list[dict[str, list]]:
        """
        Search for sentences as `generate` of transformers does: greedily with one beam, else by beam search.

        Args:
            pixels: `(height, width, 3)`, of `load_pixels`.
            options: `num_beams`, `max_length`, `length_penalty`, `early_stopping`, `no_repeat_ngram_size`; by default as in
                `captioner.json`.

        Returns:
            A sentence for each beam, best first: `token_ids`, `log_probs` and, with attention, the `maps` of its tokens.
        """
        config = {**self.settings["generation"], **options}
        num_beams, max_length, penalty = config["num_beams"], config["max_length"], config["length_penalty"]
        stops_when_full = config["early_stopping"] is True or num_beams == 1
        memory = dict(zip(self.features, self.encoder.run(None, {"pixels": pixels[None]}), strict=True))
        memory.update({name: value.repeat(num_beams, 1) for name, value in memory.items() if name in ("h", "c")})
        running: list[dict[str, list]] = [{"token_ids": [], "log_probs": [], "maps": []}] * num_beams
        scores = np.array([0.0] + [-1e9] * (num_beams - 1), np.float32)
        finished: list[tuple[float, dict]] = []
        for length in range(1, max_length):
            words = [[config["decoder_start_token_id"], *beam["token_ids"]] for beam in running]
            memory.update(tokens=np.array([tokens[-1] for tokens in words]), position=np.array(length - 1))
            outputs = self.decoder.run(None, {name: memory[name] for name in self.inputs})
            step = dict(zip(self.outputs, outputs, strict=True))
            for row, tokens in enumerate(words):
                step["log_probs"][row, repeating(tokens, config["no_repeat_ngram_size"])] = -np.inf
            totals = (step["log_probs"] + scores[:, None] if num_beams > 1 else step["log_probs"]).ravel()
            count = min(max(2, 1 + len(config["eos_token_id"])) * num_beams, len(totals))
            # the best are among the few that reach the last of the best maxima of columns
            maxima = totals[: len(totals) // 32 * 32].reshape(32, -1).max(axis=0)
            least = np.partition(maxima, -count)[-count] if len(maxima) >= count else -np.inf
            best = np.flatnonzero(totals >= least)
            best = best[np.argsort(-totals[best], kind="stable")][:count]
            rows, token_ids = np.divmod(best, step["log_probs"].shape[1])
            beams = [
                {
                    "token_ids": running[row]["token_ids"] + [int(token)],
                    "log_probs": running[row]["log_probs"] + [float(step["log_probs"][row, token])],
                    "maps": running[row]["maps"] + ([step["attention"][row]] if "attention" in step else []),
                }
                for row, token in zip(rows, token_ids, strict=True)
            ]
            is_end = [token in config["eos_token_id"] or length == max_length - 1 for token in token_ids.tolist()]
            finished += [(totals[best[i]] / length**penalty, beams[i]) for i in range(num_beams) if is_end[i]]
            finished = sorted(finished, key=lambda entry: -entry[0])[:num_beams]
            alive = [i for i, ends in enumerate(is_end) if not ends][:num_beams]
            longest = max_length - 1 if config["early_stopping"] == "never" and penalty > 0 else length
            if len(alive) < num_beams or (
                len(finished) == num_beams
                and (stops_when_full or totals[best[alive[0]]] / longest**penalty <= finished[-1][0])
            ):
                break
            running, scores = [beams[i] for i in alive], totals[best[alive]]
            memory.update({name: step[f"next_{name}"][:, rows[alive]] for name in ("h", "c") if name in memory})
        return [beam for _, beam in finished]

    def decode(self, token_ids: list[int]) -> str:
        """Join the texts of tokens to a sentence."""
        pieces, unspaced, text = self.settings["pieces"], set(self.settings["unspaced"]), ""
        words = [token for token in token_ids if pieces[token]]
        for previous, token in zip([None, *words], words, strict=False):
            # scripts without spaces have none between their own words
            text += pieces[token].lstrip() if {previous, token} <= unspaced else pieces[token]
        return text.strip()

    def __call__(self, source: Any, **options: Any) -> str:
        """Write a sentence about a path, file or image of PIL; options as in `generate`."""
        return self.decode(self.generate(self.load_pixels(source), **options)[0]["token_ids"])


def repeating(token_ids: list[int], size: int) -> list[int]:
    """List the tokens that would end an n-gram of this size a second time; none where the size is 0."""
    starts = range(len(token_ids) - size + 1 if size else 0)
    end = token_ids[len(token_ids) - size + 1 :]
    return [token_ids[start + size - 1] for start in starts if token_ids[start : start + size - 1] == end]


def main() -> None:
    """Run the command line of the process."""
    parser = argparse.ArgumentParser(description="Write sentences about photographs.")
    parser.add_argument("images", nargs="+", help="Files of photographs.")
    parser.add_argument("--num_beams", type=int, default=3, help="Beams of the search; 1 is greedy search.")
    args = parser.parse_args()
    captioner, status = Captioner(), 0
    for name in args.images:
        try:
            sentence = captioner(name, num_beams=args.num_beams)
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            is_unknown = isinstance(error, Image.UnidentifiedImageError)
            reason = "it is no image of a known format" if is_unknown else getattr(error, "strerror", None) or error
            print(f"{name} could not be read: {reason}", file=sys.stderr)
            status = 1
        else:
            print(sentence if len(args.images) == 1 else f"{name}: {sentence}")
    sys.exit(status)


if __name__ == "__main__":
    main()
