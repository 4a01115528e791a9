"""Open picture files of strangers: known formats alone, no more pixels than memory holds, damage beside the pixels ignored."""

import os
import struct
import zlib
from io import BytesIO
from typing import BinaryIO

from PIL import ExifTags, Image, ImageFile, Jpeg2KImagePlugin, JpegImagePlugin


# Formats of pictures that libraries in this process decode. PIL reads others too: EPS by starting Ghostscript, video,
# weather data. TGA has no signature, and comes last.
FORMATS = (
    "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "JPEG2000", "PPM", "ICO", "PCX", "PSD", "QOI", "SGI", "TGA"
)  # fmt: skip
# A picture of so many pixels takes 256 MiB as RGB, of which PIL keeps four bytes a pixel; PIL's own limit is 2.7 times as
# large, and decoding and conversion take a multiple of the result.
MAX_IMAGE_PIXELS = 2**26
# Photographs of 200 megapixels exist, as JPEG, which libjpeg decodes at a part of the size, line by line; so does OpenJPEG.
SHRINKABLE_PIXELS = 2**28
# Their decoders take twice the memory of others, so that half the pixels are allowed.
COSTLY_FORMATS = ("JPEG2000", "WEBP")
MAX_REPAIRED_BYTES = 2**28
CAMERA_RAW_SUFFIXES = frozenset(
    [
        ".3fr",
        ".arw",
        ".cr2",
        ".cr3",
        ".crw",
        ".dcr",
        ".dng",
        ".erf",
        ".iiq",
        ".kdc",
        ".mef",
        ".mrw",
        ".nef",
        ".nrw",
        ".orf",
        ".pef",
        ".raf",
        ".raw",
        ".rw2",
        ".rwl",
        ".sr2",
        ".srf",
        ".srw",
        ".x3f",
    ]
)
CAMERA_RAW_SIGNATURES = (b"FUJIFILMCCD-RAW", b"IIRO", b"IIRS", b"MMOR", b"IIU\0", b"FOVb", b"\0MRM")
# signature -> what the file is, and what to do about it
OTHER_CONTENT = (
    (b"%PDF", "it is a PDF document: save its pages as pictures"),
    (b"%!PS", "it is a PostScript drawing, which is not run: save it as PNG"),
    (b"\xc5\xd0\xd3\xc6", "it is a PostScript drawing, which is not run: save it as PNG"),
    (b"version https://git-lfs", "it is a Git LFS pointer: fetch the picture itself with `git lfs pull`"),
    (b"PK\x03\x04", "it is a ZIP archive: unpack it"),
    (b"\x1f\x8b", "it is compressed with gzip: unpack it"),
    (b"\x1aE\xdf\xa3", "it is a video: save a frame of it as a picture"),
    (b"\0\0\x01\xba", "it is a video: save a frame of it as a picture"),
    (b"\xff\x0a", "it is a JPEG XL picture: save it as JPEG or PNG"),
    (b"\0\0\0\x0cJXL ", "it is a JPEG XL picture: save it as JPEG or PNG"),
)
TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
DNG_VERSION = 50706
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def open_image(file: BinaryIO, file_name: str = "", min_side: int | None = None) -> Image.Image:
    """
    Open a picture without decoding it.

    Args:
        file: a file that can seek; it must stay open until the picture is decoded.
        file_name: its name, whose ending tells a camera's raw file.
        min_side: if given, a JPEG will be decoded at a half, a quarter or an eighth of its size where neither side
            becomes shorter than this many pixels.

    Raises:
        PIL.Image.DecompressionBombError: decoding it would take too much memory.
        Exception: whatever PIL raises about a damaged file; `describe_failure` makes a sentence of it.
    """
    file.seek(0)
    head = file.read(512)
    if head.startswith(b"\xff\xd8\xff"):
        # opened by its own class: frames after the first are not looked for, and the limit is the one of JPEG
        image: Image.Image = JpegImagePlugin.JpegImageFile(_rewound(file))
    else:
        formats: tuple[str, ...] = FORMATS
        if brand := _heif_brand(head):
            formats = (_register_heif(brand),)
        if head.startswith(b"\0\0\x01\0"):
            _check_icon(file)  # PIL decodes it when it is opened
        image = Image.open(_rewound(file), formats=formats)
        if image.format == "TIFF" and (_has_suffix_of_raw(file_name) or _is_raw(image)):
            raise ValueError(_raw_reason(file_name))
    prepare_decoding(image, min_side)
    return image


