"""This process, or a fork of it, as a client of a local Hub."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import pytest
import transformers
from huggingface_hub import constants
from support import local_hub
from support.local_hub import LocalHub
from support.paths import ROOT


TOKEN = "hf_" + "abcdefghij" * 3  # as long as a real one
local_hub.TOKENS[TOKEN] = "write"


def short_card(folder, repo_id=None, output_dir=None, **options) -> Path:
    """In place of the card that runs what it shows."""
    path = Path(output_dir) / "README.md"
    path.write_text("---\nlibrary_name: transformers\npipeline_tag: image-to-text\n---\n")
    return path


@contextmanager
def client_of(hub: LocalHub, folder: Path, token: str = "hf_local") -> Iterator[pytest.MonkeyPatch]:
    """This process as a client of the hub, with caches of its own; `HF_ENDPOINT` is only read when a process starts."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "ENDPOINT": hub.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_CACHE": str(folder / "hub"),
        }.items():
            patch.setattr(constants, name, value)
        patch.setattr(transformers.utils.hub, "_hf_api", None)  # it knows the hub that it was made for
        # the code of repositories is a package, which has one place in a process
        for name in remote_modules():
            patch.delitem(sys.modules, name)
        paths = [path for path in sys.path if not (Path(path) / "transformers_modules").exists()]
        patch.setattr(sys, "path", paths)
        patch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(folder / "modules"))
        patch.setenv("HF_TOKEN", token)
        patch.syspath_prepend(ROOT)
        yield patch
        for name in remote_modules():  # whose place is gone with the patches
            del sys.modules[name]


def remote_modules() -> list[str]:
    """The code of repositories that this process has imported."""
    return [name for name in sys.modules if name.startswith("transformers_modules")]


def files_of(hub: LocalHub, name: str, revision: str = "main") -> dict[str, bytes]:
    _, files = hub.store.files("model", name, revision)
    return {path: hub.store.blob(file["sha256"]).read_bytes() for path, file in files.items()}


def history(hub: LocalHub, name: str) -> list[str]:
    """Messages of the commits, newest first."""
    repository = hub.store.load("model", name)
    commit, messages = repository["branches"]["main"], []
    while commit:
        messages.append(repository["commits"][commit]["message"])
        commit = repository["commits"][commit]["parent"]
    return messages


def in_a_client(hub: LocalHub, home: Path, job: Callable[..., Any], *arguments) -> Any:
    """What `job` returns, or the error that ends it, in a fork of this process that is a client of the hub."""
    result = home / "result.json"
    home.mkdir(parents=True, exist_ok=True)
    if not (child := os.fork()):
        status = 1
        try:
            with client_of(hub, home) as patch:
                for name, value in {
                    "HF_ENDPOINT": hub.url,
                    "HUB_DATASETS_URL": hub.url + "/datasets/{repo_id}/resolve/{revision}/{path}",
                    "HF_HUB_OFFLINE": False,
                    "HF_DATASETS_CACHE": home / "datasets",
                    "DOWNLOADED_DATASETS_PATH": home / "datasets" / "downloads",
                }.items():
                    patch.setattr(datasets.config, name, value)
                result.write_text(json.dumps(job(*arguments)))
                status = 0
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, "see the error above"
    return json.loads(result.read_text())
