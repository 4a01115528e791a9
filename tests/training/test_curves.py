"""The pictures of a training."""

import logging
import warnings
from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib.font_manager import fontManager
from PIL import Image

from modeling_cnnrnn.evaluation import fonts
from modeling_cnnrnn.training.curves import save_caption_sheet, save_training_curves


PICTURE = Image.new("RGB", (60, 50), "red")
UNDRAWABLE = "\u4e00\u4e2a\u7ea2\u8272"  # Chinese, which no font of matplotlib has


def test_curves_of_self_critical_training_show_its_reward(tmp_path):
    steps = [{"step": 1, "loss": 3.0, "learning_rate": 0.1}]
    panels = {"loss": ["loss"], "CIDEr": ["CIDEr"], "reward": ["reward", "baseline"]}
    save_training_curves(tmp_path / "plain.png", steps, [{"step": 1, "CIDEr": 0.3}], panels)
    steps.append({"step": 2, "loss": -0.1, "learning_rate": 0.1, "reward": 0.5, "baseline": 0.4})
    save_training_curves(tmp_path / "rewards.png", steps, [{"step": 2, "CIDEr": 0.4, "loss": 3.1}], panels)
    plain, rewards = (Image.open(tmp_path / name) for name in ("plain.png", "rewards.png"))
    assert rewards.width > 1.2 * plain.width


@pytest.fixture(autouse=True)
def only_fonts_of_matplotlib(monkeypatch):
    """Every machine draws with the same fonts, and none has been looked for."""
    own = [entry for entry in fontManager.ttflist if "mpl-data" in str(entry.fname)]
    monkeypatch.setattr(fontManager, "ttflist", own)
    monkeypatch.setattr(fonts, "_added_families", [])
    monkeypatch.setattr(fonts, "_missing", set())


def add_font(folder: Path, family: str, characters: str) -> None:
    """Install a font that draws each of the characters as a black bar."""
    pen = TTGlyphPen(None)
    for point in [(0, 0), (0, 800), (900, 800), (900, 0)]:
        (pen.lineTo if point != (0, 0) else pen.moveTo)(point)
    pen.closePath()
    bar = pen.glyph()
    names = [".notdef", *(f"uni{ord(character):04X}" for character in characters)]
    font = FontBuilder(1000, isTTF=True)
    font.setupGlyphOrder(names)
    font.setupCharacterMap(dict(zip(map(ord, characters), names[1:], strict=True)))
    font.setupGlyf(dict.fromkeys(names, bar))
    font.setupHorizontalMetrics(dict.fromkeys(names, (1000, 0)))
    font.setupHorizontalHeader(ascent=800, descent=-200)
    font.setupNameTable({"familyName": family, "styleName": "Regular"})
    font.setupOS2()
    font.setupPost()
    font.save(folder / f"{family}.ttf")
    fontManager.addfont(folder / f"{family}.ttf")


def drawn(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("L"))


@pytest.mark.parametrize(
    "text", ["A sign says $10 or 50% off $20.", "$$", "$\\frac{1}$", "a $_^{ b$ #5", "$\\alpha$ \\$", "cost: $x$ & $"]
)
def test_text_is_drawn_as_it_is_and_never_as_mathematics(tmp_path, text):
    save_caption_sheet(tmp_path / "sheet.png", [PICTURE], [text], titles=[text])
    rows = [{"step": 1, "loss": 3.0, "learning_rate": 0.1, text: 0.5}]
    save_training_curves(tmp_path / "curves.png", rows, [{"step": 1, text: 0.3}], {text: ["loss", text]})
    plain = text.replace("$", "S")
    save_caption_sheet(tmp_path / "plain.png", [PICTURE], [plain], titles=[plain])
    # a formula would lose its dollar signs
    assert abs(drawn(tmp_path / "sheet.png").shape[1] - drawn(tmp_path / "plain.png").shape[1]) < 20


def test_a_character_is_drawn_with_an_installed_font_that_has_it(tmp_path, caplog):
    save_caption_sheet(tmp_path / "boxes.png", [PICTURE], [UNDRAWABLE])
    fonts._missing.clear()
    caplog.clear()
    add_font(tmp_path, "One", UNDRAWABLE[:1])
    add_font(tmp_path, "Three", UNDRAWABLE[1:])
    save_caption_sheet(tmp_path / "bars.png", [PICTURE], [UNDRAWABLE])
    assert fonts._added_families == ["Three", "One"]
    assert not caplog.records
    bars, boxes = ((drawn(tmp_path / name) < 20).sum() for name in ("bars.png", "boxes.png"))
    assert bars > 1.5 * boxes


def test_characters_without_a_font_are_said_once(tmp_path, caplog):
    with caplog.at_level(logging.WARNING), warnings.catch_warnings():
        warnings.simplefilter("error")
        for caption in (UNDRAWABLE, UNDRAWABLE, "\u0e01 a dog"):
            save_caption_sheet(tmp_path / "sheet.png", [PICTURE] * 2, [caption] * 2)
    (record,) = caplog.records
    assert "No installed font has the characters \u4e00 \u4e2a \u7ea2 \u8272: pictures show boxes" in record.message


def test_wide_characters_fit_below_their_picture(tmp_path):
    add_font(tmp_path, "Wide", UNDRAWABLE)
    save_caption_sheet(tmp_path / "one.png", [PICTURE], [UNDRAWABLE], columns=1)
    save_caption_sheet(tmp_path / "many.png", [PICTURE], [UNDRAWABLE * 20], columns=1)
    assert drawn(tmp_path / "many.png").shape[1] < 1.3 * drawn(tmp_path / "one.png").shape[1]
