"""Options of a training. Light to import: a command line reads them before it knows whether to train."""

from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any

from ..data.arguments import DatasetArguments
from ..models.architectures_cnnrnn import architecture_options


@dataclass
class CaptionDataArguments(DatasetArguments):
    """Choose the images and captions to train on."""

    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    validation_split: str = field(
        default="validation",
        metadata={
            "help": "Split to evaluate on. Where the dataset has none, a twentieth of the training images is kept for it."
        },
    )
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Train on this many images of the split at most."}
    )
    max_eval_samples: int | None = field(
        default=None, metadata={"help": "Evaluate on this many images of the split at most."}
    )
    captions_per_image: int = field(
        default=5, metadata={"help": "Captions of an image that are trained on together, with one pass of the CNN."}
    )
    max_caption_length: int = field(
        default=32, metadata={"help": "Longest caption to train on, in tokens with the end token; longer ones are cut."}
    )
    min_frequency: int = field(
        default=5, metadata={"help": "Words that are rarer than this in the training split become <unk>."}
    )
    image_size: int | None = field(
        default=None,
        metadata={
            "help": "Side of the square images that the CNN of a new captioner receives. Defaults to the size that a "
            "pretrained CNN was trained with, and to 64 for a CNN from scratch."
        },
    )
    random_crop: bool = field(default=False, metadata={"help": "Augment the training images with random crops."})
    flip_probability: float = field(
        default=0.0,
        metadata={
            "help": "Probability that a training image is mirrored. Captions that say left or right become wrong."
        },
    )
    preload_images: bool = field(
        default=False, metadata={"help": "Keep the processed images in memory: for small images without augmentation."}
    )
    draft_decoding: bool = field(
        default=False,
        metadata={"help": "Decode large JPEGs of the training split at a fraction of their size: faster, not exact."},
    )
    cache_image_features: bool = field(
        default=False,
        metadata={"help": "Run a frozen CNN once, and train from its stored features while it is frozen."},
    )
    num_feature_views: int = field(
        default=1, metadata={"help": "Stored features of each image; all but the first are of augmented images."}
    )
    features_cache_dir: str | None = field(
        default=None, metadata={"help": "Folder of the stored features. Defaults to <output_dir>/image_features."}
    )
    region_features: str | None = field(
        default=None,
        metadata={
            "help": "Features of regions that a detector has found, in place of a CNN: a folder of image_id.npy or .npz files, "
            "an .h5 or a .parquet file. By default the column image_features of the dataset, if it has one."
        },
    )


@dataclass
class EncoderArguments:
    """Choose a model to train further, or the CNN of a new one."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Model to train further: its name on the Hub or its folder."}
    )
    encoder_name_or_path: str | None = field(
        default=None, metadata={"help": "Pretrained CNN of a new model: its name on the Hub or its folder."}
    )
    encoder_config: str | None = field(
        default=None,
        metadata={"help": 'Configuration of a CNN from scratch, as JSON, such as \'{"model_type": "resnet"}\'.'},
    )
    freeze_encoder: bool | None = field(
        default=None, metadata={"help": "Whether to freeze the CNN. By default a pretrained one is frozen."}
    )
    vision_feature_layer: int = field(
        default=-1, metadata={"help": "Hidden state of the CNN that is read; -1 is the last feature map."}
    )

    @property
    def is_pretrained(self) -> bool:
        """Whether the CNN has been trained before."""
        return bool(self.model_name_or_path or self.encoder_name_or_path)

    def layer_options(self) -> dict[str, Any]:
        """Return the fields of the model's configuration among these options."""
        others = ["model_name_or_path", "encoder_name_or_path", "encoder_config", "freeze_encoder"]
        return {option.name: getattr(self, option.name) for option in fields(self) if option.name not in others}


