"""Mutations of pictures and of model folders, each drawn from a `random.Random` alone."""

import io
import json
import random
import shutil
import struct
from pathlib import Path
from typing import Any

from PIL import Image


LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 123456\n"
# values that nobody expects where they stand
VALUES = (
    None,
    -1,
    0,
    1,
    3,
    2**31,
    10**13,
    0.5,
    float("nan"),
    True,
    "",
    "resnet",
    "\u202e\x1b[31m",
    [],
    [1, 2],
    {},
    {"a": 1},
)


def sample_pictures() -> list[tuple[str, bytes]]:
    """Small pictures of many formats and modes: the ending of their file, and its bytes."""
    gradient = Image.linear_gradient("L").resize((24, 17))
    colored = Image.merge("RGB", (gradient, gradient.rotate(90), gradient.rotate(180)))
    exif = Image.Exif()
    exif[0x0112] = 6
    pictures: list[tuple[str, Image.Image, dict[str, Any]]] = [
        ("JPEG", colored, {"exif": exif}),
        ("JPEG", colored.convert("CMYK"), {}),
        ("JPEG", gradient, {"progressive": True}),
        ("PNG", colored, {}),
        ("PNG", colored.convert("P"), {"transparency": 3}),
        ("PNG", Image.merge("RGBA", (*colored.split(), gradient)), {}),
        ("PNG", gradient.convert("I;16"), {}),
        ("GIF", colored.convert("P"), {"save_all": True, "append_images": [gradient.convert("P")]}),
        ("WEBP", colored, {}),
        ("BMP", colored, {}),
        ("TIFF", colored, {"compression": "tiff_lzw"}),
        ("TIFF", gradient.convert("F"), {}),
        ("PPM", colored, {}),
        ("ICO", colored, {}),
        ("TGA", colored, {}),
    ]
    samples = []
    for kind, image, options in pictures:
        data = io.BytesIO()
        image.save(data, kind, **options)
        samples.append((f".{kind.lower()}", data.getvalue()))
    return samples


def mutate_picture(samples: list[tuple[str, bytes]], rng: random.Random) -> tuple[str, bytes, str]:
    """The ending and the content of a picture's file, and what was done to it."""
    ending, content = rng.choice(samples)
    content, how = mutate_bytes(content, rng)
    if rng.random() < 0.1:
        ending = rng.choice(samples)[0]
    return ending, content, f"{how} of a {ending} picture"


def mutate_bytes(content: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Bytes with some of them flipped, cut, doubled, moved or replaced, and what was done."""
    how = rng.choice(
        ("flip", "flip", "flip many", "cut", "cut the head", "double", "zero", "number", "swap", "empty", "lfs")
    )
    changed = bytearray(content)
    place = rng.randrange(max(1, len(changed)))
    length = min(len(changed) - place, rng.choice((1, 2, 4, 16, 200)))
    if how in ("flip", "flip many"):
        for _ in range(1 if how == "flip" else rng.randrange(2, 30)):
            if changed:
                changed[rng.randrange(len(changed))] = rng.randrange(256)
    elif how == "cut":
        del changed[place:]
    elif how == "cut the head":
        del changed[:place]
    elif how == "double":
        changed[place:place] = changed[place : place + length]
    elif how == "zero":
        changed[place : place + length] = bytes(length)
    elif how == "number":  # sizes in headers become huge
        changed[place : place + 4] = struct.pack(
            rng.choice("<>") + "I", rng.choice((0, 1, 2**16, 2**31 - 1, 2**32 - 1))
        )
    elif how == "swap":
        other = rng.randrange(max(1, len(changed)))
        changed[place : place + length], changed[other : other + length] = (
            changed[other : other + length],
            changed[place : place + length],
        )
    elif how == "empty":
        changed.clear()
    else:
        changed[:] = LFS_POINTER
    return bytes(changed), f"{how} at {place}"


def mutate_folder(whole: Path, mutated: Path, rng: random.Random) -> str:
    """Copy a captioner's folder with one of its files changed or missing; returns what was done."""
    mutated.mkdir()
    for path in whole.iterdir():
        shutil.copy(path, mutated)
    path = rng.choice(sorted(path for path in mutated.iterdir() if path.suffix in (".json", ".safetensors")))
    kind = rng.random()
    if kind < 0.06:
        path.unlink()
        return f"{path.name} removed"
    if path.suffix == ".json" and kind < 0.8:
        content = json.loads(path.read_text(encoding="utf-8"))
        how = _mutate_json(content, rng)
        path.write_text(json.dumps(content), encoding="utf-8")
        return f"{path.name}: {how}"
    if path.suffix == ".safetensors" and kind < 0.6:
        return f"{path.name}: {_mutate_weights(path, rng)}"
    content, how = mutate_bytes(path.read_bytes(), rng)
    path.write_bytes(content)
    return f"{path.name}: {how}"


def _mutate_json(content: Any, rng: random.Random) -> str:
    """Remove, replace or add an entry somewhere in a document."""
    places: list[tuple[Any, Any, str]] = []

    def walk(value: Any, name: str) -> None:
        entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, item in entries:
            places.append((value, key, f"{name}.{key}"))
            walk(item, f"{name}.{key}")

    walk(content, "")
    container, key, name = rng.choice(places)
    if rng.random() < 0.3:
        del container[key]
        return f"{name} removed"
    value = rng.choice(VALUES)
    container[key] = value
    return f"{name} = {value!r}"


def _mutate_weights(path: Path, rng: random.Random) -> str:
    """Change the header of a safetensors file, or its numbers."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + length]), bytearray(content[8 + length :])
    name = rng.choice(sorted(header.keys() - {"__metadata__"}))
    how = rng.choice(("removed", "renamed", "reshaped", "another dtype", "not finite", "json"))
    if how == "removed":
        del header[name]
    elif how == "renamed":
        header[name + ".old"] = header.pop(name)
    elif how == "reshaped":
        header[name]["shape"] = [1, *header[name]["shape"]]
    elif how == "another dtype":
        header[name]["dtype"] = rng.choice(("F16", "I32", "U8", "X"))
    elif how == "not finite":
        start, end = header[name]["data_offsets"]
        if end - start >= 4:
            data[start : start + 4] = struct.pack("<f", rng.choice((float("nan"), float("inf"))))
    else:
        how = _mutate_json(header, rng)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(data))
    return f"{name} {how}"
