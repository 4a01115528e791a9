"""An exported captioner: the sentences of `generate`, without torch, and what it refuses."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from export.conftest import save_captioner
from PIL import Image
from support.tiny_models import ATTENTION_TYPES, FAMILY, IMAGE_INJECTIONS, RNN_TYPES
from transformers import AutoModelForImageTextToText, GenerationConfig

from modeling_cnnrnn import CnnRnnForConditionalGeneration, CnnRnnProcessor, pipeline
from modeling_cnnrnn.cli.main import app
from modeling_cnnrnn.export.captioner import Captioner
from modeling_cnnrnn.export.folder import export_captioner
from modeling_cnnrnn.export.onnx_model import generation_options


SEARCHES = [
    {"num_beams": 1},
    {"num_beams": 3},
    {"num_beams": 4, "early_stopping": True},
    {"num_beams": 3, "early_stopping": "never", "length_penalty": 2.0},
    {"num_beams": 5, "length_penalty": -0.5, "max_length": 5},
    {"num_beams": 1, "no_repeat_ngram_size": 1},
    {"num_beams": 3, "no_repeat_ngram_size": 2, "max_length": 16},
]


def pictures(count: int) -> list[Image.Image]:
    """Pictures of noise, each in its own colours, wide and high ones."""
    generator = np.random.default_rng(0)
    return [
        Image.fromarray((generator.random((4 + i % 3, 5, 3)) * generator.random(3) * 255).astype(np.uint8)).resize(
            (40 + 7 * i, 60 - 3 * i)
        )
        for i in range(count)
    ]


def sentences(model: CnnRnnForConditionalGeneration, pixel_values: torch.Tensor, **options) -> list[list[int]]:
    """Token ids up to the end of each sentence that `generate` finds for a picture."""
    end = model.config.eos_token_id
    sequences = model.generate(pixel_values, num_return_sequences=options["num_beams"], **options)[:, 1:].tolist()
    return [ids[: ids.index(end) + 1] if end in ids else ids for ids in sequences]


def check_tokens(folder, exported):
    model, processor = CnnRnnForConditionalGeneration.from_pretrained(folder), CnnRnnProcessor.from_pretrained(folder)
    captioner = Captioner(exported)
    for picture in pictures(4):
        pixel_values = processor(images=picture, return_tensors="pt").pixel_values
        for options in SEARCHES:
            found = captioner.generate(captioner.load_pixels(picture), **options)
            assert [sentence["token_ids"] for sentence in found] == sentences(model, pixel_values, **options)
    assert len({captioner(picture) for picture in pictures(4)}) > 1


def test_tokens_are_those_of_generate(captioner_folder, exported_folder):
    check_tokens(captioner_folder, exported_folder)


@pytest.mark.slow
@pytest.mark.parametrize("rnn_type", RNN_TYPES)
@pytest.mark.parametrize("attention_type", ATTENTION_TYPES)
@pytest.mark.parametrize("image_injection", IMAGE_INJECTIONS)
def test_tokens_of_every_decoder_are_those_of_generate(tmp_path, rnn_type, attention_type, image_injection):
    options = {"rnn_type": rnn_type, "attention_type": attention_type, "image_injection": image_injection}
    folder = save_captioner(tmp_path / "captioner", **options)
    check_tokens(folder, export_captioner(str(folder), tmp_path / "exported"))


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILY)
def test_tokens_of_every_published_decoder_are_those_of_generate(tmp_path, name):
    # larger weights saturate what reads itself again and again: at 2.0 the best beams of `adaatt` have sums of -9.3620690 and
    # -9.3620691 in float64, nearer to each other than numbers of float32 are there (1e-6)
    folder = save_captioner(tmp_path / "captioner", **(FAMILY[name] | {"initializer_range": 1.0}))
    check_tokens(folder, export_captioner(str(folder), tmp_path / "exported"))


def test_log_probabilities_and_maps_are_those_of_the_model(captioner_folder, exported_folder):
    model = CnnRnnForConditionalGeneration.from_pretrained(captioner_folder)
    processor, captioner = CnnRnnProcessor.from_pretrained(captioner_folder), Captioner(exported_folder)
    (picture,) = pictures(1)
    for sentence in captioner.generate(captioner.load_pixels(picture), num_beams=3):
        inputs = processor(images=picture, return_tensors="pt")
        with torch.no_grad():
            encoder_outputs = model.get_encoder()(inputs.pixel_values)
            sequence = torch.tensor([[model.config.decoder_start_token_id, *sentence["token_ids"]]])
            scores = model.score_sentences(sequence, encoder_outputs, output_attentions=True)
        assert sentence["log_probs"] == pytest.approx(scores.log_probs[0].tolist(), abs=1e-4)
        np.testing.assert_allclose(np.stack(sentence["maps"]), scores.attentions[0], atol=1e-5)


def test_the_script_needs_no_torch_and_goes_on_after_an_unreadable_file(captioner_folder, exported_folder, tmp_path):
    for name, picture in zip("ab", pictures(2), strict=True):
        picture.save(tmp_path / f"{name}.png")
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nsys.modules['torch'] = sys.modules['transformers'] = None\n"
    )
    names = ["a.png", "text.jpg", "missing.jpg", "b.png"]
    finished = subprocess.run(
        [sys.executable, exported_folder / "captioner.py", *names],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    pipe = pipeline("image-to-text", model=str(captioner_folder))
    expected = {
        n: pipe(str(tmp_path / n), generate_kwargs={"num_beams": 3})[0]["generated_text"] for n in ("a.png", "b.png")
    }
    assert finished.returncode == 1
    assert finished.stdout.splitlines() == [f"{name}: {sentence}" for name, sentence in expected.items()]
    assert finished.stderr.splitlines() == [
        "text.jpg could not be read: it is no image of a known format",
        "missing.jpg could not be read: No such file or directory",
    ]


# --- Within transformers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"num_return_sequences": 2}, {"max_new_tokens": 4}])
def test_a_pipeline_takes_an_export_as_it_takes_the_model(captioner_folder, exported_folder, options):
    pipes = [pipeline("image-to-text", model=str(folder)) for folder in (captioner_folder, exported_folder)]
    written = [pipe(pictures(3), batch_size=2, generate_kwargs={"num_beams": 3}, **options) for pipe in pipes]
    assert written[0] == written[1]


def test_the_auto_class_loads_an_export(captioner_folder, exported_folder):
    model = AutoModelForImageTextToText.from_pretrained(exported_folder)
    processor = CnnRnnProcessor.from_pretrained(exported_folder)
    expected = CnnRnnForConditionalGeneration.from_pretrained(captioner_folder).generate(
        **CnnRnnProcessor.from_pretrained(captioner_folder)(images=pictures(3), return_tensors="pt")
    )
    assert torch.equal(model.generate(**processor(images=pictures(3), return_tensors="pt")), expected)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"do_sample": True}, "do_sample"),
        ({"repetition_penalty": 1.5}, "repetition_penalty"),
        ({"num_return_sequences": 2}, "num_return_sequences"),
        ({"input_ids": torch.tensor([[1, 4]])}, "input_ids"),
        ({"output_logits": True}, "output_logits"),
    ],
)
def test_an_option_that_an_export_does_not_know_is_refused(exported_folder, options, name):
    model = AutoModelForImageTextToText.from_pretrained(exported_folder)
    with pytest.raises(ValueError, match=f"`{name}`"):
        model.generate(torch.zeros(1, 3, 32, 32), **options)


def test_a_generation_config_that_an_export_cannot_follow_is_refused():
    with pytest.raises(ValueError, match=r"`repetition_penalty` is 1.5, which an exported captioner does not know"):
        generation_options(GenerationConfig(repetition_penalty=1.5))


def test_an_export_in_the_place_of_a_captioner_is_said(exported_folder):
    with pytest.raises(
        ValueError, match=r"is an exported captioner: run the captioner.py in it, pass it to `pipeline`"
    ):
        CnnRnnForConditionalGeneration.from_pretrained(exported_folder)


# --- The command -----------------------------------------------------------------------------------------------------


def cnnrnn(*words: object, capfd) -> tuple[int, str, str]:
    """Exit status and output of `cnnrnn words...`."""
    with pytest.raises(SystemExit) as stop:
        app([str(word) for word in words], prog_name="cnnrnn")
    out, err = capfd.readouterr()
    if isinstance(stop.value.code, str):
        return 1, out, err + stop.value.code
    return stop.value.code or 0, out, err


def test_the_command_has_replaced_an_export(exported_folder):
    assert sorted(path.name for path in exported_folder.iterdir()) == [
        "captioner.json",
        "captioner.py",
        "config.json",
        "decoder.onnx",
        "encoder.onnx",
        "generation_config.json",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_a_folder_with_something_else_is_refused(captioner_folder, tmp_path, capfd):
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "to_mother.txt").write_text("Dear mother")
    status, _, err = cnnrnn("export", captioner_folder, tmp_path / "letters", capfd=capfd)
    assert status == 1
    assert err.startswith("Error: `output_dir` ")
    assert "holds something else (to_mother.txt): pass a new folder" in err
    assert err.count("\n") == 0
    assert (tmp_path / "letters" / "to_mother.txt").read_text() == "Dear mother"


def test_a_model_that_is_no_captioner_is_refused(tmp_path, capfd):
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    status, _, err = cnnrnn("export", tmp_path / "bert", tmp_path / "exported", capfd=capfd)
    assert status == 1
    assert err.startswith("Error: ")
    assert err.count("\n") == 0
    assert not (tmp_path / "exported").exists()


def test_eight_bits_need_photographs(captioner_folder, tmp_path, capfd):
    status, _, err = cnnrnn("export", captioner_folder, tmp_path / "exported", "--dtype", "int8", capfd=capfd)
    assert status == 1
    assert "`calibration_images` names no photographs" in err
