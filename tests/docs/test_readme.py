"""README.md: its code runs and writes the right sentence; the commands there and in examples/ have their options."""

import json
import re
import shlex
import shutil
from importlib import import_module
from pathlib import Path

import pytest
import transformers
from PIL import Image
from support import hub_user
from support.local_hub import LocalHub
from support.paths import ROOT
from support.repositories import fork_jobs, make_model, save
from transformers.pipelines import PIPELINE_REGISTRY

from modeling_cnnrnn import CnnRnnForConditionalGeneration, CnnRnnProcessor
from modeling_cnnrnn.cli import caption
from modeling_cnnrnn.models.loading_cnnrnn import PRETRAINED_FOLDERS
from modeling_cnnrnn.pretrained import DEFAULT_CAPTIONER, FOLDERS


README, OF_EXAMPLES = ((ROOT / path).read_text(encoding="utf-8") for path in ("README.md", "examples/README.md"))
PICTURE, PHOTOGRAPH = "picture.png", "photo.jpg"


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


def ways(text: str) -> dict[str, list[str]]:
    """Code and commands of a table of uses, by what is said in its first column."""
    table = text.partition("| you have | you write |\n")[2].partition("\n\n")[0]
    rows = [re.fullmatch(r"\| (.*?) \| (.*) \|", line).groups() for line in table.splitlines()[1:]]
    return {name: re.findall("`([^`]+)`", cell) for name, cell in rows}


def is_command(codes: list[str]) -> bool:
    return codes[0].startswith("cnnrnn ")


WAYS = {f"README: {name}": codes for name, codes in ways(README).items()} | ways(OF_EXAMPLES)
CODE = {name: codes for name, codes in WAYS.items() if not is_command(codes)}
STRANGERS = {name: codes for name, codes in CODE.items() if "trust_remote_code=True" in codes[-1]}
LINES = [
    line.partition(" #")[0]
    for block in [
        *blocks("bash"),
        *blocks("bash", OF_EXAMPLES),
        *(codes[0] for codes in WAYS.values() if is_command(codes)),
    ]
    for line in block.replace("\\\n", " ").splitlines()
]
COMMANDS = [shlex.split(line.replace("-m modeling_cnnrnn", "cnnrnn")) for line in LINES if "cnnrnn " in line]


def sentences(folder: Path, **options) -> list[str]:
    """What a direct call of the captioner writes about the picture."""
    processor = CnnRnnProcessor.from_pretrained(folder / "outputs/shapes")
    model = CnnRnnForConditionalGeneration.from_pretrained(folder / "outputs/shapes")
    inputs = processor(images=Image.open(folder / PICTURE), return_tensors="pt")
    return processor.batch_decode(model.generate(**inputs, **options), skip_special_tokens=True)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """What the README takes for granted: a captioner in `outputs/shapes` and in the package, and a picture."""
    save(tmp_path / "outputs/shapes", make_model(attention_type="additive"))
    for folders in (FOLDERS, PRETRAINED_FOLDERS):
        monkeypatch.setitem(folders, DEFAULT_CAPTIONER, tmp_path / "outputs/shapes")
    default = {"model": (str(tmp_path / "outputs/shapes"), "main")}
    monkeypatch.setitem(PIPELINE_REGISTRY.supported_tasks["image-captioning"], "default", default)
    Image.linear_gradient("L").rotate(30).save(tmp_path / PICTURE)
    shutil.copyfile(tmp_path / PICTURE, tmp_path / PHOTOGRAPH)
    monkeypatch.chdir(tmp_path)
    # transformers' own warning about "image-to-text" has an argument too many, which pytest takes for an error
    monkeypatch.setattr(transformers.pipelines.logger, "warning_once", lambda *args: None)
    return tmp_path


def test_every_block_of_python_prints_what_a_direct_call_gives(folder, capsys):
    assert len(blocks("python")) == README.count("```python")
    for block in blocks("python"):
        exec(block, {})
        assert capsys.readouterr().out.splitlines()[-1] == str([{"generated_text": sentences(folder)[0]}])


def test_the_first_command_captions_a_photograph(folder, capfd):
    words = next(words for words in COMMANDS if words[0] == "cnnrnn")
    with pytest.raises(SystemExit) as end:
        caption.main(words[2:])
    assert words == ["cnnrnn", "caption", PHOTOGRAPH]
    assert end.value.code == 0
    assert capfd.readouterr().out == sentences(folder, num_beams=3)[0] + "\n"


def test_the_numbers_are_those_of_the_card():
    card = (ROOT / "hub_card" / "README.md").read_text(encoding="utf-8")
    accuracy = {beam: float(value) for value, beam in re.findall(r"value: (\S+)\n +name: accuracy \(beam (\d)\)", card)}
    best, greedy = re.search(
        r"(\d+) % of the 500 sentences \(beam 3; (\d+) % greedy\)", " ".join(README.split())
    ).groups()
    assert (int(best), int(greedy)) == (round(100 * accuracy["3"]), round(100 * accuracy["1"]))


def test_the_table_has_every_way():
    codes = ["; ".join(codes) for codes in CODE.values()]
    for place in ('"outputs/shapes"', '"user/name"'):
        for way in ('pipeline("image-to-text"', 'pipeline("image-text-to-text"', "AutoModelForImageTextToText.from_"):
            assert any(place in code and way in code for code in codes), (place, way)


@pytest.mark.parametrize("name", [name for name in CODE if name not in STRANGERS])
def test_code_for_who_has_the_package_writes_the_sentence(folder, name):
    assert [hub_user.caption_of(CODE[name], PICTURE)] == sentences(folder)


def test_code_for_who_has_transformers_alone_writes_the_sentence(folder):
    captioner = folder / "outputs/shapes"
    files = {path.name: path.read_bytes() for path in captioner.iterdir()}
    with LocalHub(folder / "hub") as hub:
        hub.create_repository("model", "user/name", files)
        jobs = {name: ["caption_of", {"codes": codes, "picture": PICTURE}] for name, codes in STRANGERS.items()}
        assert fork_jobs(hub, folder, jobs) == dict.fromkeys(STRANGERS, *sentences(folder))


def test_the_folder_of_photographs_is_captioned_by_the_command(folder):
    (folder / "photographs").mkdir()
    Image.open(PICTURE).save(f"photographs/{PICTURE}")
    (words,) = {tuple(words) for words in COMMANDS if "photographs" in words and words[1] == "caption"}
    with pytest.raises(SystemExit) as end:
        caption.main(words[2:])
    assert end.value.code == 0
    assert sentences(folder, num_beams=3)[0] in Path("captions.csv").read_text(encoding="utf-8")


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_command_has_its_options(words, capsys, monkeypatch):
    words = words[words.index("cnnrnn") + 1 :]
    verb, options = words[0], [word for word in words if word.startswith("--")]
    if words[1].endswith(".json"):  # a recipe
        options += [f"--{name}" for name in json.loads((ROOT / words[1]).read_text())]
    kind = ["--dataset_name", "x"] if verb == "caption" and "--dataset_name" in options else []
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as stop:
        import_module(f"modeling_cnnrnn.cli.{verb}").main([*kind, "--help"])
    assert not stop.value.code
    known = set(re.findall(r"--\w+", capsys.readouterr().out))
    assert set(options) <= known
