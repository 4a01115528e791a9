"""Push a captioner: make its whole repository in a folder, try it, and send it to the Hub in one commit."""

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import httpx, validate_repo_id

from ..files import write_json
from ..models.modeling_alignment_cnnrnn import CnnRnnForImageTextRetrieval
from ..models.modeling_cnnrnn import CnnRnnForConditionalGeneration
from ..models.processing_alignment_cnnrnn import CnnRnnAlignmentProcessor
from ..models.processing_cnnrnn import CnnRnnProcessor
from .alignment_card import write_alignment_card
from .model_card import write_model_card
from .redaction import Redaction
from .remote_code import check_alignment_repository, check_repository


# pushed beside model, processor and card
RESULTS = ("training_results.json", "evaluation/eval_results.json")
# files of an earlier push that would be loaded together with, or in place of, the new ones
STALE = re.compile(r"model.*\.safetensors(\.index\.json)?|\w+_cnnrnn\.py")
MAX_RETRIES = 4


def push_captioner(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
    commit_message: str = "Upload captioner",
    max_shard_size: str = "5GB",
    card: Mapping[str, Any] | None = None,
) -> CommitInfo:
    """
    Push a captioner with everything that others need to use and to judge it.

    All files arrive in one commit or not at all. Files that were sent before a connection broke are not sent again by the
    next call, nor are files that have not changed.

    Args:
        folder: the results of a training, with those of an evaluation in `evaluation` there.
        repo_id: `"user/name"`; the repository is created if it does not exist.
        private: whether a repository that is created here is private. With `True`, a public repository is refused.
        revision: a branch, created from `main` if it does not exist; by default `main`.
        token: by default that of `hf auth login` or `HF_TOKEN`. It is written to no file.
        commit_message: the message of the commit.
        max_shard_size: larger weights are split into files of this size.
        card: options of `write_model_card`, such as the licence.

    Returns:
        The commit; `commit_url` shows it.

    Raises:
        ValueError: `repo_id` is not the name of a repository, or `folder` holds no captioner that loads.
        OSError: the Hub cannot be reached, or refuses the files (`PermissionError`: because of the token).
    """

    def stage(staged: Path, name: str) -> None:
        stage_captioner(folder, staged, name, max_shard_size=max_shard_size, card=card)

    return push_staged(stage, folder, repo_id, private, revision, token, commit_message)


