"""`cnnrnn export`: ONNX graphs of a captioner, and a script that runs them."""

from collections.abc import Sequence

from ..export.arguments import ExportArguments
from .arguments import parse_arguments
from .errors import user_errors


DESCRIPTION = """
Export a captioner to a folder that needs no torch: ONNX graphs, and a script that runs them.

    cnnrnn export user/captioner exported
    python exported/captioner.py photo.jpg

The script needs numpy, pillow and onnxruntime. float32 writes the same words as the model in torch; int8 is the fastest:

    cnnrnn export user/captioner exported --dtype int8 --calibration_images photographs/

A static page for browsers, with the camera, that any web server or a static Space serves:

    cnnrnn export user/captioner exported --web
"""


def main(arguments: Sequence[str]) -> None:
    """Run the command with the words of the command line after `cnnrnn export`."""
    with user_errors():
        (args,) = parse_arguments([ExportArguments], DESCRIPTION, arguments, "cnnrnn export")

        import transformers

        from ..export.folder import export_captioner

        transformers.logging.disable_progress_bar()
        folder = export_captioner(
            args.model_name_or_path,
            args.output_dir,
            args.dtype,
            args.calibration_images,
            web=args.web,
            revision=args.model_revision,
        )
        print(folder)
