"""`cnnrnn webcam`: live captions of what a camera sees."""

import tempfile
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from ..export.arguments import WebcamArguments
from .arguments import parse_arguments
from .errors import user_errors


DESCRIPTION = """
Caption what the camera sees, live, on a page of this machine that no other can open.

    cnnrnn webcam user/captioner
    cnnrnn webcam exported           # the folder of `cnnrnn export ... --web`, which is there at once
"""


def main(arguments: Sequence[str]) -> None:
    """Run the command with the words of the command line after `cnnrnn webcam`."""
    with user_errors(), tempfile.TemporaryDirectory() as temporary:
        (args,) = parse_arguments([WebcamArguments], DESCRIPTION, arguments, "cnnrnn webcam")
        folder = Path(args.model_name_or_path)
        if not (folder / "index.html").is_file() or not (folder / "captioner.json").is_file():
            import transformers

            from ..export.folder import export_captioner

            transformers.logging.disable_progress_bar()
            folder = Path(temporary, "page")
            export_captioner(args.model_name_or_path, folder, web=True, revision=args.model_revision)

        from ..export.browser import page_server

        with page_server(folder, args.port) as server:
            address = f"http://127.0.0.1:{server.server_port}/?camera"
            print(f"{address} captions what the camera sees. Ctrl-C stops it.", flush=True)
            if args.open_browser:
                webbrowser.open(address)
            server.serve_forever()
