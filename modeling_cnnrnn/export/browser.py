"""The page for browsers: its files, the runtime that they need, and a server on this machine."""

import base64
import hashlib
import http.server
import io
import json
import os
import shutil
import tarfile
import urllib.error
import urllib.request
from functools import partial
from pathlib import Path

from huggingface_hub import constants

from ..files import atomic_path, write_text


PAGE = Path(__file__).with_name("web")
RUNTIME_VERSION = "1.30.0"
RUNTIME_SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
RUNTIME_FILES = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
TIMEOUT = 300.0


def write_page(folder: Path) -> None:
    """
    Write the page beside the graphs of an exported captioner.

    Raises:
        OSError: onnxruntime-web is not in the cache and cannot be downloaded.
    """
    runtime = fetch_runtime()
    for path in (*PAGE.iterdir(), *(runtime / name for name in RUNTIME_FILES)):
        shutil.copyfile(path, folder / path.name)
    settings = json.loads((folder / "captioner.json").read_text(encoding="utf-8"))
    settings["bytes"] = sum((folder / name).stat().st_size for name in ("encoder.onnx", "decoder.onnx"))
    write_text(folder / "captioner.json", json.dumps(settings, ensure_ascii=False))


def fetch_runtime() -> Path:
    """
    Return the folder of onnxruntime-web in the cache of the Hub; at the first time, download it from the npm registry.

    Raises:
        OSError: it cannot be downloaded, or is not the version whose checksum is known.
    """
    folder = Path(constants.HF_HOME, "modeling_cnnrnn", f"onnxruntime-web-{RUNTIME_VERSION}")
    if all((folder / name).is_file() for name in RUNTIME_FILES):
        return folder
    registry = os.environ.get("NPM_CONFIG_REGISTRY", "https://registry.npmjs.org").rstrip("/")
    url = f"{registry}/onnxruntime-web/-/onnxruntime-web-{RUNTIME_VERSION}.tgz"
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
            archive = response.read()
    except (OSError, urllib.error.URLError) as error:
        reason = getattr(error, "reason", None) or error
        raise OSError(
            f"onnxruntime-web, which the page needs, cannot be downloaded from {url} ({reason}): try again with a network."
        ) from error
    if base64.b64encode(hashlib.sha512(archive).digest()).decode() != RUNTIME_SHA512:
        raise OSError(f"What {url} returns is not onnxruntime-web {RUNTIME_VERSION}: its checksum differs. Try again.")
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        for name in RUNTIME_FILES:
            content = files.extractfile(f"package/dist/{name}")
            assert content is not None  # by the checksum
            with atomic_path(folder / name) as path:
                path.write_bytes(content.read())
    return folder


class _Handler(http.server.SimpleHTTPRequestHandler):
    """Serves the files of the page, and says nothing."""

    extensions_map = {  # noqa: RUF012
        **http.server.SimpleHTTPRequestHandler.extensions_map,
        ".mjs": "text/javascript",
        ".js": "text/javascript",
        ".wasm": "application/wasm",
    }

    def log_message(self, format, *args):
        pass


def page_server(folder: str | Path, port: int = 0) -> http.server.ThreadingHTTPServer:
    """
    Make a server of a folder with the page, at 127.0.0.1 only; `serve_forever()` runs it.

    Args:
        port: 0 takes a free one.

    Raises:
        ValueError: the port is taken, or no port.
    """
    try:
        return http.server.ThreadingHTTPServer(("127.0.0.1", port), partial(_Handler, directory=str(folder)))
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"`port` {port} cannot be used ({reason}): pass another, or 0 for a free one.") from error
