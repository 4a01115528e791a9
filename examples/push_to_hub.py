"""
Push a captioner to the Hub: weights, processor, code, results, and a card with pictures.

    hf auth login
    python examples/push_to_hub.py --model_name_or_path outputs/shapes --repo_id user/shapes-captioner

Everybody then uses it without installing anything but transformers:

    pipeline("image-to-text", model="user/shapes-captioner", trust_remote_code=True)("picture.png")

All files arrive in one commit or not at all. If the connection breaks, run the command again.
"""

from dataclasses import asdict, dataclass, field

import transformers

from modeling_cnnrnn.cli.arguments import parse_arguments
from modeling_cnnrnn.cli.errors import user_errors
from modeling_cnnrnn.hub.push import push_captioner


@dataclass
class PushArguments:
    model_name_or_path: str = field(metadata={"help": "The folder that a training wrote."})
    repo_id: str = field(metadata={"help": "user/name, made if there is none."})
    hub_private_repo: bool | None = field(default=None, metadata={"help": "Whether a repository made here is private."})
    hub_revision: str | None = field(default=None, metadata={"help": "A branch, made if there is none."})
    hub_token: str | None = field(default=None, metadata={"help": "By default that of `hf auth login` or HF_TOKEN."})
    commit_message: str = "Upload captioner"
    max_shard_size: str = field(default="5GB", metadata={"help": "Larger weights come in several files."})


@dataclass
class CardArguments:
    license: str | None = field(default=None, metadata={"help": "Of the weights, such as apache-2.0."})
    language: str | None = field(default=None, metadata={"help": "Of the sentences, such as en."})
    tags: list[str] | None = field(default=None, metadata={"help": "More tags of the model."})
    base_model: str | None = field(default=None, metadata={"help": "The trained CNN, by its name on the Hub."})
    dataset_id: str | None = field(default=None, metadata={"help": "Name on the Hub of the data learned from."})
    dataset_title: str | None = field(default=None, metadata={"help": "What people call the data: Flickr8k."})
    dataset_license: str | None = None
    dataset_description: str | None = field(default=None, metadata={"help": "Where the data come from; a sentence."})


def main():
    args, card_args = parse_arguments([PushArguments, CardArguments], __doc__)
    transformers.logging.disable_progress_bar()  # of weights, which are read and written in no time
    commit = push_captioner(
        args.model_name_or_path,
        args.repo_id,
        private=args.hub_private_repo,
        revision=args.hub_revision,
        token=args.hub_token,
        commit_message=args.commit_message,
        max_shard_size=args.max_shard_size,
        card=asdict(card_args),
    )
    print(f"The captioner is at {commit.repo_url}, its commit {commit.commit_url}")


if __name__ == "__main__":
    with user_errors():
        main()
