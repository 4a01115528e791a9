"""The repositories of the local Hub on disk: contents by their SHA-256, branches, tags and commits in a JSON file each."""

import datetime
import hashlib
import json
import os
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple


class HubError(Exception):
    """An answer that is an error; `code` is what the client tells errors apart by (`X-Error-Code`)."""

    def __init__(
        self, status: int, message: str, code: str = "", commit: str = "", headers: Mapping[str, str] | None = None
    ):
        super().__init__(message)
        self.status = status
        self.headers = {"X-Error-Message": message, **(headers or {})}
        if code:
            self.headers["X-Error-Code"] = code
        if commit:  # with it the client remembers that the file is absent
            self.headers["X-Repo-Commit"] = commit


class Addition(NamedTuple):
    """A file of a commit: its content, or the SHA-256 of an LFS file that was uploaded before."""

    path: str
    content: bytes | None = None
    lfs_sha256: str | None = None


class Store:
    """Repositories on disk. `kind` is `"model"`, `"dataset"` or `"space"`."""

    def __init__(self, root: str | os.PathLike):
        self.root = Path(root)
        (self.root / "blobs").mkdir(parents=True, exist_ok=True)
        self.lock = threading.RLock()

    def create(self, kind: str, name: str, private: bool = False, sdk: str | None = None) -> None:
        with self.lock:
            if self._path(kind, name).exists():
                raise HubError(409, "You already created this repo")
            self.save(kind, name, {"private": private, "sdk": sdk, "branches": {}, "tags": {}, "commits": {}})
            attributes = Addition(".gitattributes", b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n")
            self.commit(kind, name, "main", "initial commit", [attributes])

    def delete(self, kind: str, name: str) -> None:
        self.load(kind, name)
        self._path(kind, name).unlink()

    def load(self, kind: str, name: str) -> dict[str, Any]:
        try:
            return json.loads(self._path(kind, name).read_text())
        except FileNotFoundError:
            raise HubError(404, "Repository not found", "RepoNotFound") from None

    def save(self, kind: str, name: str, repository: Mapping[str, Any]) -> None:
        path = self._path(kind, name)
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(repository))

    def names(self, kind: str) -> list[str]:
        return sorted(path.stem.replace("--", "/") for path in (self.root / f"{kind}s").glob("*.json"))

    def blob(self, sha256: str) -> Path:
        return self.root / "blobs" / sha256

    def add_blob(self, content: bytes) -> str:
        sha256 = hashlib.sha256(content).hexdigest()
        self.blob(sha256).write_bytes(content)
        return sha256

    def files(self, kind: str, name: str, revision: str) -> tuple[str, dict[str, dict]]:
        """The commit that a revision stands for, and its files by path."""
        repository = self.load(kind, name)
        commit = self.resolve(repository, revision)
        return commit, repository["commits"][commit]["files"]

    def resolve(self, repository: Mapping[str, Any], revision: str) -> str:
        """The commit of a branch, a tag, a commit or the beginning of one."""
        if commit := repository["branches"].get(revision) or repository["tags"].get(revision):
            return commit
        for commit in repository["commits"]:
            if len(revision) >= 7 and commit.startswith(revision):
                return commit
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def commit(
        self,
        kind: str,
        name: str,
        branch: str,
        message: str,
        added: Iterable[Addition] = (),
        deleted: Iterable[str] = (),
        copied: Iterable[tuple[str, str, str]] = (),
        parent: str | None = None,
    ) -> str:
        """
        Args:
            deleted: files and folders.
            copied: (path, new path, revision of the path).
            parent: the commit that the branch must still be at.
        """
        with self.lock:
            repository = self.load(kind, name)
            head = repository["branches"].get(branch)
            if parent and head and not head.startswith(parent):
                raise HubError(412, "A commit has happened since. Please refresh and try again.")
            files = dict(repository["commits"][head]["files"]) if head else {}
            for path in deleted:
                gone = [file for file in files if file == path or file.startswith(path.rstrip("/") + "/")]
                if not gone:
                    raise HubError(404, f"{path} does not exist", "EntryNotFound")
                for file in gone:
                    del files[file]
            for source, target, revision in copied:
                files[target] = repository["commits"][self.resolve(repository, revision)]["files"][source]
            for addition in added:
                files[addition.path] = self._entry(addition)
            date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
            content = json.dumps([head, message, files, date, len(repository["commits"])])
            commit = hashlib.sha1(content.encode()).hexdigest()
            repository["commits"][commit] = {"files": files, "message": message, "date": date, "parent": head}
            repository["branches"][branch] = commit
            self.save(kind, name, repository)
            return commit

    def _entry(self, addition: Addition) -> dict[str, Any]:
        if addition.lfs_sha256 is None:
            assert addition.content is not None
            sha256, in_git = self.add_blob(addition.content), addition.content
            size = len(addition.content)
        else:
            sha256 = addition.lfs_sha256
            if not self.blob(sha256).exists():
                raise HubError(422, f"LFS object {sha256} was never uploaded")
            size = self.blob(sha256).stat().st_size
            in_git = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
        oid = hashlib.sha1(b"blob %d\0" % len(in_git) + in_git).hexdigest()
        return {"sha256": sha256, "size": size, "lfs": addition.lfs_sha256 is not None, "oid": oid}

    def _path(self, kind: str, name: str) -> Path:
        return self.root / f"{kind}s" / (name.replace("/", "--") + ".json")
