"""Options of a training."""

from dataclasses import dataclass, field

from ..data.arguments import DatasetArguments


@dataclass
class CaptionDataArguments(DatasetArguments):
    """Which images and captions are trained on, and what a training sees of them."""

    train_split: str = "train"
    validation_split: str = field(default="validation", metadata={"help": "Made from the training split if absent."})
    max_train_samples: int | None = None
    max_eval_samples: int | None = None
    captions_per_image: int = field(default=5, metadata={"help": "Captions that share one look at their image."})
    max_caption_length: int = field(default=32, metadata={"help": "In tokens, with the end; longer ones are cut."})
    min_frequency: int = field(default=5, metadata={"help": "Rarer words of the training split become <unk>."})
    image_size: int | None = field(
        default=None,
        metadata={
            "help": "Side of the squares that the CNN of a new captioner looks at; by default 64, or as it was trained."
        },
    )
    random_crop: bool = field(default=False, metadata={"help": "Augment with random resized crops."})
    flip_probability: float = field(default=0.0, metadata={"help": "Of a mirror image: captions say left and right."})
    preload_images: bool = field(default=False, metadata={"help": "Keep processed images in memory (small ones)."})
    draft_decoding: bool = field(
        default=False, metadata={"help": "Decode large JPEGs at a part of their size: faster, and nearly the same."}
    )
    cache_image_features: bool = field(
        default=False, metadata={"help": "Compute what a frozen CNN sees once, and train from that while it is frozen."}
    )
    num_feature_views: int = field(default=1, metadata={"help": "Stored looks at each image, all but one augmented."})
    features_cache_dir: str | None = field(default=None, metadata={"help": "By default <output_dir>/image_features."})


@dataclass
class CaptionModelArguments:
    model_name_or_path: str | None = field(default=None, metadata={"help": "A captioner to go on from."})
    encoder_name_or_path: str | None = field(default=None, metadata={"help": "A trained CNN, of the Hub or a folder."})
    encoder_config: str | None = field(
        default=None, metadata={"help": 'JSON of a CNN to train from scratch, such as \'{"model_type": "resnet"}\'.'}
    )
    freeze_encoder: bool | None = field(default=None, metadata={"help": "By default a trained CNN is frozen."})
    vision_feature_layer: int = -1
    rnn_type: str = "lstm"
    hidden_size: int = 512
    embedding_size: int = 512
    num_hidden_layers: int = 1
    image_injection: str = "initial_state"
    attention_type: str = "additive"
    attention_size: int = 256
    attention_regularization: float = 0.0
    dropout: float = 0.6
    embedding_dropout: float = 0.4
    feature_dropout: float = 0.5
    label_smoothing: float = 0.1
    initializer_range: float = 0.05
    tie_word_embeddings: bool = False


@dataclass
class TrainingArguments:
    output_dir: str = "outputs/captioner"
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Remove the checkpoints that are there."})
    num_train_epochs: int = field(default=10, metadata={"help": "Of all stages together."})
    max_train_steps: int | None = field(default=None, metadata={"help": "Instead of num_train_epochs."})
    per_device_train_batch_size: int = field(default=16, metadata={"help": "In images."})
    per_device_eval_batch_size: int = 50
    gradient_accumulation_steps: int = 1
    learning_rate: float = 8e-4
    encoder_learning_rate: float | None = field(
        default=None, metadata={"help": "Of the CNN; by default a tenth of it for a trained CNN."}
    )
    encoder_layer_decay: float = field(default=1.0, metadata={"help": "Of it, with each layer down from the last."})
    lr_scheduler_type: str = field(
        default="cosine", metadata={"help": "Once before self-critical training, once in it."}
    )
    warmup_ratio: float = 0.05
    weight_decay: float = 0.1
    max_grad_norm: float = field(default=1.0, metadata={"help": "0 for no limit."})
    max_grad_value: float | None = field(default=None, metadata={"help": "Largest single value of a gradient."})
    ema_decay: float = field(
        default=0.998, metadata={"help": "Evaluate and keep a moving average of the weights; 0 for none."}
    )
    mixed_precision: str = field(default="no", metadata={"help": "no, bf16 or fp16."})
    gradient_checkpointing: bool = field(default=False, metadata={"help": "Of the CNN: less memory, more time."})
    torch_compile: bool = field(default=False, metadata={"help": "Compile the CNN: slow at first, then faster."})
    seed: int = 42
    dataloader_num_workers: int = 0
    eval_epochs: float = field(default=1.0, metadata={"help": "Evaluate and save after so many epochs."})
    num_beams: int = field(default=1, metadata={"help": "Of the sentences that checkpoints are judged by."})
    max_length: int = field(default=24, metadata={"help": "Longest sentence to write, in tokens."})
    logging_steps: int = 10
    save_steps: int | None = field(default=None, metadata={"help": "Save after so many steps too, without evaluation."})
    save_total_limit: int | None = 2
    resume_from_checkpoint: str | None = field(default=None, metadata={"help": "A checkpoint's folder, or 'latest'."})
    report_to: str = field(default="none", metadata={"help": "none, tensorboard, wandb, trackio, ... or all."})
    push_to_hub: bool = False
    hub_model_id: str | None = field(default=None, metadata={"help": "user/name; by default the output folder's name."})
    hub_private_repo: bool | None = None
    hub_revision: str | None = field(default=None, metadata={"help": "Branch to push to."})


@dataclass
class StageArguments:
    unfreeze_encoder_after_epochs: float | None = field(
        default=None, metadata={"help": "Finetune the CNN from then on."}
    )
    unfreeze_encoder_after_steps: int | None = None
    unfreeze_encoder_from_layer: int = field(
        default=0, metadata={"help": "Layers of the CNN below this one stay frozen; 0 is the stem, -1 the last."}
    )
    scheduled_sampling_max: float = field(
        default=0.0, metadata={"help": "Largest share of input words that are the model's own; never in evaluation."}
    )
    scheduled_sampling_start: float = field(default=0.0, metadata={"help": "The epoch up to which it is 0."})
    scheduled_sampling_increase: float = field(default=0.01, metadata={"help": "What is added to it in an epoch."})
    self_critical_after_epochs: float | None = field(
        default=None, metadata={"help": "Learn from the scores of its own sentences from then on."}
    )
    self_critical_after_steps: int | None = None
    self_critical_learning_rate: float = field(default=5e-5, metadata={"help": "The CNN's changes in proportion."})
    self_critical_num_samples: int = field(default=5, metadata={"help": "Sentences drawn for each image."})
    self_critical_baseline: str = field(default="leave_one_out", metadata={"help": "leave_one_out or greedy."})
    self_critical_cider_weight: float = 1.0
    self_critical_bleu_weight: float = 0.0
    self_critical_cross_entropy_weight: float = field(default=0.0, metadata={"help": "Of the written captions beside."})
