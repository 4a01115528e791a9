"""`cnnrnn push`: push a captioner to the Hub."""

from collections.abc import Sequence
from dataclasses import asdict

from ..hub.arguments import CardArguments, PushArguments
from .arguments import parse_arguments
from .errors import user_errors


DESCRIPTION = """
Push a captioner to the Hub: weights, processor, code, results, and a card with pictures.

    hf auth login
    cnnrnn push --model_name_or_path outputs/shapes --repo_id user/shapes-captioner --license apache-2.0

All files arrive in one commit or not at all. If the connection breaks, run the command again.
"""


def main(arguments: Sequence[str]) -> None:
    """Run the command with the words of the command line after `cnnrnn push`."""
    with user_errors():
        args, card_args = parse_arguments([PushArguments, CardArguments], DESCRIPTION, arguments, "cnnrnn push")

        import transformers

        from ..hub.push import push_captioner

        transformers.logging.disable_progress_bar()  # weights are read and written in no time
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
        print(commit.repo_url)
