"""Files and folders are written whole or not at all, with the permissions that the umask gives."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from modeling_cnnrnn import files
from modeling_cnnrnn.files import atomic_path, copy_files, whole_folder, write_json, write_text
from modeling_cnnrnn.metrics import DocumentFrequency


@pytest.fixture(params=[0o022, 0o077], ids=["022", "077"])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def die(*args) -> None:
    os._exit(9)


def killed(work) -> bool:
    """Run `work` in a process of its own; whether that process died at `die`."""
    if not (child := os.fork()):
        try:
            work()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def test_a_file_that_cannot_be_written_leaves_the_one_before(tmp_path):
    path = tmp_path / "notes" / "file.txt"
    write_text(path, "old")
    with pytest.raises(OSError, match="No space"), atomic_path(path) as partial:  # noqa: PT012
        partial.write_text("ne")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert path.read_text() == "old"
    assert names(path.parent) == ["file.txt"]


def test_a_file_that_cannot_take_its_place_leaves_the_one_before(tmp_path, monkeypatch):
    write_text(tmp_path / "file.txt", "old")

    def full_disk(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_text(tmp_path / "file.txt", "new")
    assert (tmp_path / "file.txt").read_text() == "old"
    assert names(tmp_path) == ["file.txt"]


def test_a_process_that_is_killed_while_it_writes_leaves_the_file_before(tmp_path, monkeypatch):
    path = tmp_path / "file.json"
    write_json(path, {"step": 1})
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", die)
        assert killed(lambda: write_json(path, {"step": 2}))
    assert path.read_text() == '{\n  "step": 1\n}\n'
    write_json(path, {"step": 3})
    assert path.read_text() == '{\n  "step": 3\n}\n'
    assert names(tmp_path) == ["file.json"]


def test_a_process_that_is_killed_while_folders_change_places_loses_none(tmp_path, monkeypatch):
    def write(content: str) -> None:
        with whole_folder(tmp_path / "best") as folder:
            (folder / "weights").write_text(content)

    def content() -> str:
        with pytest.raises(OSError, match="full"), whole_folder(tmp_path / "best"):
            raise OSError("full")
        return (tmp_path / "best" / "weights").read_text()

    write("old")
    rename = Path.rename
    for times in range(2):  # before the first and before the second of the two renames
        left = [times]

        def dying(path, target, left=left):
            if not left[0]:
                die()
            left[0] -= 1
            return rename(path, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", dying)
            assert killed(lambda: write("new"))
        assert content() == "old"
    write("new")
    assert content() == "new"
    assert names(tmp_path) == ["best"]


def test_every_file_has_the_permissions_that_the_umask_gives(tmp_path, umask):
    write_text(tmp_path / "file.txt", "text")
    DocumentFrequency.from_references([["a dog"], ["a cat"]]).save(tmp_path / "frequencies.safetensors")
    with whole_folder(tmp_path / "folder") as folder:
        (folder / "inner").mkdir()
        save_file({"weight": np.zeros(3)}, folder / "inner" / "model.safetensors")
        write_text(folder / "inner" / "secret.json", "{}")
        (folder / "inner" / "secret.json").chmod(0o600)
    copy_files(tmp_path / "folder", tmp_path / "copy")
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) == 6
    assert {path.name: oct(mode(path)) for path in written} == {path.name: oct(0o666 & ~umask) for path in written}


@pytest.mark.parametrize("max_shard_size", ["5GB", "8KB"])
def test_a_saved_captioner_has_the_permissions_that_the_umask_gives(tmp_path, umask, tiny_model, max_shard_size):
    tiny_model.save_pretrained(tmp_path / "captioner", max_shard_size=max_shard_size)
    weights = list((tmp_path / "captioner").glob("*.safetensors"))
    assert (len(weights) > 1) == (max_shard_size == "8KB")
    assert {mode(path) for path in (tmp_path / "captioner").iterdir()} == {0o666 & ~umask}


def test_a_file_of_a_killed_process_gives_no_permissions(tmp_path, umask):
    (tmp_path / "file.txt.partial").write_text("half")
    (tmp_path / "file.txt.partial").chmod(0o400)
    write_text(tmp_path / "file.txt", "whole")
    assert mode(tmp_path / "file.txt") == 0o666 & ~umask


def test_a_command_line_does_not_wait_for_torch():
    code = f"import runpy, sys; runpy.run_path({files.__file__!r}); sys.exit(bool({{'torch', 'accelerate'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_folder_that_cannot_be_written_leaves_the_one_before(tmp_path):
    target = tmp_path / "checkpoint-1"
    with whole_folder(target) as folder:
        (folder / "weights").write_text("old")
    full_disk = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OSError, match="No space"), whole_folder(target) as folder:  # noqa: PT012
        (folder / "weights").write_text("new")
        raise full_disk
    assert (target / "weights").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]


def test_a_folder_that_was_being_replaced_when_the_process_was_killed_comes_back(tmp_path):
    target = tmp_path / "best"
    (tmp_path / "best.previous").mkdir()
    (tmp_path / "best.previous" / "weights").write_text("old")
    with pytest.raises(OSError, match="full"), whole_folder(target):
        raise OSError("full")
    assert (target / "weights").read_text() == "old"


def test_files_are_copied_beside_those_that_are_there(tmp_path):
    for folder, name in (("from", "a/b"), ("from", "c"), ("to", "c"), ("to", "d")):
        path = tmp_path / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(folder)
    copy_files(tmp_path / "from", tmp_path / "to")
    files = {str(p.relative_to(tmp_path / "to")): p.read_text() for p in (tmp_path / "to").rglob("*") if p.is_file()}
    assert files == {"a/b": "from", "c": "from", "d": "to"}
