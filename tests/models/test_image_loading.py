"""Loading images: every scale, layout, format, depth and source becomes RGB, and errors are short lines."""

import base64
import struct
import threading
import zlib
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from PIL import Image
from support.images import encoded, rgb

from modeling_cnnrnn import load_image
from modeling_cnnrnn.models import image_loading_cnnrnn
from modeling_cnnrnn.models.error_messages_cnnrnn import shown


# --- arrays -----------------------------------------------------------------------------------------------------------


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


# --- formats ----------------------------------------------------------------------------------------------------------


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


# --- depth ------------------------------------------------------------------------------------------------------------


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


# --- where they come from ---------------------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path):
    """The URL of a web server for the files in `tmp_path`."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path)) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
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


# --- errors -----------------------------------------------------------------------------------------------------------


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