@dataclass
class CaptionModelArguments(EncoderArguments):
    """Choose a captioner to train further, or the layers of a new one, and how it generates captions."""

    architecture: str | None = field(
        default=None,
        metadata={
            "help": "Published captioner, such as nic, show_attend_tell, adaptive or up_down, whose options take the place of "
            "the defaults."
        },
    )
    rnn_type: str = field(
        default="lstm",
        metadata={"help": "Recurrent layer: lstm, gru, rnn_tanh, rnn_relu, lstm_maxout or lstm_linear_output."},
    )
    hidden_size: int = field(default=512, metadata={"help": "Size of the recurrent state."})
    embedding_size: int = field(default=512, metadata={"help": "Size of the word embeddings and projected regions."})
    word_vectors: str | None = field(
        default=None,
        metadata={
            "help": "Text file of GloVe or .vec file of fastText: the first embeddings of the words that it has."
        },
    )
    num_hidden_layers: int = field(default=1, metadata={"help": "Number of recurrent layers."})
    image_injection: str = field(
        default="initial_state",
        metadata={
            "help": "How the image enters: first_token, initial_state, bias_first_step, bias_every_step or none."
        },
    )
    attention_type: str = field(
        default="additive",
        metadata={"help": "Attention over image regions: additive, att2in, adaptive, adaptive_mlp, up_down or none."},
    )
    attention_size: int = field(default=256, metadata={"help": "Size of the hidden layer of additive attention."})
    deep_output: str = field(
        default="none",
        metadata={"help": "Output layer that reads the last word, the state and what is seen: none, linear or tanh."},
    )
    attention_regularization: float = field(
        default=0.0, metadata={"help": "Weight of the doubly stochastic attention loss of Show, Attend and Tell."}
    )
    dropout: float = field(default=0.6, metadata={"help": "Dropout after the recurrent layers."})
    embedding_dropout: float = field(default=0.4, metadata={"help": "Dropout of the word embeddings."})
    feature_dropout: float = field(default=0.5, metadata={"help": "Dropout of the projected regions."})
    label_smoothing: float = field(default=0.1, metadata={"help": "Probability mass spread over all words."})
    initializer_range: float = field(default=0.05, metadata={"help": "Standard deviation of new weights."})
    tie_word_embeddings: bool = field(
        default=False, metadata={"help": "Use the word embeddings as the output layer; the two sizes must be equal."}
    )
    max_length: int = field(
        default=32, metadata={"help": "Longest sentence to generate, in tokens with the start token."}
    )
    num_beams: int = field(
        default=1, metadata={"help": "Beam size of the captions that are scored to find the best checkpoint."}
    )

    def freezes_encoder(self, stage_args: "StageArguments") -> bool:
        """Tell whether the CNN is frozen when the training starts."""
        if self.freeze_encoder is not None:
            return self.freeze_encoder
        return self.is_pretrained or stage_args.unfreezes_encoder

    def layer_options(self) -> dict[str, Any]:
        """
        Return the fields of the model's configuration among these options.

        Raises:
            ValueError: there is no such architecture.
        """
        others = ("architecture", "word_vectors", "max_length", "num_beams")
        options = {name: value for name, value in super().layer_options().items() if name not in others}
        if self.architecture is None:
            return options
        defaults = {option.name: option.default for option in fields(self)}
        chosen = {name: value for name, value in options.items() if value != defaults[name]}
        return {**options, **architecture_options(self.architecture), **chosen}


@dataclass
class TrainingArguments:
    """Set how long, how fast and how precisely to train, and what to keep."""

    output_dir: str = field(
        default="outputs/captioner", metadata={"help": "Folder of the trained model, its checkpoints and pictures."}
    )
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Start again in a folder that holds checkpoints, and remove these."}
    )
    num_train_epochs: int = field(default=10, metadata={"help": "Number of epochs, over all stages."})
    max_train_steps: int | None = field(
        default=None, metadata={"help": "Number of optimizer steps; replaces num_train_epochs."}
    )
    per_device_train_batch_size: int = field(default=16, metadata={"help": "Images in a batch of one process."})
    per_device_eval_batch_size: int = field(
        default=50, metadata={"help": "Images in a batch of one process in evaluation."}
    )
    gradient_accumulation_steps: int = field(default=1, metadata={"help": "Batches in one optimizer step."})
    learning_rate: float = field(default=8e-4, metadata={"help": "Highest learning rate of AdamW."})
    lr_scheduler_type: str = field(
        default="cosine", metadata={"help": "Learning-rate schedule, restarted when self-critical training begins."}
    )
    warmup_ratio: float = field(default=0.05, metadata={"help": "Share of a schedule in which the rate rises from 0."})
    weight_decay: float = field(default=0.1, metadata={"help": "Weight decay of matrices; vectors do not decay."})
    max_grad_norm: float = field(default=1.0, metadata={"help": "Norm that gradients are clipped to (0: not clipped)."})
    max_grad_value: float | None = field(
        default=None, metadata={"help": "Value that each element of a gradient is clipped to."}
    )
    ema_decay: float = field(
        default=0.998,
        metadata={"help": "Decay of the moving average of the weights, which is evaluated and kept (0: no average)."},
    )
    mixed_precision: str = field(default="no", metadata={"help": "Precision of the computation: no, bf16 or fp16."})
    gradient_checkpointing: bool = field(
        default=False, metadata={"help": "Compute the CNN's activations a second time to save memory."}
    )
    torch_compile: bool = field(
        default=False, metadata={"help": "Compile the CNN with torch.compile: a slow start, then faster steps."}
    )
    seed: int = field(default=42, metadata={"help": "Random seed of the weights, the order of images and dropout."})
    dataloader_num_workers: int = field(default=0, metadata={"help": "Processes that load images."})
    eval_epochs: float = field(default=1.0, metadata={"help": "Epochs between evaluations; each saves a checkpoint."})
    logging_steps: int = field(default=10, metadata={"help": "Steps between log entries."})
    save_steps: int | None = field(
        default=None, metadata={"help": "Steps between checkpoints, besides those of evaluations."}
    )
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints to keep; older ones are removed."})
    save_on_interrupt: bool = field(
        default=False,
        metadata={"help": "Save a checkpoint at Ctrl-C too, as at SIGTERM and SIGHUP; twice stops at once."},
    )
    resume_from_checkpoint: str | None = field(
        default=None, metadata={"help": "Folder of the checkpoint to resume from, or 'latest'."}
    )
    report_to: str = field(
        default="none",
        metadata={
            "help": "Experiment trackers: tensorboard, wandb, trackio, ..., all or none; live is a page on which the training "
            "is watched and steered."
        },
    )
    live_host: str = field(
        default="127.0.0.1",
        metadata={"help": "Address of the page of --report_to live; others than the default open it to a network."},
    )
    live_port: int = field(default=0, metadata={"help": "Port of the page of --report_to live; 0 takes a free one."})
    push_to_hub: bool = field(default=False, metadata={"help": "Push the trained model to the Hub."})
    hub_model_id: str | None = field(
        default=None, metadata={"help": "Repository to push to, user/name. Defaults to the output folder's name."}
    )
    hub_private_repo: bool | None = field(
        default=None, metadata={"help": "Whether a new repository is private. Defaults to the Hub's setting."}
    )
    hub_revision: str | None = field(default=None, metadata={"help": "Branch of the repository to push to."})


