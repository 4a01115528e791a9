"""The engine of all trainings, with a model that knows no captions: an image classifier with its own loss and optimizer."""

import json
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch.utils.data import Dataset
from transformers import ResNetConfig, ResNetForImageClassification, set_seed

from modeling_cnnrnn.training.arguments import TrainingArguments
from modeling_cnnrnn.training.callbacks import TrainerCallback
from modeling_cnnrnn.training.tracking import create_accelerator
from modeling_cnnrnn.training.trainer import Trainer, TrainerState


pytestmark = pytest.mark.usefixtures("blank_pictures")


class Stripes(Dataset):
    """Noisy pictures with bright rows or bright columns."""

    epoch = 0

    def __init__(self, size: int, seed: int = 0):
        generator = torch.Generator().manual_seed(seed)
        self.labels = torch.randint(2, (size,), generator=generator)
        self.pixel_values = torch.randn(size, 3, 16, 16, generator=generator)
        for pixels, label in zip(self.pixel_values, self.labels, strict=True):
            (pixels if label else pixels.transpose(1, 2))[:, ::4] += 2

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict:
        return {"pixel_values": self.pixel_values[index], "labels": self.labels[index]}


class ClassifierTrainer(Trainer):
    """A classifier as another project would train it: its own loss, optimizer, evaluation and pictures."""

    metric_for_best_model = "accuracy"
    curves = {"loss": ["loss"], "accuracy": ["accuracy"]}  # noqa: RUF012

    def compute_loss(self, model, batch, num_items):
        logits = model(pixel_values=batch["pixel_values"]).logits
        self.record(certainty=logits.softmax(dim=-1).amax(dim=-1).mean().item())
        return torch.nn.functional.cross_entropy(logits, batch["labels"], reduction="sum") / num_items

    def create_optimizer(self):
        return torch.optim.SGD(self.model.parameters(), self.args.learning_rate, momentum=0.9)

    @torch.no_grad()
    def evaluate(self):
        self.model.eval()
        images = Stripes(32, seed=1)
        predictions = self.model(pixel_values=images.pixel_values).logits.argmax(dim=-1)
        return {"accuracy": (predictions == images.labels).float().mean().item()}


class Unmovable(TrainerCallback):
    """Watches everything, and disturbs all that a watcher may."""

    def __init__(self):
        self.calls: list[str] = []

    def __getattribute__(self, name: str):
        if not name.startswith("on_"):
            return super().__getattribute__(name)

        def watch(trainer, *arguments):
            self.calls.append(name)
            torch.randn(3), torch.manual_seed(1), set_seed(7)
            trainer.model.eval()
            with torch.no_grad():
                trainer.model(pixel_values=torch.randn(1, 3, 16, 16))

        return watch


def collate(examples: list[dict]) -> dict[str, torch.Tensor]:
    return {name: torch.stack([example[name] for example in examples]) for name in examples[0]}


def make_trainer(output_dir: Path, trainer_class=ClassifierTrainer, callbacks=(), **options) -> Trainer:
    defaults = {
        "num_train_epochs": 3,
        "per_device_train_batch_size": 8,
        "learning_rate": 0.05,
        "logging_steps": 1,
        "ema_decay": 0.5,
        "save_total_limit": None,
    }
    args = TrainingArguments(output_dir=str(output_dir), **(defaults | options))
    accelerator = create_accelerator(args)
    set_seed(args.seed)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic", num_labels=2)
    model = ResNetForImageClassification(config)
    model.classifier.insert(0, torch.nn.Dropout(0.2))
    return trainer_class(model, args, accelerator, Stripes(44), collate, callbacks=callbacks)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_same_weights(folder: Path, other: Path):
    assert all(torch.equal(weights(folder)[name], tensor) for name, tensor in weights(other).items())


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("classifier")
    make_trainer(folder).train()
    return folder


def state_of(folder: Path, step: int = 18) -> TrainerState:
    return TrainerState.load_from_json(folder / f"checkpoint-{step}" / "trainer_state.json")


def test_a_classifier_is_trained_by_the_same_engine(classifier):
    state = state_of(classifier)
    losses = [row["loss"] for row in state.steps]
    assert sum(losses[-6:]) < 0.6 * sum(losses[:6])
    assert state.best["accuracy"] > 0.9
    assert [row["step"] for row in state.evaluations] == [6, 12, 18]
    assert ResNetForImageClassification.from_pretrained(classifier).num_labels == 2
    assert (classifier / "training_curves.png").exists()


def test_the_log_has_what_the_trainer_records_and_the_speed_of_what_it_counts(classifier):
    row = state_of(classifier).steps[-1]
    assert 0.5 <= row["certainty"] <= 1
    assert row["items_per_second"] > 0
    assert row["learning_rate"] == pytest.approx(0, abs=1e-6)


def test_the_best_evaluation_is_the_last_with_the_largest_metric(tmp_path):
    class Scripted(ClassifierTrainer):
        scores = iter([0.2, 0.6, 0.6, 0.1])

        def evaluate(self):
            return {"accuracy": next(self.scores)}

    state = make_trainer(tmp_path, Scripted, num_train_epochs=4, ema_decay=0).train()
    assert state.best == {"step": 18, "accuracy": 0.6}
    assert_same_weights(tmp_path, tmp_path / "checkpoint-18")