def push_staged(
    stage: Callable[[Path, str], None],
    folder: str | Path,
    repo_id: str,
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
    commit_message: str = "Upload model",
) -> CommitInfo:
    """
    Push the repository that `stage` makes in a folder, see [`push_captioner`].

    Args:
        stage: makes the repository, given an empty folder and the name of the repository.
        folder: what it is made of, for messages.

    Raises:
        ValueError, OSError: as [`push_captioner`], or what `stage` raises.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"`repo_id` is '{repo_id}': pass 'user/name' ({error})") from error
    token = token or get_token()
    if token is None:
        raise PermissionError("There is no token: run `hf auth login`, set HF_TOKEN, or pass `token`.")
    api = HfApi(token=token)
    user = _ask(api.whoami, repo_id)["name"]
    repo_id = repo_id if "/" in repo_id else f"{user}/{repo_id}"
    with TemporaryDirectory() as temporary:
        staged = Path(temporary)
        stage(staged, repo_id)
        for name in _files(staged):
            if token.encode() in (staged / name).read_bytes():
                raise ValueError(f"{name} holds your token, and nothing is pushed: take it out of '{folder}'.")
        _ask(lambda: api.create_repo(repo_id, private=private, exist_ok=True), repo_id)
        if private and not _ask(lambda: api.repo_info(repo_id), repo_id).private:
            raise ValueError(
                f"`private` is True, but '{repo_id}' is public: make it private in its settings, or push elsewhere."
            )
        if revision is not None and revision != constants.DEFAULT_REVISION:
            _ask(lambda: api.create_branch(repo_id, branch=revision, exist_ok=True), repo_id)
        return _ask(lambda: _commit(api, staged, repo_id, revision, commit_message), repo_id)


def stage_captioner(
    folder: str | Path,
    staged: str | Path,
    repo_id: str | None = None,
    *,
    max_shard_size: str = "5GB",
    card: Mapping[str, Any] | None = None,
) -> None:
    """
    Make the repository of a captioner, or of an alignment, in a folder, and try it.

    Args:
        folder: the results of a training.
        staged: an empty folder for the repository.
        repo_id: name of the repository in the card.
        max_shard_size: larger weights are split into files of this size.
        card: options of `write_model_card` or `write_alignment_card`.

    Raises:
        ValueError: `folder` holds no captioner, or the repository made of it does not load.
    """
    folder, staged = Path(folder), Path(staged)
    model, processor = _load(folder)
    is_alignment = isinstance(model, CnnRnnForImageTextRetrieval)
    model.save_pretrained(staged, max_shard_size=max_shard_size)
    processor.save_pretrained(staged)
    (check_alignment_repository if is_alignment else check_repository)(staged, model, processor)

    redaction = Redaction(folder, repo_id)
    for name in RESULTS:
        if (folder / name).is_file():
            (staged / name).parent.mkdir(exist_ok=True)
            write_json(staged / name, redaction.redact(json.loads((folder / name).read_text(encoding="utf-8"))))
    write_card = write_alignment_card if is_alignment else write_model_card
    write_card(folder, repo_id=repo_id, output_dir=staged, repository=staged, **(card or {}))


def _load(folder: Path) -> tuple[Any, Any]:
    """Load the captioner or the alignment in a folder, and check that it is complete."""
    remedy = "pass the folder that a training wrote."
    try:
        model_type = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"`folder` is '{folder}', which holds no captioner (no config.json of one): {remedy}"
        ) from error
    if model_type == CnnRnnForImageTextRetrieval.config_class.model_type:
        model = CnnRnnForImageTextRetrieval.from_pretrained(folder, local_files_only=True)
        return model.eval(), CnnRnnAlignmentProcessor.from_pretrained(folder, local_files_only=True)
    if model_type != "cnnrnn":
        raise ValueError(f"`folder` is '{folder}', which holds a model of type '{model_type}', no captioner: {remedy}")
    captioner = CnnRnnForConditionalGeneration.from_pretrained(folder, local_files_only=True)
    return captioner.eval(), CnnRnnProcessor.from_pretrained(folder, local_files_only=True)


def _files(folder: Path) -> Iterator[str]:
    """List the files below a folder by their paths in a repository, with slashes."""
    return (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file())


def _commit(api: HfApi, staged: Path, repo_id: str, revision: str | None, message: str) -> CommitInfo:
    """
    Send large files, then the one commit that they are part of.

    `upload_folder` may split a folder into several commits, and a user could load the first of them.
    """
    files = list(_files(staged))
    stale = [name for name in api.list_repo_files(repo_id, revision=revision) if STALE.fullmatch(name)]
    return api.create_commit(
        repo_id,
        [CommitOperationAdd(name, staged / name) for name in files]
        + [CommitOperationDelete(name) for name in stale if name not in files],
        commit_message=message,
        revision=revision,
    )


def _ask(request: Callable[[], Any], repo_id: str) -> Any:
    """
    Send a request to the Hub, and retry it while the Hub is busy or the connection breaks.

    huggingface_hub retries the upload of files by itself, but neither a commit nor any other request. A commit may have
    been made although its answer was lost: on the retry huggingface_hub finds no file that has changed.
    """
    for retry in range(MAX_RETRIES + 1):
        try:
            return request()
        except (httpx.HTTPError, RuntimeError) as error:
            # huggingface_hub wraps an error of sending a file
            cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
            response = getattr(cause, "response", None) if isinstance(cause, HfHubHTTPError) else None
            # 400 is the answer of the store of large files to a file that arrived damaged
            repeated = (408, 429, 500, 502, 503, 504) + ((400,) if cause is not error else ())
            is_passing = (
                isinstance(cause, httpx.TransportError) if response is None else response.status_code in repeated
            )
            if not is_passing or retry == MAX_RETRIES:
                raise _explained(cause, response, repo_id) from error
            wait = response.headers.get("Retry-After", "") if response is not None else ""
            time.sleep(float(wait) if wait.isdecimal() else min(8, 2**retry))
    raise AssertionError("the last try returns or raises")


def _explained(error: BaseException, response, repo_id: str) -> Exception:
    """Turn an error of the Hub or of the connection into one sentence."""
    status = response.status_code if response is not None else None
    if status == 401:
        return PermissionError(
            "The Hub does not know the token: make one at its settings page and run `hf auth login`."
        )
    if status == 403:
        return PermissionError(
            f"`repo_id` is '{repo_id}', where the token may not write: pass a token for writing, or another name."
        )
    reason = getattr(error, "server_message", None) or str(error).strip().partition("\n")[0] or type(error).__name__
    status_text = f"{status}: " if status else ""
    return OSError(
        f"'{repo_id}' could not be pushed ({status_text}{reason}): nothing has changed there; try again, what was sent is "
        "not sent twice."
    )
