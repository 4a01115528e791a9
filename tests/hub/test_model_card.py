"""The model card: what it says is in the files, what it shows works, and nothing of this machine gets out."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from PIL import Image
from support.example_scripts import run
from support.local_hub import LocalHub
from support.paths import ROOT

from modeling_cnnrnn import CnnRnnForConditionalGeneration, CnnRnnProcessor
from modeling_cnnrnn.data.shapes.drawing import build_shapes
from modeling_cnnrnn.hub import card_uses, model_card
from modeling_cnnrnn.hub.model_card import write_model_card
from modeling_cnnrnn.hub.redaction import Redaction


TOKEN = "hf_" + "abcdefghijKLMNOP1234" * 2
TINY = {
    "encoder_config": json.dumps(
        {"model_type": "resnet", "layer_type": "basic", "embedding_size": 8, "hidden_sizes": [8, 8], "depths": [1, 1]}
    ),
    "image_size": 32,
    "hidden_size": 16,
    "embedding_size": 16,
    "attention_size": 16,
    "attention_type": "additive",
    "min_frequency": 1,
    "max_train_steps": 2,
}


@pytest.fixture(scope="module")
def captioner(tmp_path_factory) -> Path:
    """What the scripts write, for a dataset and a folder that lie somewhere on this machine."""
    folder = tmp_path_factory.mktemp("somebody")
    build_shapes(num_train=8, num_validation=2, num_test=12, image_size=32).save_to_disk(folder / "pictures")
    run("train_captioner", dataset_name=folder / "pictures", output_dir=folder / "captioner", **TINY)
    run(
        "evaluate_captioner",
        model_name_or_path=folder / "captioner",
        dataset_name=folder / "pictures",
        num_beams=[1, 3],
        output_dir=folder / "captioner" / "evaluation",
    )
    return folder / "captioner"


@pytest.fixture(scope="module")
def card(captioner) -> str:
    """The card as it is really made, its code run."""
    write_model_card(captioner, "me/shapes", license="mit", language="en", tags=["toy"], base_model="me/cnn")
    return (captioner / "README.md").read_text()


@pytest.fixture
def copy(captioner, tmp_path, monkeypatch) -> Path:
    """The captioner's folder, to change; the code of a card made of it is not run."""
    monkeypatch.setattr(model_card, "run_uses", lambda *args: {"uses": [], "grey": None})
    return Path(
        shutil.copytree(captioner, tmp_path / "captioner", ignore=shutil.ignore_patterns("checkpoint-*", "best"))
    )


def headings(text: str) -> list[str]:
    return re.findall(r"^## (.+)", text, re.MULTILINE)


