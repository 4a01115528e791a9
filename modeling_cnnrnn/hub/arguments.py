"""Options of pushing a captioner and of writing its card. Light to import."""

from dataclasses import dataclass, field


@dataclass
class PushArguments:
    """Name the captioner to push and its repository on the Hub."""

    model_name_or_path: str = field(metadata={"help": "Folder that a training wrote."})
    repo_id: str = field(metadata={"help": "Repository on the Hub, user/name; created if it does not exist."})
    hub_private_repo: bool | None = field(
        default=None, metadata={"help": "Whether a repository that is created here is private."}
    )
    hub_revision: str | None = field(
        default=None, metadata={"help": "Branch to push to, created if it does not exist; main by default."}
    )
    hub_token: str | None = field(
        default=None, metadata={"help": "Token of the Hub; that of `hf auth login` or HF_TOKEN by default."}
    )
    commit_message: str = field(default="Upload captioner", metadata={"help": "Message of the commit."})
    max_shard_size: str = field(default="5GB", metadata={"help": "Split larger weights into files of this size."})


@dataclass
class CardFileArguments:
    """Name the captioner that a card describes, and the folder of the card."""

    model_name_or_path: str = field(metadata={"help": "Folder that a training, and an evaluation, have filled."})
    repo_id: str | None = field(default=None, metadata={"help": "Name of the captioner on the Hub, user/name."})
    output_dir: str | None = field(default=None, metadata={"help": "Folder of the card; the captioner's by default."})


@dataclass
class CardArguments:
    """State facts for the card that no file of the training holds."""

    license: str | None = field(default=None, metadata={"help": "Licence of the weights, such as apache-2.0."})
    license_name: str | None = field(
        default=None, metadata={"help": "Name of a licence that the Hub does not know; with --license other."}
    )
    license_link: str | None = field(
        default=None, metadata={"help": "Text of that licence: a file of the repository, or a URL."}
    )
    language: str | None = field(default=None, metadata={"help": "Language of the captions, such as en."})
    tags: list[str] | None = field(default=None, metadata={"help": "Further tags of the model on the Hub."})
    base_model: str | None = field(
        default=None, metadata={"help": "Pretrained CNN, by its name on the Hub; the training's own by default."}
    )
    dataset_id: str | None = field(default=None, metadata={"help": "Name of the training data on the Hub."})
    dataset_title: str | None = field(default=None, metadata={"help": "Usual name of the training data: Flickr8k."})
    dataset_license: str | None = field(default=None, metadata={"help": "Licence of the training data."})
    dataset_description: str | None = field(
        default=None, metadata={"help": "A sentence about the origin of the training data."}
    )
    show_pictures: bool = field(
        default=True,
        metadata={"help": "Whether to show pictures of the evaluation; false where they may not be copied."},
    )
    limits: list[str] | None = field(
        default=None,
        metadata={"help": "Sentences about what the captioner gets wrong, beside those that are measured."},
    )
