"""Picture files of strangers: damage beside the pixels is ignored, sizes are bounded, other files are named."""

import io
import struct
import sys
import types

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image, PngImagePlugin
from support.images import encoded, rgb

from modeling_cnnrnn import load_image
from modeling_cnnrnn.models import image_files_cnnrnn, image_loading_cnnrnn


# --- damage beside the pixels -----------------------------------------------------------------------------------------

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


@pytest.mark.parametrize("mode", ["RGB", "L", "P"])
def test_a_text_named_like_an_option_of_pil_is_not_one(pixels, mode):
    image = Image.fromarray(pixels).convert(mode)
    text = PngImagePlugin.PngInfo()
    for key in ("transparency", "exif", "icc_profile"):
        text.add_text(key, "words")
    with Image.open(io.BytesIO(encoded(image, "PNG", pnginfo=text))) as opened:
        loaded = load_image(opened)
    assert (np.asarray(loaded) == np.asarray(image.convert("RGB"))).all()
    assert loaded.info == {}


# --- bounds -----------------------------------------------------------------------------------------------------------


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


# --- what a file is ---------------------------------------------------------------------------------------------------


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
