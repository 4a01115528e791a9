"""Options that say which dataset is read, and how: the same for training, evaluation and captioning."""

from dataclasses import dataclass, field


@dataclass
class DatasetArguments:
    """The dataset, in the arguments of [`~modeling_cnnrnn.data.loading.load_caption_dataset`]."""

    dataset_name: str = field(
        default="shapes",
        metadata={"help": "'shapes', a dataset of the Hub, a folder, or a COCO or Karpathy JSON file."},
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of a dataset of the Hub."})
    dataset_revision: str | None = field(default=None, metadata={"help": "Commit, tag or branch of the dataset."})
    data_dir: str | None = field(default=None, metadata={"help": "Folder of the dataset to read."})
    image_dir: str | None = field(
        default=None, metadata={"help": "Folder of the images, where the dataset only names them."}
    )
    image_column: str | None = field(
        default=None, metadata={"help": "Column of the images. Inferred by default, like the three columns below."}
    )
    caption_column: str | None = field(
        default=None,
        metadata={"help": "Column of the captions: a name, several with commas, or a pattern (caption_*)."},
    )
    image_id_column: str | None = field(default=None, metadata={"help": "Column that tells one image from another."})
    split_column: str | None = field(default=None, metadata={"help": "Column that names the split of each row."})
