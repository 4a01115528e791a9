"""End a command or a script with one sentence where a user has made a mistake."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


RESUME_TRAINING = "Stopped. Run the same command with --resume_from_checkpoint latest to resume."
RUN_AGAIN = "Stopped. Run the same command again to resume."
# libraries that some verbs need, and the extra that brings each
EXTRAS = {
    **dict.fromkeys(("accelerate", "datasets", "jinja2", "matplotlib", "pyarrow"), "train"),
    **dict.fromkeys(("onnx", "onnxruntime", "onnxscript"), "export"),
    "usearch": "search",
}


@contextmanager
def user_errors(on_interrupt: str = "Stopped.") -> Iterator[None]:
    """
    Print an error that the user can correct as one sentence and exit with status 1; `CNNRNN_DEBUG=1` shows its traceback.

    Args:
        on_interrupt: sentence for Ctrl-C: how this command is resumed.
    """
    try:
        yield
    except BrokenPipeError:  # `cnnrnn caption photographs | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if os.environ.get("CNNRNN_DEBUG") or not _is_users(error):
            raise
        sys.exit(f"Error: {error}{_remedy(error)}")
    except KeyboardInterrupt:
        sys.exit(on_interrupt)


def _remedy(error: Exception) -> str:
    """Name the extra that brings a missing library."""
    extra = EXTRAS.get(error.name or "") if isinstance(error, ModuleNotFoundError) else None
    return f": pip install 'modeling-cnnrnn[{extra}]' brings it." if extra else ""


def _is_users(error: Exception) -> bool:
    from huggingface_hub.errors import StrictDataclassError
    from huggingface_hub.utils import httpx

    return isinstance(error, (ValueError, OSError, ImportError, StrictDataclassError, httpx.TransportError))
