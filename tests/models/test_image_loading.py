"""Loading images: arrays, files, URLs; within bounds, and whatever is damaged beside the pixels."""

import base64
import contextlib
import gzip
import io
import socket
import struct
import sys
import threading
import time
import types
import zlib
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image, PngImagePlugin

from modeling_cnnrnn import load_image
from modeling_cnnrnn.models import image_download_cnnrnn, image_files_cnnrnn, image_loading_cnnrnn
from modeling_cnnrnn.models.error_messages_cnnrnn import shown


@pytest.fixture
def pixels() -> np.ndarray:
    """An RGB image of 10 x 12 random pixels."""
    return np.random.default_rng(0).integers(0, 256, (10, 12, 3), dtype=np.uint8)


def rgb(image, **options) -> np.ndarray:
    """What `load_image` makes of an image."""
    loaded = load_image(image, **options)
    assert (type(loaded), loaded.mode) == (Image.Image, "RGB")
    return np.asarray(loaded)


def encoded(image: Image.Image, format: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


# --- images: arrays -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "convert",
    [
        lambda x: x,
        lambda x: x.astype(np.int64),
        lambda x: x.astype(np.float32),
        lambda x: x / 255,
        lambda x: x.astype(np.uint16) * 257,
        lambda x: x.transpose(2, 0, 1),
        lambda x: torch.from_numpy(x),
        lambda x: torch.from_numpy(x).permute(2, 0, 1),
        lambda x: torch.from_numpy(x).permute(2, 0, 1) / 255,
        lambda x: (torch.from_numpy(x) / 255).half(),
        lambda x: (torch.from_numpy(x) / 255).bfloat16().requires_grad_(),
        lambda x: Image.fromarray(x),
    ],
    ids=["uint8", "int64", "float255", "float1", "uint16", "chw", "tensor", "chw255", "chw1", "half", "bf16", "pil"],
)
def test_every_scale_and_layout_gives_the_same_pixels(pixels, convert):
    assert np.abs(rgb(convert(pixels)).astype(int) - pixels).max() <= 1  # 1 is the rounding of bfloat16


def test_uint8_is_never_taken_for_the_unit_range():
    ones = np.ones((4, 5, 3), dtype=np.uint8)
    assert rgb(ones).max() == 1
    assert rgb(ones.astype(float)).max() == 255
    assert rgb(ones.astype(bool)).max() == 255


@pytest.mark.parametrize("shape", [(10, 12), (3, 12), (10, 12, 1), (1, 10, 12)])
def test_one_channel_is_grey(shape):
    loaded = rgb(np.full(shape, 7, dtype=np.uint8))
    assert loaded.shape == (shape[-2] if len(shape) == 2 else 10, 12, 3)
    assert (loaded == 7).all()


def test_four_channels_are_laid_on_white(pixels):
    alpha = np.zeros((10, 12, 1), dtype=np.uint8)
    assert (rgb(np.concatenate([pixels, alpha], axis=2)) == 255).all()
    assert (rgb(np.concatenate([pixels, alpha + 255], axis=2)) == pixels).all()


def test_three_channels_are_found_where_other_sizes_fit_too():
    assert rgb(np.zeros((1, 10000, 3), dtype=np.uint8)).shape == (1, 10000, 3)
    assert rgb(torch.zeros(1, 10000, 3)).shape == (1, 10000, 3)
    assert rgb(np.zeros((3, 5, 3), dtype=np.uint8)).shape == (3, 5, 3)
    assert rgb(torch.zeros(3, 5, 3)).shape == (5, 3, 3)
    assert rgb(np.zeros((3, 5, 3), dtype=np.uint8), input_data_format="channels_first").shape == (5, 3, 3)


@pytest.mark.parametrize(
    "shape", [(10, 12, 2), (2, 10, 12), (10, 12, 5), (5, 10, 12), (0, 12, 3), (12,), (1, 1, 2, 3, 3)]
)
def test_a_wrong_shape_is_an_error(shape):
    with pytest.raises(ValueError, match=r"`image` has the shape \("):
        load_image(np.zeros(shape, dtype=np.uint8))


