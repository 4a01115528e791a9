"""Options that name a dataset and its columns: the same for training, evaluation and captioning."""

from dataclasses import dataclass, field


@dataclass
class DatasetArguments:
    """Name a dataset and its columns, in the arguments of [`~modeling_cnnrnn.data.loading.load_caption_dataset`]."""

    dataset_name: str = field(
        default="shapes",
        metadata={
            "help": "'shapes', a dataset of the Hub, a folder, or a file of captions (JSON, CSV, TSV, Flickr8k's .token, "
            "Parquet, .tar); several with commas."
        },
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of a dataset of the Hub."})
    dataset_revision: str | None = field(default=None, metadata={"help": "Commit, tag or branch of the dataset."})
    data_dir: str | None = field(
        default=None, metadata={"help": "Folder inside the dataset that is read, as in datasets.load_dataset."}
    )
    image_dir: str | None = field(
        default=None,
        metadata={"help": "Folder of the images, for a dataset that only names them. Files outside it are not opened."},
    )
    image_column: str | None = field(
        default=None, metadata={"help": "Column of the images. Inferred by default, like the three columns below."}
    )
    caption_column: str | None = field(
        default=None,
        metadata={"help": "Columns of the captions: a name, several with commas, or a pattern (caption_*)."},
    )
    image_id_column: str | None = field(
        default=None, metadata={"help": "Column that tells one image from another; its rows are grouped by it."}
    )
    split_column: str | None = field(
        default=None, metadata={"help": "Column with the split of each row, for a dataset that keeps all rows in one."}
    )


@dataclass
class LabelledDatasetArguments:
    """Name a dataset of labelled pictures, in the arguments of [`~modeling_cnnrnn.data.labelled_images.load_labelled_dataset`]."""

    dataset_name: str = field(
        default="shapes",
        metadata={
            "help": "A dataset of the Hub, a folder with a folder for each class, Parquet files, or 'shapes', drawn pictures."
        },
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of a dataset of the Hub."})
    dataset_revision: str | None = field(default=None, metadata={"help": "Commit, tag or branch of the dataset."})
    data_dir: str | None = field(
        default=None, metadata={"help": "Folder inside the dataset that is read, as in datasets.load_dataset."}
    )
    image_dir: str | None = field(
        default=None,
        metadata={"help": "Folder of the images, for a dataset that only names them. Files outside it are not opened."},
    )
    image_column: str | None = field(default=None, metadata={"help": "Column of the images. Inferred by default."})
    label_column: str | None = field(default=None, metadata={"help": "Column of the classes. Inferred by default."})
