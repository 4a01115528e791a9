"""A user's mistake ends a script with one sentence."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.errors import StrictDataclassError
from huggingface_hub.utils import httpx


@contextmanager
def user_errors() -> Iterator[None]:
    """
    Print what a user can mend as one sentence and leave with exit status 1; with `CNNRNN_DEBUG=1` show where it came from.
    """
    try:
        yield
    except (ValueError, OSError, ImportError, StrictDataclassError, httpx.TransportError) as error:
        if os.environ.get("CNNRNN_DEBUG"):
            raise
        sys.exit(f"Error: {error}")
    except KeyboardInterrupt:
        sys.exit("Stopped. Run the same command with --resume_from_checkpoint latest to go on.")
