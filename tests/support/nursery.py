"""
Run Python in processes of its own that begin seconds earlier: forks of one that has imported the large libraries.

Only libraries that do not read the environment when they are imported are imported before: huggingface_hub, transformers,
datasets, accelerate and this package are imported by each fork anew, in its own environment.
"""

import contextlib
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from functools import cache
from pathlib import Path
from typing import Any


LIBRARIES = (
    "torch",
    "torch._dynamo",
    "pandas",
    "pyarrow.parquet",
    "matplotlib.figure",
    "jinja2",
    "dill",
    "multiprocess",
)


def run_python(
    *words: object, number: int = 1, env: dict | None = None, cwd: object = None, stdin: str = ""
) -> subprocess.CompletedProcess:
    """
    Run `python words...`, and return what `subprocess.run` does.

    Args:
        words: the command line, `-c code`, `-m module` or a script, with its arguments; `-P` may stand before.
        number: processes of torch.distributed that run it together. When one ends with an error, the others are killed;
            `returncode` is that of the first one that failed.
        env: the environment, by default that of this process.
        stdin: text on the standard input.
    """
    with tempfile.TemporaryDirectory() as folder:
        streams = {name: str(Path(folder, name)) for name in ("stdin", "stdout", "stderr")}
        Path(streams["stdin"]).write_text(stdin, encoding="utf-8")
        job = {
            "words": list(map(str, words)),
            "number": number,
            "env": {key: str(value) for key, value in (os.environ if env is None else env).items()},
            "cwd": str(cwd or os.getcwd()),
            "streams": streams,
        }
        server = _server(os.getpid())
        print(json.dumps(job), file=server.stdin, flush=True)
        status = json.loads(server.stdout.readline())
        stdout, stderr = (Path(streams[name]).read_text("utf-8", "replace") for name in ("stdout", "stderr"))
    return subprocess.CompletedProcess(job["words"], status, stdout, stderr)


@cache
def _server(process: int) -> Any:
    """Start the process that is forked, once in each process of the tests."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-P", __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )


def _serve() -> None:
    for name in LIBRARIES:
        importlib.import_module(name)
    for line in sys.stdin:
        print(_status_of(json.loads(line)), flush=True)


def _status_of(job: dict) -> int:
    """Run a job, and return its exit status, negative for a signal."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    children = []
    for rank in range(job["number"]):
        if not (child := os.fork()):
            _become(job, rank, port)
        children.append(child)
    status = 0
    while children:
        child, how = os.wait()
        children.remove(child)
        if how and not status:
            status = os.waitstatus_to_exitcode(how)
            for other in children:
                os.kill(other, signal.SIGKILL)
    return status


def _become(job: dict, rank: int, port: int) -> None:
    """Be a Python that runs the words of a job, and end as it does."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        flags = os.O_RDONLY if name == "stdin" else os.O_WRONLY | os.O_CREAT | os.O_APPEND
        os.dup2(os.open(job["streams"][name], flags), number)
    sys.stdin, sys.stdout, sys.stderr = map(os.fdopen, range(3), "rww")
    os.environ.clear()
    os.environ.update(job["env"])
    if job["number"] > 1:
        ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": job["number"], "LOCAL_WORLD_SIZE": job["number"]}
        os.environ.update({key: str(value) for key, value in ranks.items()})
        os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)})
    os.chdir(job["cwd"])
    status = 1
    try:
        _run(job["words"])
        status = 0
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
        else:
            status = stop.code or 0
    except BaseException:
        traceback.print_exc()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


def _run(words: list[str]) -> None:
    is_safe = words[0] == "-P"
    first, *rest = words[1:] if is_safe else words
    sys.path[:0] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    if not is_safe:
        sys.path.insert(0, "" if first in ("-c", "-m") else os.path.dirname(os.path.abspath(first)))
    if first == "-c":
        sys.argv = ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    elif first == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = [first, *rest]
        runpy.run_path(first, run_name="__main__")


if __name__ == "__main__":
    _serve()