@pytest.mark.parametrize("convert", [lambda x: x / 127.5 - 1, lambda x: x * 300.0, lambda x: x.astype(int) - 9])
def test_pixels_out_of_range_are_an_error(pixels, convert):
    with pytest.raises(ValueError, match=r"`image` holds values from .* before they are normalised"):
        load_image(convert(pixels))


# --- images: formats ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparency_is_laid_on_white(mode):
    image = Image.new("RGBA", (4, 4), (0, 0, 0, 0)).convert(mode)
    assert (rgb(image) == 255).all()


def test_half_transparency_is_mixed_with_white():
    assert np.abs(rgb(Image.new("RGBA", (4, 4), (0, 0, 0, 128))).astype(int) - 127).max() <= 1


def test_a_palette_with_transparency_is_laid_on_white(tmp_path):
    image = Image.new("P", (4, 4), 1)
    image.putpalette([255, 0, 0, 0, 0, 0])
    image.putpixel((0, 0), 0)
    image.save(tmp_path / "palette.png", transparency=1)
    loaded = rgb(tmp_path / "palette.png")
    assert loaded[0, 0].tolist() == [255, 0, 0]
    assert loaded[3, 3].tolist() == [255, 255, 255]


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_sixteen_bits_are_scaled_to_eight(tmp_path, suffix):
    gradient = np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(4, axis=0)
    Image.fromarray(gradient).save(tmp_path / f"deep.{suffix}")
    assert (rgb(tmp_path / f"deep.{suffix}")[0, :, 0] == np.arange(256)).all()


def test_the_rotation_in_exif_is_applied(tmp_path, pixels):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    assert (rgb(tmp_path / "turned.png") == np.rot90(pixels, -1)).all()


def test_an_image_that_is_loaded_is_passed_on_as_it_is(tmp_path, pixels):
    path = tmp_path / "image.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # turned to the right
    Image.fromarray(pixels).save(path, exif=exif, quality=95)
    loaded = load_image(path)
    assert loaded.size == (10, 12)
    assert load_image(loaded) is loaded
    with Image.open(path) as opened:  # an image that its caller has opened is turned too, and once
        assert load_image(load_image(opened)) == loaded
    assert load_image(pixels) is not load_image(pixels)


def test_an_image_is_usable_after_its_file_is_closed(tmp_path, pixels):
    Image.fromarray(pixels).save(tmp_path / "image.png")
    with Image.open(tmp_path / "image.png") as opened:
        loaded = load_image(opened)
    assert np.array_equal(np.asarray(loaded), pixels)


def test_transparency_of_rgb_is_not_passed_on(tmp_path):
    Image.new("RGB", (2, 2), (10, 20, 30)).save(tmp_path / "image.png", transparency=(10, 20, 30))
    with Image.open(tmp_path / "image.png") as opened:
        in_memory = opened.copy()
    assert in_memory.mode == "RGB"
    assert load_image(in_memory).getpixel((0, 0)) == (255, 255, 255)


def test_the_first_frame_of_an_animation_is_taken(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "frames.gif", save_all=True, append_images=frames[1:])
    assert rgb(tmp_path / "frames.gif")[0, 0].tolist() == [255, 0, 0]


