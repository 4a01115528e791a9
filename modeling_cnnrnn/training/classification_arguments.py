"""Options of the training of a classifier. Light to import."""

from dataclasses import dataclass, field
from typing import Literal

from ..data.arguments import LabelledDatasetArguments
from .arguments import TrainingArguments


# learning rate, momentum and weight decay where none is given
OPTIMIZERS: dict[str, tuple[float, float, float]] = {
    "muon": (0.24, 0.6, 2e-6),
    "sgd": (0.1, 0.9, 5e-4),
    "adamw": (2e-3, 0.9, 0.05),
    "adadelta": (1.0, 0.95, 1e-4),
}


@dataclass
class ClassificationDataArguments(LabelledDatasetArguments):
    """Choose the pictures to train on, and how they are changed."""

    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    validation_split: str = field(
        default="validation",
        metadata={"help": "Split to evaluate on. Where the dataset has none, a part of the training pictures is kept."},
    )
    num_validation_images: int | None = field(
        default=None,
        metadata={
            "help": "Where there is no validation split, keep the last pictures for it, this many. By default a random "
            "tenth is kept, always the same."
        },
    )
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Train on this many pictures of the split at most."}
    )
    max_eval_samples: int | None = field(
        default=None, metadata={"help": "Evaluate on this many pictures of the split at most."}
    )
    image_size: int | None = field(
        default=None,
        metadata={
            "help": "Side of the square pictures that the CNN receives. Defaults to the size that a pretrained CNN was "
            "trained with, and for one from scratch to that of the first picture, up to 64."
        },
    )
    flip: Literal["alternating", "random", "none"] = field(
        default="alternating",
        metadata={"help": "Mirror each picture in every second epoch, at random, or never (letters, left and right)."},
    )
    max_shift: int = field(
        default=2,
        metadata={"help": "Pixels that a picture is shifted by at most; what leaves it comes back reflected."},
    )


@dataclass
class ClassificationModelArguments:
    """Choose a classifier to train further, or the layers of a new one."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Pretrained classifier or CNN: a model of the Hub or a folder."}
    )
    model_config: str | None = field(
        default=None,
        metadata={
            "help": 'Configuration of a CNN from scratch, as JSON, such as \'{"model_type": "resnet"}\'. Defaults to a '
            "ConvNet in the shape of airbench94."
        },
    )


@dataclass
class ClassificationTrainingArguments(TrainingArguments):
    """Set how long, how fast and how precisely to train, and what to keep."""

    output_dir: str = field(
        default="outputs/classifier", metadata={"help": "Folder of the trained model, its checkpoints and pictures."}
    )
    per_device_train_batch_size: int = field(default=500, metadata={"help": "Pictures in a batch of one process."})
    per_device_eval_batch_size: int = field(
        default=500, metadata={"help": "Pictures in a batch of one process in evaluation."}
    )
    optimizer: Literal["muon", "sgd", "adamw", "adadelta"] = field(
        default="muon",
        metadata={
            "help": "Muon for convolutions with SGD for the rest, SGD with Nesterov momentum, AdamW or Adadelta."
        },
    )
    learning_rate: float = field(  # type: ignore[assignment]  # set below
        default=None,
        metadata={"help": "Highest learning rate: by default 0.24 of Muon, 0.1 of SGD, 0.002 of AdamW, 1 of Adadelta."},
    )
    momentum: float = field(  # type: ignore[assignment]
        default=None,
        metadata={"help": "Momentum (AdamW: beta1; Adadelta: rho). By default 0.6 of Muon, 0.9, 0.9, 0.95."},
    )
    weight_decay: float = field(  # type: ignore[assignment]
        default=None,
        metadata={
            "help": "Weight decay of matrices. With Muon: the share that a picture takes off the classifier and the biases. "
            "By default 2e-6 of Muon, 5e-4 of SGD, 0.05 of AdamW, 1e-4 of Adadelta."
        },
    )
    bias_learning_rate: float = field(
        default=0.053, metadata={"help": "With Muon, learning rate of biases for each picture of a batch."}
    )
    classifier_learning_rate: float = field(
        default=0.67, metadata={"help": "With Muon, learning rate of the classifier for each picture of a batch."}
    )
    lr_scheduler_type: str = field(default="linear", metadata={"help": "Learning-rate schedule; linear falls to 0."})
    warmup_ratio: float = field(default=0.0, metadata={"help": "Share of the schedule in which the rate rises from 0."})
    max_grad_norm: float = field(default=0.0, metadata={"help": "Norm that gradients are clipped to (0: not clipped)."})
    label_smoothing: float = field(default=0.2, metadata={"help": "Probability mass spread over all classes."})
    ema_decay: float = field(
        default=0.0,
        metadata={"help": "Decay of the moving average of the weights, which is evaluated and kept (0: no average)."},
    )
    gradient_checkpointing: bool = field(
        default=False, metadata={"help": "Compute activations a second time to save memory."}
    )

    def __post_init__(self):
        learning_rate, momentum, weight_decay = OPTIMIZERS[self.optimizer]
        self.learning_rate = learning_rate if self.learning_rate is None else self.learning_rate
        self.momentum = momentum if self.momentum is None else self.momentum
        self.weight_decay = weight_decay if self.weight_decay is None else self.weight_decay


def check_options(
    data_args: ClassificationDataArguments,
    model_args: ClassificationModelArguments,
    args: ClassificationTrainingArguments,
) -> None:
    """
    Refuse options that contradict each other or are out of range.

    Raises:
        ValueError: names the options and says what to do.
    """
    if model_args.model_name_or_path and model_args.model_config:
        raise ValueError("`model_config` has no effect with `model_name_or_path`: leave one of the two out.")
    if data_args.image_size is not None and data_args.image_size < 1:
        raise ValueError(f"`image_size` is {data_args.image_size}: pass a positive number.")
    if data_args.max_shift < 0:
        raise ValueError(f"`max_shift` is {data_args.max_shift}: pass 0 or more.")
    if not 0 <= args.label_smoothing < 1:
        raise ValueError(f"`label_smoothing` is {args.label_smoothing}: pass a number in [0, 1).")
    if args.optimizer == "sgd" and not args.momentum:
        raise ValueError("`momentum` is 0, but SGD has Nesterov momentum here: pass a positive number.")