@dataclass
class StageArguments:
    """Set the stages: finetuning of the CNN, scheduled sampling, self-critical training."""

    unfreeze_encoder_after_epochs: float | None = field(
        default=None, metadata={"help": "Epochs after which a frozen CNN is finetuned too."}
    )
    unfreeze_encoder_after_steps: int | None = field(
        default=None, metadata={"help": "Steps after which a frozen CNN is finetuned too."}
    )
    unfreeze_encoder_from_layer: int = field(
        default=0, metadata={"help": "First layer of the CNN to finetune; 0 is the stem, -1 the last layer."}
    )
    encoder_learning_rate: float | None = field(
        default=None,
        metadata={"help": "Learning rate of the CNN. Defaults to a tenth of learning_rate for a pretrained one."},
    )
    encoder_layer_decay: float = field(
        default=1.0, metadata={"help": "Learning-rate factor from each CNN layer to the one below it."}
    )
    scheduled_sampling_max: float = field(
        default=0.0, metadata={"help": "Highest probability that an input word is drawn from the model, in training."}
    )
    scheduled_sampling_start: float = field(
        default=0.0, metadata={"help": "Epoch in which scheduled sampling begins to rise from 0."}
    )
    scheduled_sampling_increase: float = field(
        default=0.01, metadata={"help": "Increase of the probability per epoch."}
    )
    self_critical_after_epochs: float | None = field(
        default=None, metadata={"help": "Epochs after which the model is trained on the scores of its own sentences."}
    )
    self_critical_after_steps: int | None = field(
        default=None, metadata={"help": "Steps after which the model is trained on the scores of its own sentences."}
    )
    self_critical_learning_rate: float = field(
        default=5e-5, metadata={"help": "Learning rate of self-critical training; that of the CNN falls in proportion."}
    )
    self_critical_num_samples: int = field(default=5, metadata={"help": "Sentences sampled for each image."})
    self_critical_baseline: str = field(
        default="leave_one_out", metadata={"help": "Baseline of the reward: leave_one_out or greedy."}
    )
    self_critical_cider_weight: float = field(default=1.0, metadata={"help": "Weight of CIDEr-D in the reward."})
    self_critical_bleu_weight: float = field(default=0.0, metadata={"help": "Weight of BLEU-4 in the reward."})
    self_critical_cross_entropy_weight: float = field(
        default=0.0, metadata={"help": "Weight of the cross-entropy loss that is added (0: none)."}
    )

    @property
    def unfreezes_encoder(self) -> bool:
        """Whether the CNN is frozen at first, and finetuned later."""
        return (self.unfreeze_encoder_after_epochs, self.unfreeze_encoder_after_steps) != (None, None)

    @property
    def has_self_critical_training(self) -> bool:
        """Whether there is a stage of self-critical training."""
        return (self.self_critical_after_epochs, self.self_critical_after_steps) != (None, None)


