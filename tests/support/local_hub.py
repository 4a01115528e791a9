"""
A Hugging Face Hub on 127.0.0.1 for tests: the unmodified `huggingface_hub` client talks to it through `HF_ENDPOINT`.

```python
with LocalHub(tmp_path) as hub:
    hub.create_repository("dataset", "user/name", {"data/train-00000-of-00001.parquet": data})
    subprocess.run(command, env=hub.environment(home=tmp_path / "home"))
```

The client reads `HF_ENDPOINT` when it is imported, hence the new process (or see `hub_client`). `hub_store` keeps the
repositories. Served are: account, creation and deletion, uploads (regular and LFS "basic"; no Xet), commits, branches, tags,
listings, model info, downloads with ranges. Not served: pull requests, discussions, search beyond names. `hub.fail(...)`
lets requests go wrong. From the folder `tests`, `python -m support.local_hub --root FOLDER` serves one by itself.
"""

import argparse
import base64
import dataclasses
import hashlib
import json
import math
import os
import re
import socket
import struct
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

import yaml
from support.hub_store import Addition, HubError, Store


USER = "me"
TOKENS = {"hf_local": "write", "hf_read": "read"}  # and what they are good for
LFS_SUFFIXES = (
    *(".safetensors", ".bin", ".pt", ".pth", ".onnx", ".h5", ".npy"),
    *(".parquet", ".arrow", ".tar", ".zip", ".gz", ".png", ".jpg", ".jpeg"),
)
LFS_SIZE = 10 * 2**20  # larger files are LFS files whatever their name


@dataclasses.dataclass
class Fault:
    """What goes wrong with the next `times` requests whose method and path `pattern` is found in; see `LocalHub.fail`."""

    pattern: str
    times: int
    status: int = 0
    retry_after: int | None = None
    cut: str = ""
    is_damaged: bool = False


