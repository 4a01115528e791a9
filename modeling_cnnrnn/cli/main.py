"""The command `cnnrnn`: each verb is a file of this folder, imported when it is called."""

from importlib import import_module

import typer

from .memory import keep_heap


VERBS = {
    "caption": "Write sentences about images, folders, URLs, or a whole dataset.",
    "train": "Train a captioner.",
    "evaluate": "Score a captioner on a dataset, and make a page of its sentences.",
    "convert": "Convert a checkpoint of NeuralTalk and other programs to a captioner.",
    "export": "Export a captioner to ONNX, to run without torch, and to a page for browsers.",
    "webcam": "Caption what the camera sees, live, in the browser.",
    "push": "Push a captioner to the Hub.",
    "card": "Write the model card of a captioner.",
    "score": "Score captions in a COCO results file.",
    "index": "Index photographs, to find them by a sentence.",
    "search": "Find photographs of an index by a sentence or by a picture.",
}
DESCRIPTION = "Image captioning with a CNN and an RNN. `cnnrnn VERB --help` lists the options of a verb."

app = typer.Typer(help=DESCRIPTION, add_completion=False, no_args_is_help=True)


def _add(verb: str, sentence: str) -> None:
    """Add a verb, which reads its words itself: with the options' dataclasses, as the examples do."""

    def run(context: typer.Context) -> None:
        import_module(f".{verb}", __package__).main(context.args)

    settings = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}
    app.command(verb, help=sentence, context_settings=settings)(run)


for _verb, _sentence in VERBS.items():
    _add(_verb, _sentence)


def main() -> None:
    """Run the command line of the process."""
    keep_heap()
    app(prog_name="cnnrnn")