def check_options(
    data_args: CaptionDataArguments,
    model_args: CaptionModelArguments,
    args: TrainingArguments,
    stage_args: StageArguments,
) -> None:
    """
    Refuse options that contradict each other, and options that have no effect beside the others.

    Raises:
        ValueError: names the options and says what to do.
    """
    starts_frozen = model_args.freezes_encoder(stage_args)
    always_frozen = starts_frozen and not stage_args.unfreezes_encoder
    if stage_args.unfreezes_encoder and not starts_frozen:
        raise ValueError("`freeze_encoder` is False, so there is nothing to unfreeze: leave one of the two out.")
    check_shared_options(data_args, model_args, args, starts_frozen, always_frozen)
    if always_frozen:
        names = ["unfreeze_encoder_from_layer", "encoder_learning_rate", "encoder_layer_decay"]
        remedy = "leave it out, or pass --unfreeze_encoder_after_epochs, or --freeze_encoder false"
        _refuse(stage_args, names, "while the CNN stays frozen", remedy)
    elif not (model_args.is_pretrained or stage_args.unfreezes_encoder):
        remedy = "all layers of a CNN from scratch are trained"
        _refuse(stage_args, ["unfreeze_encoder_from_layer"], "without a pretrained CNN", remedy)
    if not stage_args.scheduled_sampling_max:
        names = ["scheduled_sampling_start", "scheduled_sampling_increase"]
        _refuse(
            stage_args, names, "without `scheduled_sampling_max`", "leave it out, or pass the highest probability too"
        )
    if not stage_args.has_self_critical_training:
        names = [option.name for option in fields(stage_args) if option.name.startswith("self_critical_")]
        _refuse(
            stage_args, names, "without self-critical training", "leave it out, or pass --self_critical_after_epochs"
        )


def check_shared_options(
    data_args: CaptionDataArguments,
    model_args: EncoderArguments,
    args: TrainingArguments,
    starts_frozen: bool,
    stays_frozen: bool,
) -> None:
    """
    Refuse options that have no effect, of those that the trainings of all models have.

    Args:
        starts_frozen: whether the CNN is not trained at first.
        stays_frozen: whether it is never trained.

    Raises:
        ValueError: names the options and says what to do.
    """
    augments = data_args.random_crop or data_args.flip_probability > 0
    if data_args.region_features is not None:
        names = ["image_size", "random_crop", "flip_probability", "preload_images", "cache_image_features"]
        _refuse(data_args, names, "with `region_features`", "regions come from a detector, leave it out")
        names = ["encoder_name_or_path", "encoder_config", "freeze_encoder", "vision_feature_layer"]
        _refuse(model_args, names, "with `region_features`", "no CNN is run, leave it out")
    if data_args.cache_image_features and (
        not starts_frozen or (augments and data_args.num_feature_views == 1 and stays_frozen)
    ):
        raise ValueError(
            "`cache_image_features` needs a frozen CNN, and with augmentation several views of each image "
            "(--num_feature_views)."
        )
    if data_args.preload_images and (augments or data_args.cache_image_features):
        other = "cache_image_features" if data_args.cache_image_features else "random_crop` or `flip_probability"
        raise ValueError(f"`preload_images` has no effect with `{other}`: leave one of the two out.")
    if model_args.encoder_config and model_args.encoder_name_or_path:
        raise ValueError(
            "`encoder_config` has no effect with `encoder_name_or_path`: leave one of the two out, that of a recipe by "
            "--encoder_config ''."
        )
    if model_args.model_name_or_path:
        architecture = ["encoder_name_or_path", "encoder_config"]
        architecture += [name for name in ("architecture", "word_vectors") if hasattr(model_args, name)]
        architecture += model_args.layer_options()
        remedy = "a model that is trained further keeps its architecture, vocabulary and image size"
        _refuse(model_args, architecture, "with `model_name_or_path`", remedy)
        _refuse(data_args, ["image_size", "min_frequency"], "with `model_name_or_path`", remedy)
    if not data_args.cache_image_features:
        names = ["num_feature_views", "features_cache_dir"]
        _refuse(data_args, names, "without `cache_image_features`", "leave it out, or pass --cache_image_features true")
    if stays_frozen:
        _refuse(args, ["gradient_checkpointing"], "while the CNN stays frozen", "leave it out")
    if not args.push_to_hub:
        names = [option.name for option in fields(args) if option.name.startswith("hub_")]
        _refuse(args, names, "without `push_to_hub`", "leave it out, or pass --push_to_hub true")


def _refuse(arguments: Any, names: Iterable[str], circumstance: str, remedy: str) -> None:
    """Raise a `ValueError` for the first of these options that is not at its default."""
    defaults = {option.name: option.default for option in fields(arguments)}
    for name in names:
        if getattr(arguments, name) != defaults[name]:
            value = getattr(arguments, name)
            raise ValueError(f"`{name}` is {value!r}, which has no effect {circumstance}: {remedy}.")