def prepare_decoding(image: Image.Image, min_side: int | None = None) -> None:
    """
    Check the size of a picture that is not decoded yet, and have a large JPEG decoded at a part of it.

    Raises:
        PIL.Image.DecompressionBombError: decoding it would take too much memory.
    """
    if not isinstance(image, ImageFile.ImageFile) or getattr(image, "_im", None) is not None:
        return
    # who has lowered PIL's limit means these pictures too
    limit = allowed = min(MAX_IMAGE_PIXELS, Image.MAX_IMAGE_PIXELS or MAX_IMAGE_PIXELS)
    width, height = image.size
    scale = 1
    if isinstance(image, JpegImagePlugin.JpegImageFile):
        if min_side:
            shortened = min(width // min_side, height // min_side)
            scale = next((power for power in (8, 4, 2) if shortened >= power), 1)
        if not _has_several_scans(image):
            allowed = limit * SHRINKABLE_PIXELS // MAX_IMAGE_PIXELS
            scale = max(scale, _scale_within(width * height, limit))
    elif image.format in COSTLY_FORMATS:
        limit = allowed = limit // 2
        if isinstance(image, Jpeg2KImagePlugin.Jpeg2KImageFile):
            allowed = limit * SHRINKABLE_PIXELS // MAX_IMAGE_PIXELS
            image.reduce = _scale_within(width * height, limit).bit_length() - 1
    if width * height > allowed:
        raise Image.DecompressionBombError(f"{width} x {height} pixels are more than {allowed}")
    if scale > 1:
        image.draft("RGB", (max(1, width // scale), max(1, height // scale)))


def _scale_within(pixels: int, limit: int) -> int:
    """Compute the power of two by which both sides are divided for a picture to have at most `limit` pixels."""
    scale = 1
    while scale < 8 and pixels > limit * scale**2:
        scale *= 2
    return scale


def _rewound(file: BinaryIO) -> BinaryIO:
    file.seek(0)
    return file


def _has_several_scans(image: JpegImagePlugin.JpegImageFile) -> bool:
    """Return whether libjpeg must keep the coefficients of the whole picture, whatever the size that it decodes to."""
    if image.info.get("progressive") or image.fp is None:
        return True
    # PIL stops after the header of the first scan, which begins with its length and number of components
    length = 6 + 2 * image.layers
    place = image.fp.tell()
    image.fp.seek(max(0, place - length))
    header = image.fp.read(length)
    return header[:3] != bytes((0, length, image.layers))


def _check_icon(file: BinaryIO) -> None:
    """Check the sizes of the pictures in an icon, which may differ from those in its directory."""
    file.seek(4)
    directory = file.read(16 * int.from_bytes(file.read(2), "little"))
    for place in range(0, len(directory) - 15, 16):
        file.seek(int.from_bytes(directory[place + 12 : place + 16], "little"))
        header = file.read(24).ljust(24, b"\0")
        is_png = header.startswith(PNG_SIGNATURE)
        width, height = struct.unpack(">II", header[16:]) if is_png else struct.unpack("<ii", header[4:12])
        if abs(width * height) > MAX_IMAGE_PIXELS:
            raise Image.DecompressionBombError(f"{width} x {height} pixels are more than {MAX_IMAGE_PIXELS}")


def without_damaged_chunks(file: BinaryIO) -> BytesIO | None:
    """
    Copy a PNG without what surrounds its pixels: text, profiles, chunks with a wrong checksum.

    PIL refuses a picture for more than a megabyte of text, which drawing programs store their settings in. Transparency
    and the orientation stay.

    Returns:
        The copy, or `None` if there is nothing to leave out.
    """
    file.seek(0)
    content = file.read(MAX_REPAIRED_BYTES + 1)
    if not content.startswith(PNG_SIGNATURE) or len(content) > MAX_REPAIRED_BYTES:
        return None
    kept = [PNG_SIGNATURE]
    place = len(PNG_SIGNATURE)
    while place < len(content):
        end = place + 12 + int.from_bytes(content[place : place + 4])
        chunk = content[place:end]
        is_critical = not chunk[4:5] or not chunk[4] & 0x20
        if is_critical or (_is_of_use(chunk) and zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:])):
            kept.append(chunk)
        place = end
    repaired = b"".join(kept)
    return BytesIO(repaired) if len(repaired) < len(content) else None


def _is_of_use(chunk: bytes) -> bool:
    is_xmp = chunk[4:].startswith(b"iTXtXML:com.adobe.xmp\0\0") and len(chunk) < 2**20
    return is_xmp or chunk[4:8] in (b"tRNS", b"eXIf")


def transpose_method(image: Image.Image) -> Image.Transpose | None:
    """Read how EXIF says that an image is turned; a picture is shown whatever is in its EXIF, so damage says nothing."""
    try:
        return TRANSPOSES.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:
        return None


def has_readable_exif(image: Image.Image) -> bool:
    """Return whether PIL can read the EXIF of an image."""
    try:
        image.getexif()
    except Exception:
        return False
    return True


def largest_declared_value(image: Image.Image) -> int | None:
    """Return the largest value that a TIFF of 16 bits says its pixels can have, if it says so."""
    tags = getattr(image, "tag_v2", None)
    try:
        bits, largest = int(tags[258][0]), tags.get(281)  # type: ignore[index, union-attr]
        if bits not in (8, 16, 32):
            return 2**bits - 1
        return int(largest[0] if isinstance(largest, tuple) else largest)
    except Exception:  # no TIFF, no such tag, or damaged
        return None


def has_sixteen_bit_colors(image: Image.Image) -> bool:
    """Return whether a file that is not decoded yet has colours of 16 bits, of which PIL keeps the upper 8."""
    tiles = getattr(image, "tile", None) or ()
    return len(image.getbands()) > 1 and any(";16" in str(tile[3]) for tile in tiles)


def _heif_brand(head: bytes) -> str | None:
    """Return `"HEIC"` or `"AVIF"` for the picture files that are built like MP4."""
    if head[4:8] != b"ftyp":
        return None
    size = min(max(int.from_bytes(head[:4]), 16), len(head))
    brands = {head[8:12], *(head[place : place + 4] for place in range(16, size, 4))}
    if brands & {b"avif", b"avis"}:
        return "AVIF"
    is_heic = brands & {b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"}
    return "HEIC" if is_heic else None


def _register_heif(brand: str) -> str:
    """
    Register what opens a HEIC or AVIF picture, on first use.

    Returns:
        PIL's name of the format.

    Raises:
        ValueError: it is not installed.
    """
    Image.init()
    if brand == "AVIF":
        from PIL import features

        if features.check("avif"):
            return "AVIF"
        try:
            import pillow_avif  # noqa: F401
        except ImportError:
            raise ValueError("it is an AVIF picture: `pip install pillow-avif-plugin` to read it") from None
        return "AVIF"
    if "HEIF" not in Image.OPEN:
        try:
            import pillow_heif
        except ImportError:
            raise ValueError("it is a HEIC picture: `pip install pillow-heif` to read it") from None
        pillow_heif.register_heif_opener()
    return "HEIF"


def _has_suffix_of_raw(file_name: str) -> bool:
    return os.path.splitext(file_name)[1].lower() in CAMERA_RAW_SUFFIXES


def _is_raw(image: Image.Image) -> bool:
    """Return whether a TIFF is a camera's raw file, whose first picture is a thumbnail."""
    tags = getattr(image, "tag_v2", {})
    is_thumbnail_of_others = tags.get(254) == 1 and 330 in tags
    return is_thumbnail_of_others or DNG_VERSION in tags


def _raw_reason(file_name: str) -> str:
    ending = os.path.splitext(file_name)[1].lower()
    ending = f" ({ending})" if ending in CAMERA_RAW_SUFFIXES else ""
    return f"it is a camera's raw file{ending}: save it as JPEG or TIFF first"


def describe_content(head: bytes, file_name: str = "") -> str | None:
    """
    Name the content of a file that PIL cannot open, and say what to do.

    Args:
        head: its first 512 bytes.
        file_name: its name.

    Returns:
        The middle of a sentence, or `None` for a format that should be read and is damaged.
    """
    if not head:
        return "it is empty"
    is_raw = head.startswith(CAMERA_RAW_SIGNATURES) or head[8:10] == b"CR" or head[8:12] == b"crx "
    if is_raw or _has_suffix_of_raw(file_name):
        return _raw_reason(file_name)
    for signature, reason in OTHER_CONTENT:
        if head.startswith(signature):
            return reason
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return "it is a web page: pass the URL or the file of the picture itself"
    if text.startswith((b"<svg", b"<?xml")) and b"<svg" in text:
        return "it is an SVG drawing: save it as PNG"
    if head[4:8] == b"ftyp" and _heif_brand(head) is None:
        return "it is a video: save a frame of it as a picture"
    return None


__all__ = [
    "CAMERA_RAW_SUFFIXES",
    "MAX_IMAGE_PIXELS",
    "describe_content",
    "has_readable_exif",
    "has_sixteen_bit_colors",
    "largest_declared_value",
    "open_image",
    "prepare_decoding",
    "transpose_method",
    "without_damaged_chunks",
]