@pytest.mark.parametrize("step", [6, 12])
def test_a_classifier_resumes_bit_by_bit(step, classifier, tmp_path):
    make_trainer(tmp_path, resume_from_checkpoint=str(classifier / f"checkpoint-{step}")).train()
    assert [row["loss"] for row in state_of(tmp_path).steps] == [row["loss"] for row in state_of(classifier).steps]
    assert_same_weights(tmp_path / "checkpoint-18", classifier / "checkpoint-18")
    assert_same_weights(tmp_path, classifier)


def test_a_training_that_is_watched_is_the_one_that_is_not(classifier, tmp_path):
    watcher = Unmovable()
    make_trainer(tmp_path, callbacks=[watcher]).train()
    assert_same_weights(tmp_path / "checkpoint-18", classifier / "checkpoint-18")
    step = ["on_log", "on_step_end"]
    epoch = [*step * 6, "on_evaluate", "on_save"]
    assert watcher.calls == ["on_train_begin", "on_stage_begin", *epoch * 3, "on_train_end"]


def test_every_hook_is_documented():
    hooks = [name for name in vars(TrainerCallback) if name.startswith("on_")]
    assert len(hooks) == 7
    assert all(getattr(TrainerCallback, name).__doc__ for name in hooks)


def test_a_callback_sees_the_weights_that_were_evaluated(tmp_path):
    seen = []

    class Watcher(TrainerCallback):
        def on_evaluate(self, trainer, metrics):
            seen.append({name: tensor.clone() for name, tensor in trainer.model.state_dict().items()})

    make_trainer(tmp_path, callbacks=[Watcher()], num_train_epochs=1).train()
    kept = weights(tmp_path)
    assert all(torch.equal(seen[0][name], tensor) for name, tensor in kept.items())
    assert not torch.equal(kept["classifier.2.weight"], weights(tmp_path / "checkpoint-6")["classifier.2.weight"])


def test_a_state_is_read_as_it_was_written(tmp_path):
    state = TrainerState(step=3, stage="training", best={"step": 2, "score": 0.5}, broken_images={"a": "no JPEG"})
    state.save_to_json(tmp_path / "trainer_state.json")
    assert TrainerState.load_from_json(tmp_path / "trainer_state.json") == state


def test_a_loss_that_is_not_finite_stops_the_training(tmp_path):
    with pytest.raises(ValueError, match="The loss is nan at step"):
        make_trainer(tmp_path, learning_rate=1e30, max_grad_norm=0).train()


def test_stages_train_what_each_says(tmp_path):
    class Staged(ClassifierTrainer):
        ended: list[str] = []  # noqa: RUF012

        def stage_at(self, step):
            return "head" if step < 4 else "all"

        def begin_stage(self):
            self.model.resnet.requires_grad_(self.stage == "all")
            return False

        def end_stage(self, next_stage):
            self.ended.append(f"{self.stage} before {next_stage} at {self.state.step}")

    make_trainer(tmp_path, Staged, save_steps=1, num_train_epochs=1).train()
    name = "resnet.embedder.embedder.convolution.weight"
    tensors = [weights(tmp_path / f"checkpoint-{step}")[name] for step in (1, 4, 5)]
    assert torch.equal(tensors[0], tensors[1])
    assert not torch.equal(tensors[1], tensors[2])
    assert Staged.ended == ["head before all at 4"]
    stages = [state_of(tmp_path, step).stage for step in (4, 5)]
    assert stages == ["head", "all"]


def test_the_items_of_accumulated_batches_count_alike(tmp_path):
    """Of 44 pictures, the last step has 12 in batches of 8 and 4."""
    whole = make_trainer(tmp_path / "whole", per_device_train_batch_size=16, num_train_epochs=1)
    parts = make_trainer(tmp_path / "parts", gradient_accumulation_steps=2, num_train_epochs=1)
    for trainer in (whole, parts):
        for module in trainer.model.modules():  # BatchNorm sees each small batch alone, and dropout draws for it
            if isinstance(module, (torch.nn.BatchNorm2d, torch.nn.Dropout)):
                module.forward = lambda values: values
    losses = [[row["loss"] for row in trainer.train().steps] for trainer in (whole, parts)]
    assert len(losses[0]) == 3
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_a_trainer_without_an_evaluation_says_what_to_override(tmp_path):
    with pytest.raises(NotImplementedError, match="Bare has no `evaluate`: override it"):
        make_trainer(tmp_path, type("Bare", (ClassifierTrainer,), {"evaluate": Trainer.evaluate})).train()


def test_results_hold_the_options_and_where_they_come_from(classifier):
    results = json.loads((classifier / "training_results.json").read_text())
    assert results["training"]["learning_rate"] == 0.05
    assert results["versions"]["torch"] == torch.__version__
    assert results["best"] == state_of(classifier).best


def test_the_loader_is_prepared_once(tmp_path, monkeypatch):
    prepare, prepared = Accelerator.prepare_data_loader, []

    def counted(self, loader, *args, **kwargs):
        prepared.append(loader)
        return prepare(self, loader, *args, **kwargs)

    monkeypatch.setattr(Accelerator, "prepare_data_loader", counted)
    make_trainer(tmp_path, num_train_epochs=1).train()
    assert len(prepared) == 1