# --- images: where they come from -----------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path):
    """The URL of a web server for the files in `tmp_path`."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_paths_urls_and_bytes_give_the_same_image(tmp_path, server, pixels):
    path = tmp_path / "image.png"
    Image.fromarray(pixels).save(path)
    content = path.read_bytes()
    encoded = base64.b64encode(content).decode()
    for source in (path, str(path), f"{server}/image.png", content, encoded, f"data:image/png;base64,{encoded}"):
        assert (rgb(source) == pixels).all()


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.jpg'\) does not exist") as caught:
        load_image(tmp_path / "nothing.jpg")
    assert isinstance(caught.value.__cause__, FileNotFoundError)


def test_a_url_that_fails_is_named(server):
    with pytest.raises(OSError, match=r"nothing\.jpg'\) cannot be downloaded: .*404") as caught:
        load_image(f"{server}/nothing.jpg")
    assert caught.value.__cause__ is not None


def test_a_text_file_is_named(tmp_path):
    (tmp_path / "text.jpg").write_text("not an image")
    with pytest.raises(ValueError, match=r"text\.jpg'\) is not an image that can be read") as caught:
        load_image(tmp_path / "text.jpg")
    assert caught.value.__cause__ is not None


def test_a_decompression_bomb_is_named(tmp_path, monkeypatch):
    Image.new("1", (100, 100)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match=r"bomb\.png'\) is too large") as caught:
        load_image(tmp_path / "bomb.png")
    assert isinstance(caught.value.__cause__, Image.DecompressionBombError)


# --- images: damage beside the pixels -------------------------------------------------------------------------------

CORRUPT_EXIF = {
    "no TIFF header": b"Exif\0\0hello world",
    "cut": b"Exif\0\0II*\0",
    "wild offset": b"Exif\0\0II*\0\xff\xff\xff\x7f",
    "wild entry": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x05\0\xff\xff\xff\xff\xff\xff\xff\x7f",
    "orientation 99": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x63\0\0\0\0\0\0\0",
    "a text as orientation": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x03\0\0\0abc\0\0\0\0\0",
}


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("exif", CORRUPT_EXIF.values(), ids=CORRUPT_EXIF)
def test_a_picture_with_corrupt_exif_is_read_and_passed_on(tmp_path, pixels, format, exif):
    options = {"lossless": True} if format == "WEBP" else {}
    content = encoded(Image.fromarray(pixels), format, exif=exif, **options)
    plain = encoded(Image.fromarray(pixels), format, **options)
    loaded = load_image(content)
    assert (np.asarray(loaded) == np.asarray(Image.open(io.BytesIO(plain)))).all()
    assert "exif" not in loaded.info
    loaded.getexif()
    assert load_image(loaded) is loaded
    with Image.open(io.BytesIO(content)) as opened:  # by a caller
        assert (np.asarray(load_image(opened)) == np.asarray(loaded)).all()


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_applied_once(tmp_path, pixels, orientation, format):
    exif = Image.Exif()
    exif[0x0112] = orientation
    (tmp_path / "image").write_bytes(encoded(Image.fromarray(pixels), format, exif=exif))
    turned = [
        pixels, pixels[:, ::-1], pixels[::-1, ::-1], pixels[::-1], pixels.transpose(1, 0, 2),
        np.rot90(pixels, -1), pixels[::-1, ::-1].transpose(1, 0, 2), np.rot90(pixels),
    ]  # fmt: skip
    assert (rgb(tmp_path / "image") == turned[orientation - 1]).all()
    with Image.open(tmp_path / "image") as opened:
        assert (rgb(opened) == turned[orientation - 1]).all()


@pytest.mark.parametrize("compressed", [True, False])
def test_a_png_with_megabytes_of_text_is_read(pixels, compressed):
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="6"/>')
    for i in range(1 if compressed else 70):
        text.add_text(f"workflow {i}", "node " * 400000, zip=compressed)
    content = encoded(Image.fromarray(pixels), "PNG", pnginfo=text, compress_level=1)
    with pytest.raises(ValueError, match=r"too large|Too much"), Image.open(io.BytesIO(content)) as opened:
        opened.load()
    assert (rgb(content) == np.rot90(pixels, -1)).all()


@pytest.mark.parametrize("kind", [b"tEXt", b"iCCP", b"pHYs", b"gAMA"])
def test_a_png_with_a_damaged_chunk_beside_its_pixels_is_read(pixels, kind):
    content = encoded(Image.fromarray(pixels), "PNG")
    chunk = struct.pack(">I", 9) + kind + b"key\0value" + struct.pack(">I", 1)  # a wrong checksum
    assert (rgb(content[:33] + chunk + content[33:]) == pixels).all()


def test_a_png_with_half_of_its_pixels_is_damaged():
    noise = np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    content = encoded(Image.fromarray(noise), "PNG")
    with pytest.raises(ValueError, match="is not an image that can be read: it is damaged"):
        load_image(content[: len(content) // 2])


def test_a_text_named_like_an_option_of_pil_is_not_one(pixels):
    text = PngImagePlugin.PngInfo()
    for key in ("transparency", "exif", "icc_profile"):
        text.add_text(key, "words")
    loaded = load_image(encoded(Image.fromarray(pixels), "PNG", pnginfo=text))
    assert (np.asarray(loaded) == pixels).all()
    assert loaded.info == {}


# --- images: bounds -------------------------------------------------------------------------------------------------


def bomb(side: int, mode: str = "1") -> bytes:
    """A PNG of few bytes and many pixels."""
    return encoded(Image.new(mode, (side, side)), "PNG")


@pytest.fixture
def small_limit(monkeypatch):
    """Limits of 2**12 and 2**14 pixels."""
    monkeypatch.setattr(image_files_cnnrnn, "MAX_IMAGE_PIXELS", 2**12)
    monkeypatch.setattr(image_files_cnnrnn, "SHRINKABLE_PIXELS", 2**14)


def test_a_bomb_that_pil_would_open_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    (tmp_path / "bomb.png").write_bytes(bomb(8500))
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load_prepare", lambda image: pytest.fail("it is decoded"))
    with pytest.raises(ValueError, match=r"bomb\.png'\) is too large: 8500 x 8500 pixels are more than 67108864"):
        load_image(tmp_path / "bomb.png")
    with pytest.raises(ValueError, match="is too large"):
        load_image(Image.open(tmp_path / "bomb.png"))


def test_every_format_has_the_limit(small_limit):
    for format in ("PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "PCX", "TGA", "QOI"):
        content = encoded(Image.new("RGB", (65, 64)), format)
        with pytest.raises(ValueError, match="is too large"):
            load_image(content)
    assert load_image(Image.new("RGB", (65, 64))).size == (65, 64)  # it is in memory


def test_a_bomb_within_an_icon_is_refused(small_limit):
    png = bomb(100)
    icon = struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(png), 22) + png
    with pytest.raises(ValueError, match="is too large: 100 x 100"):
        load_image(icon)
    assert load_image(encoded(Image.new("RGB", (16, 16), "red"), "ICO")).getpixel((3, 3)) == (255, 0, 0)


def test_a_large_photograph_is_decoded_at_a_part_of_its_size(small_limit):
    photograph = Image.linear_gradient("L").resize((120, 90)).convert("RGB")
    loaded = load_image(encoded(photograph, "JPEG"))
    assert loaded.size == (60, 45)
    assert np.abs(np.asarray(loaded).astype(int) - np.asarray(photograph.reduce(2))).max() <= 3
    with pytest.raises(ValueError, match="is too large: 120 x 90"):  # all coefficients would be in memory
        load_image(encoded(photograph, "JPEG", progressive=True))
    with pytest.raises(ValueError, match="is too large: 200 x 90"):
        load_image(encoded(photograph.resize((200, 90)), "JPEG"))


def test_a_jpeg_is_decoded_at_no_less_than_the_asked_size():
    content = encoded(Image.linear_gradient("L").resize((120, 90)).convert("RGB"), "JPEG")
    assert load_image(content).size == (120, 90)
    assert load_image(content, min_side=90).size == (120, 90)
    assert load_image(content, min_side=30).size == (60, 45)
    assert load_image(Image.open(io.BytesIO(content)), min_side=12).size == (30, 23)


def test_transparency_of_a_large_picture_is_blended_in_strips(monkeypatch):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (37, 20, 4), dtype=np.uint8))
    whole = rgb(image)
    monkeypatch.setattr(image_loading_cnnrnn, "STRIP_PIXELS", 100)
    assert (rgb(image) == whole).all()


def test_a_postscript_file_named_png_starts_no_program(tmp_path, monkeypatch):
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *args, **options: pytest.fail("Ghostscript is started"))
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    with pytest.raises(ValueError, match=r"a\.png'\) is not an image that can be read: it is a PostScript drawing"):
        load_image(tmp_path / "a.png")


# --- images: what a file is -----------------------------------------------------------------------------------------


def heic(brand: bytes = b"heic") -> bytes:
    return b"\0\0\0\x18ftyp" + brand + b"\0\0\0\0mif1" + brand + bytes(100)


@pytest.mark.parametrize(
    ("file_name", "content", "reason"),
    [
        ("a.jpg", b"", "it is empty"),
        ("a.jpg", b"version https://git-lfs.github.com/spec/v1\n", "it is a Git LFS pointer: .*git lfs pull"),
        ("a.jpg", b"<!DOCTYPE html><html>", "it is a web page"),
        ("a.png", b'<?xml version="1.0"?><svg>', "it is an SVG drawing"),
        ("a.png", b"%PDF-1.7", "it is a PDF document"),
        ("a.png", b"\0\0\0\x18ftypisom" + bytes(30), "it is a video"),
        ("a.CR2", b"II*\0\x10\0\0\0CR\2\0" + bytes(30), r"it is a camera's raw file \(\.cr2\)"),
        ("a.nef", encoded(Image.new("RGB", (16, 12)), "TIFF"), r"it is a camera's raw file \(\.nef\)"),
        ("a.bin", b"FUJIFILMCCD-RAW 0201", "it is a camera's raw file: save it as JPEG or TIFF first"),
    ],
)
def test_a_file_that_is_no_picture_is_called_what_it_is(tmp_path, file_name, content, reason):
    (tmp_path / file_name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{file_name}'\) is not an image that can be read: {reason}"):
        load_image(tmp_path / file_name)


def test_a_thumbnail_of_a_raw_file_is_not_taken_for_the_picture():
    content = encoded(Image.new("RGB", (16, 12)), "TIFF", tiffinfo={254: 1, 330: 8})
    with pytest.raises(ValueError, match="it is a camera's raw file"):
        load_image(content)


def test_heic_without_its_library_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    (tmp_path / "a.HEIC").write_bytes(heic())
    with pytest.raises(ValueError, match=r"a\.HEIC'\) is .*: it is a HEIC picture: `pip install pillow-heif`"):
        load_image(tmp_path / "a.HEIC")


def test_heic_is_read_with_its_library(monkeypatch, pixels):
    class Heif(PngImagePlugin.PngImageFile):
        """A library that finds these pixels in any file."""

        def __init__(self, file, file_name):
            super().__init__(io.BytesIO(encoded(Image.fromarray(pixels), "PNG")))

    library = types.SimpleNamespace(register_heif_opener=lambda: Image.register_open("HEIF", Heif))
    monkeypatch.setitem(sys.modules, "pillow_heif", library)
    monkeypatch.setattr(Image, "OPEN", dict(Image.OPEN))
    monkeypatch.setattr(Image, "ID", list(Image.ID))
    assert (rgb(heic(b"heix")) == pixels).all()


# --- images: depth --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("source", ["array", "png", "tiff"])
def test_the_depth_of_sixteen_bit_data_is_told_by_its_values(bits, source):
    white = 2**bits - 1
    values = np.linspace(0, white, 256).round().astype(np.uint16)[None].repeat(3, axis=0)
    image = values if source == "array" else encoded(Image.fromarray(values), source)
    assert np.abs(rgb(image)[0, :, 0].astype(int) - np.arange(256)).max() <= 1


def test_the_depth_that_a_tiff_declares_is_taken():
    values = np.full((3, 4), 1000, dtype=np.uint16)
    dark = encoded(Image.fromarray(values), "TIFF", tiffinfo={281: 65535})
    assert (rgb(dark) == 4).all()
    twelve = encoded(Image.fromarray(values), "TIFF", tiffinfo={281: 4095})
    assert (rgb(twelve) == 62).all()


def test_scaled_data_is_said_once(monkeypatch):
    said = []
    monkeypatch.setattr(image_loading_cnnrnn.logger, "warning_once", said.append)
    load_image(np.full((3, 4), 3000, dtype=np.uint16))
    load_image(np.full((3, 4), 0, dtype=np.uint16))
    load_image(np.full((3, 4), 60000, dtype=np.uint16))
    assert len(said) == 1
    assert "no value above 4095: it is scaled as one of 12 bits" in said[0]


def test_colors_of_twelve_bits_in_sixteen_are_not_black():
    rows = b"".join(b"\0" + struct.pack(">12H", *[0, 1024, 4095] * 4) for _ in range(3))
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 4, 3, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    png = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    assert rgb(png)[0, 0].tolist() == [0, 68, 255]


# --- errors ---------------------------------------------------------------------------------------------------------


def test_a_value_is_shown_short_and_without_control_characters():
    assert shown("a.jpg") == "'a.jpg'"
    assert len(shown("A" * 10**7)) == 200
    assert shown("x" * 300 + "/cat.jpg").endswith("/cat.jpg'")
    assert shown("\x1b[31m\u202e\udcff\n") == r"'\x1b[31m\u202e\udcff\n'"
    assert shown(ValueError("a\n\x1b]0;b\x07")) == r"a \x1b]0;b\x07"
    assert shown(b"1234") == "4 bytes"


@pytest.mark.parametrize(
    "source",
    ["A" * 10**6 + "!", "data:image/png;base64," + "A" * 10**6, "data:image/png;base64,\x1b" + "A" * 10**6 + "=",
     "https://[" + "A" * 10**6, "folder/" * 10**5 + "a.jpg", "\x1b[31mred\n.jpg", "a\0b", "\udcff.jpg"],
    ids=["base64", "data URI", "damaged data URI", "URL", "path", "escape codes", "zero", "not UTF-8"],
)  # fmt: skip
def test_an_error_is_a_short_printable_line(source):
    with pytest.raises((ValueError, OSError)) as caught:
        load_image(source)
    assert len(str(caught.value)) < 500
    assert str(caught.value).isprintable()


# --- downloads ------------------------------------------------------------------------------------------------------


class Hostile(BaseHTTPRequestHandler):
    """Answers that no client should wait for or keep."""

    picture = b""

    def log_message(self, *args):
        pass

    def do_GET(self):
        kind, _, rest = self.path.strip("/").partition("/")
        with contextlib.suppress(OSError):  # the client has gone
            getattr(self, f"send_{kind}")(rest)

    def begin(self, status: int = 200, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def send_picture(self, rest):
        self.server.hosts.append(self.headers["Host"])
        self.begin()
        self.wfile.write(self.picture)

    def send_endless(self, rest):
        self.begin()
        while True:
            self.wfile.write(bytes(2**16))

    def send_large(self, rest):
        self.begin(Content_Length=str(10**10))
        self.wfile.write(bytes(2**16))

    def send_drips(self, rest):
        self.begin()
        for _ in range(200):
            self.wfile.write(b"x")
            time.sleep(0.1)

    def send_headers_in_drips(self, rest):
        for _ in range(200):
            self.wfile.write(b"H")
            self.wfile.flush()
            time.sleep(0.1)

    def send_silence(self, rest):
        time.sleep(5)

    def send_gzip(self, rest):
        self.begin(Content_Encoding="gzip")
        self.wfile.write(gzip.compress(bytes(10**6)))

    def send_loop(self, rest):
        self.begin(302, Location=f"/loop/{rest}x")

    def send_to(self, rest):
        self.begin(302, Location=rest)


@pytest.fixture
def hostile(pixels, monkeypatch):
    monkeypatch.setattr(Hostile, "picture", encoded(Image.fromarray(pixels), "PNG"))
    with ThreadingHTTPServer(("127.0.0.1", 0), Hostile) as server:
        server.hosts = []
        server.daemon_threads = True
        server.url = f"http://127.0.0.1:{server.server_port}"
        server.block_on_close = False
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.mark.parametrize("kind", ["endless", "large"])
def test_a_download_has_a_limit_of_bytes(hostile, kind):
    with pytest.raises(OSError, match=rf"{kind}'\) cannot be downloaded: it holds more than 67108864 bytes"):
        load_image(f"{hostile.url}/{kind}")


@pytest.mark.parametrize("kind", ["drips", "headers_in_drips", "silence"])
def test_a_download_has_a_limit_of_time_however_it_is_spent(hostile, kind):
    start = time.monotonic()
    with pytest.raises(OSError, match=r"cannot be downloaded: it timed out after 0\.5 seconds"):
        load_image(f"{hostile.url}/{kind}", timeout=0.5)
    assert time.monotonic() - start < 3


def test_a_download_without_a_timeout_has_one(hostile, monkeypatch):
    monkeypatch.setattr(image_download_cnnrnn, "DEFAULT_TIMEOUT", 0.3)
    with pytest.raises(OSError, match=r"it timed out after 0\.3 seconds"):
        load_image(f"{hostile.url}/drips")


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), "3", True])
def test_a_timeout_is_a_positive_number(timeout):
    with pytest.raises(ValueError, match=r"`timeout` is .*: pass a positive number of seconds"):
        load_image("http://127.0.0.1:1/a.jpg", timeout=timeout)


def test_a_compressed_answer_is_not_unpacked(hostile):
    with pytest.raises(OSError, match=r"cannot be downloaded: the server compresses it \('gzip'\)"):
        load_image(f"{hostile.url}/gzip")


def test_redirects_are_followed_a_few_times_and_to_web_pages_only(hostile, pixels):
    assert (rgb(f"{hostile.url}/to//to//picture") == pixels).all()
    with pytest.raises(OSError, match="it is redirected more than 5 times"):
        load_image(f"{hostile.url}/loop/")
    for target in ("file:///etc/hostname", "ftp://127.0.0.1/a.png"):
        with pytest.raises(OSError, match="which is not an http or https URL"):
            load_image(f"{hostile.url}/to/{target}")


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.1.2.3", "192.168.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1", "::1", "fe80::1",
     "fd00::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::"],
)  # fmt: skip
def test_private_addresses_are_refused_where_it_is_asked(address, monkeypatch):
    entry = (socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80))
    public = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("93.184.215.14", 80))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **options: [public, entry])
    monkeypatch.setattr(socket, "create_connection", lambda *args, **options: pytest.fail("it connects"))
    with pytest.raises(OSError, match="cannot be downloaded: its host is at a private address"):
        load_image("http://pictures.example/a.png", allow_private_addresses=False)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.1", "2130706433", "[::1]", "[::ffff:7f00:1]"])
def test_no_spelling_of_this_machine_is_reached(host):
    with pytest.raises(OSError, match="cannot be downloaded"):
        load_image(f"http://{host}:9/a.png", allow_private_addresses=False)


def resolve(monkeypatch, addresses: dict[str, list[str]]) -> list[str]:
    """Let names have these addresses, a new one at each look-up; returns the names that were looked up."""
    asked: list[str] = []

    def getaddrinfo(host, port, *args, **options):
        host = host.decode() if isinstance(host, bytes) else host
        asked.append(host)
        found = addresses[host].pop(0) if host in addresses else host
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (found, port))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


def test_the_connection_goes_to_the_checked_address(hostile, pixels, monkeypatch):
    # this machine plays the public host, and any other look-up of the name finds a private one
    asked = resolve(monkeypatch, {"pictures.example": ["127.0.0.1", "10.0.0.1"]})
    monkeypatch.setattr(image_download_cnnrnn, "_is_public", lambda address: address == "127.0.0.1")
    host = f"pictures.example:{hostile.server_port}"
    assert (rgb(f"http://{host}/picture", allow_private_addresses=False) == pixels).all()
    assert hostile.hosts == [host]
    assert asked.count("pictures.example") == 1


def test_a_redirect_to_a_private_address_is_refused(hostile, monkeypatch):
    resolve(monkeypatch, {"pictures.example": ["127.0.0.1"], "inside.example": ["10.0.0.1"]})
    monkeypatch.setattr(image_download_cnnrnn, "_is_public", lambda address: address == "127.0.0.1")
    url = f"http://pictures.example:{hostile.server_port}/to/http://inside.example/picture"
    with pytest.raises(OSError, match="its host is at a private address"):
        load_image(url, allow_private_addresses=False)
