"""
Push a captioner to the Hub: weights, processor, code, results, and a card with pictures.

    hf auth login
    python examples/push_to_hub.py --model_name_or_path outputs/shapes --repo_id user/shapes-captioner

Everybody then uses it without installing anything but transformers:

    pipeline("image-to-text", model="user/shapes-captioner", trust_remote_code=True)("picture.png")

All files arrive in one commit or not at all. If the connection breaks, run the command again.
"""

from dataclasses import asdict

import transformers

from modeling_cnnrnn.cli.arguments import parse_arguments
from modeling_cnnrnn.cli.errors import user_errors
from modeling_cnnrnn.hub.arguments import CardArguments, PushArguments
from modeling_cnnrnn.hub.push import push_captioner


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
