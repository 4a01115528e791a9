"""The trainer of image classifiers: optimizers for CNNs, label smoothing, and the scores of each class."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel
from transformers.image_processing_backends import PilBackend

from ..data.image_batches import LabelledImages
from ..evaluation.classification import ClassifierEvaluation, evaluate_classifier
from ..live.views import ClassifierView
from ..models.loss_cnnrnn import IGNORE_INDEX
from .callbacks import TrainerCallback
from .classification_arguments import ClassificationTrainingArguments
from .curves import save_confusion_matrix
from .muon import Muon
from .networks import Networks
from .optimization import decay_groups
from .tracking import log_picture
from .trainer import Trainer


# of what Muon does not train, as in airbench94
SGD_MOMENTUM = 0.85


class ClassificationTrainer(Trainer):
    """
    Train a classifier by cross-entropy.

    The best checkpoint is the one with the highest accuracy. `evaluation` is the last evaluation, for callbacks.

    Args:
        model: any model of `AutoModelForImageClassification`.
        image_processor: the image processor of the model.
        train_dataset: pictures to train on.
        eval_dataset: pictures to evaluate on.
        args: options of the training.
        accelerator, callbacks, options, networks: see [`Trainer`].
    """

    project_name = "classifier"
    metric_for_best_model = "accuracy"
    curves: Mapping[str, Sequence[str]] = {
        "loss (nats per picture)": ["loss"],
        "accuracy": ["accuracy"],
    }
    args: ClassificationTrainingArguments
    train_dataset: LabelledImages

    def __init__(
        self,
        model: PreTrainedModel,
        image_processor: PilBackend,
        train_dataset: LabelledImages,
        eval_dataset: LabelledImages,
        accelerator: Accelerator,
        args: ClassificationTrainingArguments,
        callbacks: Sequence[TrainerCallback] = (),
        options: Mapping[str, Mapping[str, Any]] | None = None,
        networks: Networks | None = None,
    ):
        collate = train_dataset.collate
        super().__init__(
            model, args, accelerator, train_dataset, collate, image_processor, callbacks, options, networks
        )
        self.eval_dataset = eval_dataset
        self.evaluation: ClassifierEvaluation | None = None

    def prepare_inputs(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Normalize the pictures of a batch on the device."""
        broken = {f"{name} (validation)": reason for name, reason in self.eval_dataset.broken.items()}
        self.state.broken_images |= self.train_dataset.broken | broken
        return {"pixel_values": self.train_dataset.normalize(batch["pixel_values"]), "labels": batch["labels"]}

    def count_items(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Count the pictures."""
        return {"images": (batch["labels"] != IGNORE_INDEX).sum()}

    def compute_loss(self, model: torch.nn.Module, batch: dict[str, Any], num_items: torch.Tensor) -> torch.Tensor:
        """Compute the loss of a batch, and record its accuracy."""
        labels = batch["labels"]
        logits = model(pixel_values=batch["pixel_values"]).logits.float()
        is_labelled = labels != IGNORE_INDEX
        self.record(accuracy=(logits.argmax(1) == labels)[is_labelled].float().mean().nan_to_num().item())
        loss = cross_entropy(logits, labels, reduction="sum", label_smoothing=self.args.label_smoothing)
        return loss / num_items

    def create_optimizer(self) -> torch.optim.Optimizer:
        """Create the optimizer that the options name."""
        args, momentum = self.args, self.args.momentum
        if args.optimizer == "muon":
            return Muon(self._muon_groups())
        groups = decay_groups(self.model, args.weight_decay)
        if args.optimizer == "sgd":
            return torch.optim.SGD(groups, args.learning_rate, momentum=momentum, nesterov=True)
        if args.optimizer == "adadelta":
            return torch.optim.Adadelta(groups, args.learning_rate, rho=momentum)
        return torch.optim.AdamW(groups, args.learning_rate, betas=(momentum, 0.999), fused=True)

    def _muon_groups(self) -> list[dict[str, Any]]:
        """
        Group parameters into convolutions, matrices and vectors.

        Airbench's rates of the latter two are for the sum of the losses of a batch, and the loss here is their mean.
        """
        args = self.args
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        size = args.per_device_train_batch_size * args.gradient_accumulation_steps * self.accelerator.num_processes
        groups: list[dict[str, Any]] = [
            {"params": [p for p in trained if p.ndim == 4], "lr": args.learning_rate, "momentum": args.momentum}
        ]
        for rate, is_matrix in ((args.classifier_learning_rate, True), (args.bias_learning_rate, False)):
            parameters = [p for p in trained if p.ndim != 4 and (p.ndim > 1) == is_matrix]
            group = {"params": parameters, "lr": rate * size, "momentum": SGD_MOMENTUM, "orthogonalized": False}
            groups.append(group | {"weight_decay": args.weight_decay / rate if rate else 0.0})
        return [group for group in groups if group["params"]]

    def log_values(self) -> dict[str, float]:
        """Return the learning rate, and the CPU time of the main process over all resumed parts."""
        return {**super().log_values(), "cpu_seconds": self.state.cpu_seconds[-1]}

    def evaluate(self) -> dict[str, Any]:
        """Classify the validation pictures."""
        size = self.args.per_device_eval_batch_size
        self.evaluation = evaluate_classifier(self.model, self.eval_dataset, self.accelerator, size)
        return self.evaluation.scores

    def make_view(self) -> ClassifierView:
        """Make the view of the classifier for the page of the training."""
        return ClassifierView(self.model, self.accelerator, self.processing_class, self.eval_dataset)  # type: ignore[arg-type]

    def evaluation_details(self) -> dict[str, Any]:
        """Return the confusion matrix."""
        if self.evaluation is None:
            return {}
        matrix = self.evaluation.confusion_matrix.tolist()
        return {"confusion": {"classes": list(self.evaluation.classes), "matrix": matrix}}

    def draw(self) -> None:
        """Draw the confusion matrix, and send it to the trackers."""
        if self.evaluation is not None:
            path = self.output_dir / "confusion_matrix.png"
            save_confusion_matrix(path, self.evaluation.confusion_matrix.tolist(), self.evaluation.classes)
            if self.accelerator.log_with:
                log_picture(self.accelerator, "confusion_matrix", path, self.state.step)