class Handler(BaseHTTPRequestHandler):
    """One request. The methods are named for what the client wants; `ROUTES` says where it asks for it."""

    protocol_version = "HTTP/1.1"
    server: "_Server"

    def log_message(self, *args) -> None:
        """Keep tests quiet."""

    def handle_request(self) -> None:
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        self.fault = self.server.next_fault(f"{self.command} {unquote(url.path)}")
        if self.fault.cut == "request":
            self.rfile.read(int(self.headers.get("Content-Length") or 0) // 2)
            self._hang_up()
            return
        self.body = self._read_body()
        if self.fault.is_damaged and self.body:
            self.body = _damaged(self.body)
        try:
            if self.fault.status:
                waiting = {} if self.fault.retry_after is None else {"Retry-After": str(self.fault.retry_after)}
                raise HubError(self.fault.status, "something went wrong", headers=waiting)
            for methods, pattern, answer in ROUTES:
                if self.command in methods and (match := re.fullmatch(pattern, url.path)):
                    arguments = {key: value and unquote(value) for key, value in match.groupdict().items()}
                    self.server.calls[f"{methods[0]} {answer.__name__}"] += 1
                    self._check_access(arguments)
                    answer(self, **arguments)
                    return
            self.server.unknown.append(f"{self.command} {self.path}")
            self.send_json({"error": "Not Found"}, 404)
        except HubError as error:
            self.send_json({"error": str(error)}, error.status, error.headers)
        except (BrokenPipeError, ConnectionResetError):
            pass

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = handle_request

    def _read_body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def send(
        self, content: bytes, status: int = 200, headers: Mapping[str, str] | None = None, kind: str = "text/plain"
    ) -> None:
        self.send_response(status)
        for key, value in {**(headers or {}), "Content-Type": kind, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.fault.is_damaged and not self.body and content:
            content = _damaged(content)
        if self.fault.cut == "answer":
            self.wfile.write(content[: len(content) // 2])
            self._hang_up()
        elif self.command != "HEAD":
            self.wfile.write(content)

    def send_json(self, content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        self.send(json.dumps(content).encode(), status, headers, "application/json")

    def _hang_up(self) -> None:
        self.close_connection = True
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)

    @property
    def role(self) -> str | None:
        """What the token of the request is good for; `None` without a token that is known."""
        return TOKENS.get(self.headers.get("Authorization", "").removeprefix("Bearer "))

    def require_token(self, role: str = "write") -> None:
        if self.role is None:
            raise HubError(401, "Invalid username or password.")
        if role == "write" and self.role != "write":
            raise HubError(403, "You don't have the rights: the token is for reading only.")

    def _check_access(self, arguments: Mapping[str, str | None]) -> None:
        """A private repository is, for who has no token, not there."""
        name, kind = arguments.get("name"), (arguments.get("kind") or "model").rstrip("s")
        if name and self.role is None and name in self.store.names(kind) and self.store.load(kind, name)["private"]:
            raise HubError(401, "Repository not found", "RepoNotFound")

    @property
    def store(self) -> Store:
        return self.server.store

    @property
    def address(self) -> str:
        return f"http://{self.headers['Host']}"

    def page(self, kind: str, name: str) -> str:
        return f"{self.address}/{'' if kind == 'model' else kind + 's/'}{name}"

    # ---- account and repositories ----

    def whoami(self) -> None:
        self.require_token("read")
        token = {"displayName": "test", "role": self.role}
        account = {"type": "user", "id": "0", "name": USER, "fullname": USER, "email": None, "isPro": False, "orgs": []}
        self.send_json({**account, "auth": {"type": "access_token", "accessToken": token}})

    def create_repository(self) -> None:
        self.require_token()
        kind, name, asked = self._named_repository()
        if not name.startswith(f"{USER}/"):
            raise HubError(403, f"You don't have the rights to create a {kind} under this namespace")
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        try:
            self.store.create(kind, name, private, asked.get("sdk"))
        except HubError as error:
            self.send_json({"error": str(error), "url": self.page(kind, name)}, error.status)
        else:
            self.send_json({"url": self.page(kind, name), "name": name, "id": name})

    def delete_repository(self) -> None:
        self.require_token()
        kind, name, _ = self._named_repository()
        self.store.delete(kind, name)
        self.send_json({})

    def _named_repository(self) -> tuple[str, str, dict[str, Any]]:
        asked = json.loads(self.body)
        return asked.get("type") or "model", f"{asked.get('organization') or USER}/{asked['name']}", asked

    def settings(self, kind: str, name: str) -> None:
        self.require_token()
        self.store.load(kind, name)
        self.send_json({})

    def validate_yaml(self) -> None:
        self.send_json({"errors": [], "warnings": []})

    # ---- uploads ----

    def preupload(self, kind: str, name: str, revision: str) -> None:
        """Tell the client which files go through LFS."""
        self.require_token()
        _, files = self.store.files(kind, name, revision)
        answers = []
        for file in json.loads(self.body)["files"]:
            is_binary = b"\0" in base64.b64decode(file.get("sample") or "")
            is_lfs = is_binary or file["path"].endswith(LFS_SUFFIXES) or file["size"] > LFS_SIZE
            known = files.get(file["path"])
            oid = known and known["sha256" if known["lfs"] else "oid"]
            mode = "lfs" if is_lfs else "regular"
            answers.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self.send_json({"files": answers})

    def lfs_batch(self, name: str) -> None:
        self.require_token()
        answers = []
        for wanted in json.loads(self.body)["objects"]:
            answer = {"oid": wanted["oid"], "size": wanted["size"], "authenticated": True}
            if not self.store.blob(wanted["oid"]).exists():
                targets = {"upload": wanted["oid"], "verify": "verify"}
                answer["actions"] = {
                    action: {"href": f"{self.address}/_lfs/{path}", "header": {}} for action, path in targets.items()
                }
            answers.append(answer)
        self.send_json({"transfer": "basic", "objects": answers})

    def lfs_upload(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise HubError(400, "sha256 does not match")
        self.store.add_blob(self.body)
        self.send(b"")

    def lfs_verify(self) -> None:
        asked = json.loads(self.body)
        blob = self.store.blob(asked["oid"])
        self.send_json({}, 200 if blob.exists() and blob.stat().st_size == asked["size"] else 404)

    def commit(self, kind: str, name: str, revision: str) -> None:
        self.require_token()
        if revision.startswith("refs/pr/") or "create_pr" in self.query:
            raise HubError(501, "pull requests are not served")
        if revision not in self.store.load(kind, name)["branches"]:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        header: dict[str, Any] = {}
        added, deleted, copied = [], [], []
        for line in self.body.splitlines():
            operation = json.loads(line)
            key, value = operation["key"], operation["value"]
            if key == "header":
                header = value
            elif key == "file":
                is_base64 = value.get("encoding") == "base64"
                content = base64.b64decode(value["content"]) if is_base64 else value["content"].encode()
                added.append(Addition(value["path"], content))
            elif key == "lfsFile":
                added.append(Addition(value["path"], lfs_sha256=value["oid"]))
            elif key in ("deletedFile", "deletedFolder"):
                deleted.append(value["path"])
            elif key == "copyFile":
                copied.append((value["srcPath"], value["path"], value.get("srcRevision") or revision))
        message, parent = header.get("summary", ""), header.get("parentCommit")
        commit = self.store.commit(kind, name, revision, message, added, deleted, copied, parent)
        url = f"{self.page(kind, name)}/commit/{commit}"
        self.send_json({"success": True, "commitOid": commit, "commitUrl": url, "hookOutput": ""})

    def branch(self, kind: str, name: str, branch: str) -> None:
        start = json.loads(self.body or b"{}").get("startingPoint") or "main"
        self._change_reference(kind, name, "branches", branch, start)

    def tag(self, kind: str, name: str, revision: str) -> None:
        """`revision` is the tag itself where it is deleted."""
        tag = revision if self.command == "DELETE" else json.loads(self.body)["tag"]
        self._change_reference(kind, name, "tags", tag, revision)

    def _change_reference(self, kind: str, name: str, group: str, reference: str, start: str) -> None:
        self.require_token()
        with self.store.lock:
            repository = self.store.load(kind, name)
            if self.command == "DELETE":
                repository[group].pop(reference, None)
            elif reference in repository[group]:
                raise HubError(409, "Reference already exists")
            else:
                repository[group][reference] = self.store.resolve(repository, start)
            self.store.save(kind, name, repository)
        self.send_json({})

    # ---- reading ----

    def info(self, kind: str, name: str, revision: str | None = None) -> None:
        repository = self.store.load(kind, name)
        commit, files = self.store.files(kind, name, revision or "main")
        card = self._card(files)
        date = repository["commits"][commit]["date"]
        answer = {
            **self._summary(name),
            **{"author": name.split("/")[0], "sha": commit, "private": repository["private"], "cardData": card},
            **{"disabled": False, "gated": False, "likes": 0, "lastModified": date, "createdAt": date},
            "tags": [card["library_name"]] if card.get("library_name") else [],
            "siblings": [self._sibling(path, file) for path, file in sorted(files.items())],
        }
        answer["tags"] += card.get("tags") or []
        if card.get("license"):
            answer["tags"].append(f"license:{card['license']}")
        if kind == "space":
            answer["sdk"] = repository["sdk"] or card.get("sdk")
        if kind == "model":
            self._add_model_info(answer, card, files)
        self.send_json(answer)

    def _add_model_info(self, answer: dict[str, Any], card: Mapping[str, Any], files: Mapping[str, dict]) -> None:
        config = json.loads(self._text(files["config.json"])) if "config.json" in files else {}
        answer |= {
            "library_name": card.get("library_name"),
            "pipeline_tag": card.get("pipeline_tag"),
            "config": {key: config[key] for key in ("architectures", "model_type", "auto_map") if key in config},
        }
        tags = [card.get("pipeline_tag"), config.get("model_type"), "custom_code" if config.get("auto_map") else None]
        if "model.safetensors" in files:
            parameters = self._count_parameters(files["model.safetensors"])
            answer["safetensors"] = {"parameters": parameters, "total": sum(parameters.values())}
            tags.append("safetensors")
        answer["tags"] += [tag for tag in tags if tag and tag not in answer["tags"]]

    def _count_parameters(self, file: Mapping[str, Any]) -> dict[str, int]:
        with open(self.store.blob(file["sha256"]), "rb") as weights:
            (size,) = struct.unpack("<Q", weights.read(8))
            header = json.loads(weights.read(size))
        parameters: Counter[str] = Counter()
        for name, tensor in header.items():
            if name != "__metadata__":
                parameters[tensor["dtype"]] += math.prod(tensor["shape"])
        return dict(parameters)

    def _card(self, files: Mapping[str, dict]) -> dict[str, Any]:
        """The YAML block of the README."""
        if "README.md" not in files:
            return {}
        block = re.match(r"---\s*\n(.*?)\n---", self._text(files["README.md"]), re.DOTALL)
        return (yaml.safe_load(block[1]) if block else None) or {}

    def _text(self, file: Mapping[str, Any]) -> str:
        return self.store.blob(file["sha256"]).read_text(encoding="utf-8")

    def _sibling(self, path: str, file: Mapping[str, Any]) -> dict[str, Any]:
        sibling = {"rfilename": path}
        if "blobs" in self.query:
            sibling |= {"size": file["size"], "blobId": file["oid"]}
            if file["lfs"]:
                sibling["lfs"] = {"sha256": file["sha256"], "size": file["size"], "pointerSize": 130}
        return sibling

    def _summary(self, name: str) -> dict[str, Any]:
        number = hashlib.md5(name.encode()).hexdigest()[:24]
        return {"_id": number, "id": name, "modelId": name, "private": False, "downloads": 0, "likes": 0, "tags": []}

    def list_repositories(self, kind: str) -> None:
        wanted, authors = self.query.get("search", []), self.query.get("author", [])
        names = [
            name
            for name in self.store.names(kind)
            if all(text.lower() in name.lower() for text in wanted)
            and all(name.startswith(f"{author}/") for author in authors)
        ]
        self.send_json([self._summary(name) for name in names])

    def tree(self, kind: str, name: str, revision: str, path: str | None = None) -> None:
        commit, files = self.store.files(kind, name, revision)
        folder = f"{path.strip('/')}/" if path else ""
        is_recursive = self.query.get("recursive", ["false"])[0].lower() in ("true", "1")
        entries: dict[str, dict] = {}
        for file in sorted(files):
            if not file.startswith(folder):
                continue
            parts = file.removeprefix(folder).split("/")
            for depth in range(1, len(parts) if is_recursive else min(len(parts), 2)):
                below = folder + "/".join(parts[:depth])
                entries.setdefault(below, _folder_entry(below))
            if is_recursive or len(parts) == 1:
                entries[file] = _file_entry(file, files[file])
        if folder and not entries:
            raise HubError(404, f"{path} does not exist on {revision}", "EntryNotFound")
        self.send_json(list(entries.values()), headers={"X-Repo-Commit": commit})

    def paths_info(self, kind: str, name: str, revision: str) -> None:
        _, files = self.store.files(kind, name, revision)
        is_json = self.headers.get("Content-Type", "").startswith("application/json")
        paths = json.loads(self.body)["paths"] if is_json else parse_qs(self.body.decode()).get("paths", [])
        entries = []
        for path in [paths] if isinstance(paths, str) else paths:
            path = path.strip("/")
            if path in files:
                entries.append(_file_entry(path, files[path]))
            elif not path or any(file.startswith(f"{path}/") for file in files):
                entries.append(_folder_entry(path))
        self.send_json(entries)

    def references(self, kind: str, name: str) -> None:
        repository = self.store.load(kind, name)
        answer: dict[str, list] = {"converts": [], "pullRequests": []}
        for group, prefix in (("branches", "refs/heads/"), ("tags", "refs/tags/")):
            answer[group] = [
                {"name": reference, "ref": prefix + reference, "targetCommit": commit}
                for reference, commit in repository[group].items()
            ]
        self.send_json(answer)

    def commits(self, kind: str, name: str, revision: str) -> None:
        self.send_json(list(self._history(self.store.load(kind, name), revision)))

    def _history(self, repository: Mapping[str, Any], revision: str) -> Iterator[dict[str, Any]]:
        sha: str | None = self.store.resolve(repository, revision)
        while sha:
            commit = repository["commits"][sha]
            title, date = commit["message"], commit["date"]
            yield {"id": sha, "title": title, "message": "", "date": date, "authors": [{"user": USER}]}
            sha = commit["parent"]

    def download(self, name: str, revision: str, path: str, kind: str | None) -> None:
        commit, files = self.store.files((kind or "models")[:-1], name, revision)
        if path not in files:
            raise HubError(404, "Entry not found", "EntryNotFound", commit)
        file = files[path]
        etag = f'"{file["sha256"] if file["lfs"] else file["oid"]}"'
        headers = {"X-Repo-Commit": commit, "ETag": etag, "Accept-Ranges": "bytes"}
        if file["lfs"]:
            headers |= {"X-Linked-Etag": etag, "X-Linked-Size": str(file["size"])}
        content, status = self.store.blob(file["sha256"]).read_bytes(), 200
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if wanted and self.command == "GET":
            size = len(content)
            start = int(wanted[1]) if wanted[1] else max(0, size - int(wanted[2]))
            stop = min(int(wanted[2]) + 1, size) if wanted[1] and wanted[2] else size
            content, status = content[start:stop], 206 if start < size else 416
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}" if start < size else f"bytes */{size}"
        self.send(content, status, headers, "application/octet-stream")


def _damaged(content: bytes) -> bytes:
    """The same number of bytes, of which the last one is another."""
    return content[:-1] + bytes([content[-1] ^ 1])


def _file_entry(path: str, file: Mapping[str, Any]) -> dict[str, Any]:
    entry = {"type": "file", "oid": file["oid"], "size": file["size"], "path": path}
    if file["lfs"]:
        entry["lfs"] = {"oid": file["sha256"], "size": file["size"], "pointerSize": 130}
    return entry


def _folder_entry(path: str) -> dict[str, Any]:
    return {"type": "directory", "oid": hashlib.sha1(path.encode()).hexdigest(), "size": 0, "path": path}


NAME = r"(?P<name>[^/]+/[^/]+)"
API = rf"/api/(?P<kind>model|dataset|space)s/{NAME}"
REVISION = r"(?P<revision>[^/]+)"  # slashes in revisions come quoted
READ, POST, DELETE = ("GET", "HEAD"), ("POST",), ("DELETE",)
ROUTES: list[tuple[tuple[str, ...], str, Callable]] = [
    (READ, "/api/whoami-v2", Handler.whoami),
    (POST, "/api/repos/create", Handler.create_repository),
    (DELETE, "/api/repos/delete", Handler.delete_repository),
    (POST, "/api/validate-yaml", Handler.validate_yaml),
    (("PUT",), f"{API}/settings", Handler.settings),
    (POST, f"{API}/preupload/{REVISION}", Handler.preupload),
    (POST, rf"/(?:datasets/|spaces/)?{NAME}\.git/info/lfs/objects/batch", Handler.lfs_batch),
    (("PUT",), "/_lfs/(?P<oid>[0-9a-f]{64})", Handler.lfs_upload),
    (POST, "/_lfs/verify", Handler.lfs_verify),
    (POST, f"{API}/commit/{REVISION}", Handler.commit),
    (("POST", "DELETE"), f"{API}/branch/(?P<branch>[^/]+)", Handler.branch),
    (("POST", "DELETE"), f"{API}/tag/{REVISION}", Handler.tag),
    (READ, f"{API}/revision/{REVISION}", Handler.info),
    (READ, f"{API}/tree/{REVISION}(?:/(?P<path>.*))?", Handler.tree),
    (POST, f"{API}/paths-info/{REVISION}", Handler.paths_info),
    (READ, f"{API}/refs", Handler.references),
    (READ, f"{API}/commits/{REVISION}", Handler.commits),
    (READ, API, Handler.info),
    (READ, "/api/(?P<kind>model|dataset|space)s", Handler.list_repositories),
    (READ, rf"/(?:(?P<kind>datasets|spaces)/)?{NAME}/(?:resolve|raw)/{REVISION}/(?P<path>.+)", Handler.download),
]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, store: Store, port: int):
        super().__init__(("127.0.0.1", port), Handler)
        self.store = store
        self.calls: Counter[str] = Counter()
        self.unknown: list[str] = []
        self.faults: list[Fault] = []
        self.lock = threading.Lock()

    def next_fault(self, request: str) -> Fault:
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and re.search(fault.pattern, request):
                    fault.times -= 1
                    return fault
        return Fault("", 0)

    def handle_error(self, request, client_address) -> None:
        """A client that has gone is no error of the server."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class LocalHub:
    """
    The server, running within a `with` block.

    Attributes:
        url: what `HF_ENDPOINT` must be.
        calls: how often each kind of request came.
        unknown: requests that no route answers.
    """

    def __init__(self, root: str | os.PathLike, port: int = 0):
        self.store = Store(root)
        self.server = _Server(self.store, port)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.calls, self.unknown = self.server.calls, self.server.unknown

    def __enter__(self) -> Self:
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *error) -> None:
        self.server.shutdown()
        self.server.server_close()

    def create_repository(self, kind: str, name: str, files: Mapping[str, bytes], branch: str = "main") -> str:
        """Put files into a repository without a client, on `branch` alone; returns the commit."""
        if name not in self.store.names(kind):
            self.store.create(kind, name)
        additions = [
            Addition(path, lfs_sha256=self.store.add_blob(content))
            if path.endswith(LFS_SUFFIXES)
            else Addition(path, content)
            for path, content in files.items()
        ]
        return self.store.commit(kind, name, branch, "files", additions)

    def fail(
        self,
        pattern: str,
        times: int = 1,
        *,
        status: int = 0,
        retry_after: int | None = None,
        cut: str = "",
        is_damaged: bool = False,
    ) -> Fault:
        """
        Let the next requests go wrong whose method and path, as in `"GET /me/cat/resolve/main/config.json"`, match.

        Args:
            pattern: regular expression.
            times: so many requests; `fault.times` of what is returned says how many of them have not come.
            status: answer with this error, and do nothing.
            retry_after: seconds to wait, told with the error.
            cut: hang up in the middle of the `"request"` without having done anything, or of the `"answer"`.
            is_damaged: another last byte arrives, of a request with a body in the request, else in the answer.
        """
        fault = Fault(pattern, times, status, retry_after, cut, is_damaged)
        self.server.faults.append(fault)
        return fault

    def environment(self, home: str | os.PathLike) -> dict[str, str]:
        """Environment of a process whose Hub this is, with caches of its own below `home`."""
        ours = {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_TOKEN": "hf_local", "HF_HUB_DISABLE_XET": "1"}
        theirs = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGINGFACE_"))}
        return {**theirs, **ours, "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "NO_PROXY": "*"}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--root", required=True, help="folder of the repositories")
    parser.add_argument("--port", type=int, default=8765)
    arguments = parser.parse_args()
    hub = LocalHub(arguments.root, arguments.port)
    print(hub.url, flush=True)
    hub.server.serve_forever()
