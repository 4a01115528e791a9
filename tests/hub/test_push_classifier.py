"""A classifier on its way to a Hub: a whole repository that is tried, in one commit."""

import json
import shutil

import pytest
import torch
from support.hub_client import files_of, history
from transformers import (
    AutoModelForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    ViTImageProcessorPil,
)

from modeling_cnnrnn import ConvNetConfig, ConvNetForImageClassification
from modeling_cnnrnn.hub.push_classifier import push_classifier, stage_classifier


EVALUATION = {
    "accuracy": 0.75,
    "accuracy_with_mirror": 0.875,
    "images": 8,
    "per_class": [
        {"class": name, "images": 4, "recall": 0.75, "precision": None, "f1": 0.5, "most_often_taken_for": "b|c"}
        for name in ("a", "b|c")
    ],
}


@pytest.fixture(params=["convnet", "resnet"])
def classifier(request, tmp_path):
    options = {"id2label": {0: "a", 1: "b|c"}, "label2id": {"a": 0, "b|c": 1}}
    if request.param == "convnet":
        model = ConvNetForImageClassification(ConvNetConfig(layers=[{"channels": 4}], **options))
    else:
        config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic", **options)
        model = ResNetForImageClassification(config)
    model.save_pretrained(tmp_path / "classifier")
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "classifier")
    (tmp_path / "classifier/evaluation").mkdir()
    (tmp_path / "classifier/evaluation/eval_results.json").write_text(json.dumps(EVALUATION))
    (tmp_path / "classifier/training_curves.png").write_bytes(b"png")
    return tmp_path / "classifier"


def test_a_push_is_a_whole_repository_in_one_commit(classifier, hub, client):
    push_classifier(classifier, "me/two-classes", license="apache-2.0")
    assert history(hub, "me/two-classes") == ["Upload classifier", "initial commit"]
    files = files_of(hub, "me/two-classes")
    assert {"config.json", "model.safetensors", "README.md", "evaluation/eval_results.json"} < files.keys()
    card = files["README.md"].decode()
    assert "pipeline_tag: image-classification" in card
    assert "license: apache-2.0" in card
    assert "the accuracy is\n0.7500, and 0.8750" in card
    assert "| b\\|c | 4 | 0.750 |  | 0.500 | b\\|c |" in card
    is_own = AutoModelForImageClassification.from_pretrained(classifier).config.model_type == "convnet"
    assert ("trust_remote_code=True" in card) == is_own
    assert ("modeling_convnet_cnnrnn.py" in files) == is_own


def test_a_folder_without_a_classifier_is_not_pushed(tmp_path):
    with pytest.raises(ValueError, match="holds no classifier"):
        stage_classifier(tmp_path, tmp_path / "staged", "me/nothing")


def test_a_repository_that_answers_differently_is_not_pushed(classifier, tmp_path, monkeypatch):
    model_class = type(AutoModelForImageClassification.from_pretrained(classifier))
    whole = model_class.save_pretrained

    def save_another(self, folder, **options):
        torch.nn.init.normal_(next(self.parameters()).data)
        whole(self, folder, **options)
        shutil.copyfile(classifier / "model.safetensors", folder / "model.safetensors")

    monkeypatch.setattr(model_class, "save_pretrained", save_another)
    with pytest.raises(ValueError, match="answers differently"):
        stage_classifier(classifier, tmp_path / "staged", "me/nothing")