def change(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_the_card_has_every_part(card):
    parts = ["Pictures and sentences", "Use", "Architecture", "Training data", "Training procedure", "Results"]
    assert headings(card) == [*parts, "Limits and biases", "Citation"]
    assert not re.search(r"None|Undefined|\{[{%]|\n{3}|[ \t]\n", card.split("---\n", 2)[2])


def test_the_metadata_hold_the_results(card, captioner):
    data = ModelCard(card).data
    assert (data.license, data.language, data.pipeline_tag) == ("mit", "en", "image-to-text")
    assert (data.base_model, data.model_name, data.library_name) == ("me/cnn", "shapes", "transformers")
    assert {"toy", "lstm"} <= set(data.tags)
    scores = json.loads((captioner / "evaluation" / "eval_results.json").read_text())["results"]
    listed = {result.metric_name: result.metric_value for result in data.eval_results}
    for name in ("BLEU-4", "ROUGE-L", "CIDEr", "accuracy"):
        for beam in (1, 3):
            assert listed[f"{name} (beam {beam})"] == pytest.approx(scores[f"beam {beam}"][name], abs=1e-4)
            assert f"{scores[f'beam {beam}'][name]:.4f}" in card
    assert {result.dataset_split for result in data.eval_results} == {"test"}


def test_the_size_is_that_of_the_weights(card, captioner):
    model = CnnRnnForConditionalGeneration.from_pretrained(captioner)
    numbers = {name: tensor.numel() for name, tensor in model.state_dict().items()}
    cnn = sum(number for name, number in numbers.items() if ".cnn." in name)
    assert f"| {cnn:,} |" in card
    assert f"| {sum(numbers.values()) - cnn:,} |" in card


def test_the_hub_takes_the_card(card, captioner, tmp_path):
    code = "import sys; from huggingface_hub import ModelCard; ModelCard.load(sys.argv[1]).validate()"
    with LocalHub(tmp_path / "hub") as hub:
        checked = subprocess.run(
            [sys.executable, "-c", code, captioner / "README.md"],
            env=hub.environment(tmp_path / "home"),
            capture_output=True,
            text=True,
        )
        if "ConnectError" in checked.stderr:
            pytest.skip("this version of huggingface_hub asks huggingface.co itself")
        assert checked.returncode == 0, checked.stderr
        assert not hub.unknown


def test_every_way_to_use_it_is_shown_with_its_output(card, captioner):
    picture = Image.open(captioner / re.search(r'hf_hub_download\("me/shapes", "(card/best-1.png)"\)', card)[1])
    model = CnnRnnForConditionalGeneration.from_pretrained(captioner)
    processor = CnnRnnProcessor.from_pretrained(captioner)
    inputs = processor(images=picture, return_tensors="pt")
    (text,) = processor.batch_decode(model.generate(**inputs), skip_special_tokens=True)
    for call in (
        'pipeline("image-to-text", ',
        'pipeline("image-text-to-text", ',
        "from modeling_cnnrnn import pipeline",
    ):
        code = next(block for block in re.findall(r"```python\n(.+?)```", card, re.DOTALL) if call in block)
        assert "me/shapes" in code
        assert f"'generated_text': {text!r}" in code
    beams = processor.batch_decode(
        model.generate(**inputs, num_beams=3, num_return_sequences=2), skip_special_tokens=True
    )
    assert f"# {beams}" in card


@pytest.mark.slow
def test_a_way_that_does_not_work_is_left_out(captioner, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(card_uses, "USES", card_uses.USES[:2])
    broken = shutil.copytree(captioner, tmp_path / "broken", ignore=shutil.ignore_patterns("checkpoint-*", "best"))
    (broken / "pipeline_cnnrnn.py").write_text("raise ImportError('no pipeline')")
    text = write_model_card(broken, "me/shapes").read_text()
    assert "AutoProcessor" in text
    assert 'pipeline("image-to-text", model="me/shapes", trust_remote_code=True)' not in text
    assert "no pipeline" in caplog.text


def test_nothing_of_this_machine_gets_out(copy, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_short")
    home = Path.home()
    results = json.loads((copy / "training_results.json").read_text())
    results["data"] |= {"image_dir": f"{home}/photos", "dataset_name": f"{copy}/a,file://{home}/b c"}
    results["training"] |= {"hub_token": "very-secret", "note": f"use {TOKEN} or hf_short, on {home}/x and ~/y"}
    results["command"] = (
        f"python {ROOT}/examples/train_captioner.py --hub_token very-secret --token=very-secret --seed 1 "
        f'--data_dir={home}/z \'--encoder_config={{"path": "{home}/cnn"}}\' --output_dir {copy}'
    )
    change(copy / "training_results.json", **results)
    command = f"cnnrnn card --model_name_or_path {copy} --repo_id me/shapes"
    for repo_id in ("me/shapes", None):
        text = write_model_card(copy, repo_id, dataset_description=f"From {home}/d", command=command).read_text()
        text = text.replace(" \\\n   ", "")  # of long commands
        for secret in (str(home) + "/", str(copy.parent), str(ROOT), TOKEN, "hf_short", "very-secret", "~/"):
            assert secret not in text.replace("\\", "")  # Markdown's escapes
        assert "python examples/train_captioner.py --seed 1" in text
        assert "--output_dir path/to/captioner" in text


def test_paths_are_told_from_the_folder_that_commands_run_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    redaction = Redaction(Path("outputs/shapes"), None)
    assert redaction.model == "outputs/shapes"
    assert redaction.redact(f"{tmp_path}/outputs/shapes") == "outputs/shapes"
    assert redaction.redact(["data/photos", "https://huggingface.co/me/cnn", "1/2 and/or 3"]) == [
        "data/photos",
        "https://huggingface.co/me/cnn",
        "1/2 and/or 3",
    ]


def test_the_pictures_are_chosen_by_their_scores(card, captioner):
    rows = [json.loads(line) for line in (captioner / "evaluation" / "per_image.jsonl").read_text().splitlines()]
    ciders = sorted((row["CIDEr"] for row in rows), reverse=True)
    for group, expected in (("best", ciders[:3]), ("worst", ciders[:-4:-1])):
        chosen = [row for row in rows if row.get("picture", "").startswith(f"pictures/{group}")]
        chosen.sort(key=lambda row: row["picture"])
        assert [row["CIDEr"] for row in chosen] == expected
        for row in chosen:
            picture = f"card/{Path(row['picture']).name}"
            assert f"| ![]({picture}) | **{row['caption']}** |" in card
            assert max(Image.open(captioner / picture).size) == 192
    wrong = [row for row in rows if "pictures/wrong" in row.get("picture", "")]
    assert wrong
    assert not any(row["is_correct"] for row in wrong)


def test_text_of_any_kind_stays_in_its_cell(copy):
    path = copy / "evaluation" / "per_image.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        row["caption"] = "a | b <unk>\n*c*"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert r"| **a \| b &lt;unk> \*c\*** |" in write_model_card(copy).read_text()


def test_each_training_of_several_is_told_and_no_option_that_had_no_effect(copy, captioner):
    path = copy / "training_results.json"
    results = json.loads(path.read_text())
    results["command"] = "cnnrnn train second.json"
    results["model"] |= {"model_name_or_path": str(captioner), "hidden_size": 512}
    results["stages"]["self_critical_after_epochs"] = 0.0
    path.write_text(json.dumps(results))
    procedure = write_model_card(copy).read_text().split("## Training procedure")[1].split("## Results")[0]
    assert procedure.index("--hidden_size 16") < procedure.index("cnnrnn train second.json")
    assert "| hidden\\_size |" not in procedure
    assert "learning rate 5e-05" in procedure
    assert "self-critical" in procedure


def test_no_heading_without_facts(captioner, copy):
    for name in ("training_results.json", "training_curves.png"):
        (copy / name).unlink()
    shutil.rmtree(copy / "evaluation")
    text = write_model_card(copy).read_text()
    assert headings(text) == ["Architecture", "Citation"]
    assert ModelCard(text).data.eval_results is None
    assert list((copy / "card").iterdir()) == []


def test_shapes_are_described_with_what_was_invented_about_them(copy):
    results = json.loads((copy / "training_results.json").read_text())
    change(copy / "training_results.json", data=results["data"] | {"dataset_name": "shapes"})
    evaluation = json.loads((copy / "evaluation" / "eval_results.json").read_text())
    evaluation["results"]["beam 3"] |= {"CHAIRs": 0.1234, "CHAIRi": 0.0567, "unreadable": 0.0}
    change(copy / "evaluation" / "eval_results.json", **evaluation)
    text = write_model_card(copy).read_text()
    assert "`train` has\n8,000 pictures" in text
    assert "12.3 % name an object by its shape and colour that is not in the picture" in text
    assert ModelCard(text).data.language == "en"


def test_a_licence_of_its_own_and_known_mistakes_are_told(copy):
    limits = ["It calls a kite a bird.", "It counts no further than two."]
    licence = {"license": "other", "license_name": "for-research", "license_link": "LICENSE"}
    text = write_model_card(copy, **licence, limits=limits).read_text()
    data = ModelCard(text).data
    assert (data.license, data["license_name"], data["license_link"]) == ("other", "for-research", "LICENSE")
    assert "Licence of the weights: [for-research](LICENSE)." in text
    assert "\n- ".join(["", *limits, "It knows the"]) in text.partition("## Limits")[2]


def test_pictures_that_may_not_be_copied_are_left_out(copy):
    text = write_model_card(copy, show_pictures=False).read_text()
    assert [path.name for path in (copy / "card").iterdir()] == ["training_curves.png"]
    assert "Pictures and sentences" not in headings(text)
    assert {"Results", "Limits and biases"} <= set(headings(text))


def test_energy_comes_from_codecarbon(copy):
    header = "timestamp,emissions,energy_consumed,country_name,cpu_model,gpu_model"
    (copy / "emissions.csv").write_text(f"{header}\n1,0.001,0.002,Norway,A CPU,\n2,0.002,0.01,Norway,A CPU,\n")
    text = write_model_card(copy).read_text()
    assert "0.012 kWh, 3 g of CO2 equivalent (Norway)" in text
    emissions = ModelCard(text).data.to_dict()["co2_eq_emissions"]
    assert (emissions["emissions"], emissions["source"]) == (3.0, "codecarbon")
    assert emissions["hardware_used"] == "A CPU"


def test_what_goes_wrong_leaves_the_card_that_was_there(copy, monkeypatch):
    before = write_model_card(copy).read_text()
    pictures = sorted((copy / "card").iterdir())

    def fail(*args):
        raise OSError("No space left on device")

    monkeypatch.setattr(model_card, "run_uses", fail)
    with pytest.raises(OSError, match="No space left"):
        write_model_card(copy, "me/other")
    assert (copy / "README.md").read_text() == before
    assert sorted((copy / "card").iterdir()) == pictures


def test_a_folder_without_a_captioner_is_refused_with_one_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"`folder` is .* pass the `output_dir` of a training\.$") as stop:
        write_model_card(tmp_path)
    assert "\n" not in str(stop.value)


def test_the_card_that_the_project_shows_is_whole_and_small():
    text = (ROOT / "hub_card" / "README.md").read_text()
    pictures = set(re.findall(r"!\[.*?\]\((.+?)\)", text))
    assert len(pictures) == 14
    assert sum((ROOT / "hub_card" / picture).stat().st_size for picture in pictures) < 300_000
    assert {"Use", "Results", "Limits and biases"} <= set(headings(text))
