"""Options of training an alignment of images and sentences. Light to import."""

from dataclasses import dataclass, field

from .arguments import CaptionDataArguments, EncoderArguments, TrainingArguments, check_shared_options


@dataclass
class AlignmentDataArguments(CaptionDataArguments):
    """Choose the images and captions to train on."""

    captions_per_image: int = field(
        default=1, metadata={"help": "Captions of an image in one step; the others come in later epochs."}
    )


@dataclass
class AlignmentModelArguments(EncoderArguments):
    """Choose an alignment to train further, or the layers of a new one."""

    region_grid_size: int | None = field(
        default=None, metadata={"help": "Height and width of the grid that the cells are averaged to; all by default."}
    )
    reduced_feature_size: int | None = field(
        default=None, metadata={"help": "Principal components that the channels are reduced to; all by default."}
    )
    add_whole_image: bool = field(default=True, metadata={"help": "Add the whole image as one more region."})
    rnn_type: str = field(
        default="gru", metadata={"help": "Context of a word: gru, lstm, rnn_relu (the paper's), window or none."}
    )
    hidden_size: int = field(default=256, metadata={"help": "Size of the recurrent state in each direction."})
    embedding_size: int = field(default=256, metadata={"help": "Size of the space of words and regions."})
    word_embedding_size: int = field(default=300, metadata={"help": "Size of the word vectors that the RNN reads."})
    add_word_skip: bool = field(default=False, metadata={"help": "Add the word itself to what its context says."})
    normalize_embeddings: bool = field(
        default=True, metadata={"help": "Compare words and regions by cosines, and not by products."}
    )
    score_type: str = field(default="max", metadata={"help": "Score of a word and an image: max, attention or pooled."})
    word_reduction: str = field(default="mean", metadata={"help": "Score of a sentence: mean or sum over its words."})
    add_pooled_score: bool = field(
        default=True, metadata={"help": "Add the score of the whole image and the whole sentence."}
    )
    contrastive_loss: str = field(
        default="info_nce", metadata={"help": "Loss: info_nce, sum_hinge (the paper's) or max_hinge."}
    )
    margin: float = field(default=0.2, metadata={"help": "Margin of sum_hinge and max_hinge."})
    feature_dropout: float = field(default=0.2, metadata={"help": "Dropout of channels of the image features."})
    word_dropout: float = field(default=0.2, metadata={"help": "Dropout of coordinates of the word vectors."})
    dropout: float = field(default=0.2, metadata={"help": "Dropout before the last layer of the words."})
    initializer_range: float = field(default=0.05, metadata={"help": "Standard deviation of new weights."})

    @property
    def freezes_encoder(self) -> bool:
        """Whether the CNN is not trained."""
        return self.is_pretrained if self.freeze_encoder is None else self.freeze_encoder


@dataclass
class AlignmentTrainingArguments(TrainingArguments):
    """Set how long, how fast and how precisely to train, and what to keep."""

    output_dir: str = field(
        default="outputs/alignment", metadata={"help": "Folder of the trained model, its checkpoints and pictures."}
    )
    num_train_epochs: int = field(
        default=40, metadata={"help": "Number of epochs; each sees `captions_per_image` captions of each image."}
    )
    per_device_train_batch_size: int = field(
        default=128, metadata={"help": "Images in a batch of one process: each is told from all others of the batch."}
    )
    learning_rate: float = field(default=2e-3, metadata={"help": "Highest learning rate of AdamW."})
    weight_decay: float = field(default=0.01, metadata={"help": "Weight decay of matrices; vectors do not decay."})
    ema_decay: float = field(
        default=0.995,
        metadata={"help": "Decay of the moving average of the weights, which is evaluated and kept (0: no average)."},
    )
    eval_epochs: float = field(default=5.0, metadata={"help": "Epochs between evaluations; each saves a checkpoint."})


def check_alignment_options(
    data_args: AlignmentDataArguments, model_args: AlignmentModelArguments, args: AlignmentTrainingArguments
) -> None:
    """
    Refuse options that contradict each other, and options that have no effect beside the others.

    Raises:
        ValueError: names the options and says what to do.
    """
    if args.per_device_train_batch_size < 2:
        raise ValueError(
            f"`per_device_train_batch_size` is {args.per_device_train_batch_size}: pass 2 or more, so that there are other "
            "images that an image is ranked above."
        )
    if model_args.reduced_feature_size and not data_args.cache_image_features and not model_args.model_name_or_path:
        raise ValueError(
            "`reduced_feature_size` needs stored features to find the components of: pass --cache_image_features true, or "
            "leave it out."
        )
    if data_args.region_features is not None:
        raise ValueError("`region_features` are for captioners: leave it out, an alignment finds its regions itself.")
    is_frozen = model_args.freezes_encoder
    check_shared_options(data_args, model_args, args, is_frozen, is_frozen)
