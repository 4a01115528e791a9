"""Remove tokens and local paths from texts."""

import re
import shlex
from pathlib import Path
from typing import Any

from huggingface_hub import get_token


TOKEN = re.compile(r"\b(?:hf|api_org)_[A-Za-z0-9]{20,}")
ABSOLUTE_PATH = re.compile(r"(?:file://)?(?<![\w.:/~-])(?:~?/|[A-Za-z]:[\\/])[^\s'\",;:]+|file://[^\s'\",;]+")


class Redaction:
    """
    Remove tokens and local paths from texts.

    Args:
        folder: folder of the captioner.
        repo_id: name of the captioner on the Hub.

    Attributes:
        model: public name of the captioner, `repo_id` or the redacted folder.
    """

    def __init__(self, folder: Path, repo_id: str | None):
        self.token = get_token()
        self.model = repo_id or self._path(str(folder))

    def redact(self, value: Any) -> Any:
        """Redact a value, through all levels of lists and dictionaries."""
        if isinstance(value, dict):
            return {
                key: self._command(item) if key == "command" and isinstance(item, str) else self.redact(item)
                for key, item in value.items()
                if not re.search(r"(^|_)(token|password|secret|api_key)$", str(key))
            }
        if isinstance(value, list):
            return [self.redact(item) for item in value]
        return self._text(value) if isinstance(value, str) else value

    def _command(self, command: str) -> str:
        try:
            words = shlex.split(command)
        except ValueError:  # an unclosed quote
            words = command.split()
        kept: list[str] = []
        is_secret = False
        for word in words:
            if re.match(r"--\w*(token|password|secret|api_key)\b", word):
                is_secret = "=" not in word
            elif not is_secret or word.startswith("--"):
                is_secret = False
                kept.append(word)
        return shlex.join(map(self._text, kept))

    def _text(self, text: str) -> str:
        text = TOKEN.sub("<token>", text.replace(self.token, "<token>") if self.token else text)
        script = re.fullmatch(r".*[\\/](examples[\\/]\w+\.py)", text)
        if script:
            return script[1]
        if re.match(r"[\\/~]|[A-Za-z]:[\\/]|file://", text):
            return self._path(text)
        return ABSOLUTE_PATH.sub(lambda match: self._path(match[0]), text)

    def _path(self, text: str) -> str:
        """Make a path relative to the current folder; of a path elsewhere, only the last part is kept."""
        path = Path(text.removeprefix("file://")).expanduser()
        if not path.is_absolute() and not re.match(r"[A-Za-z]:[\\/]", str(path)):
            return path.as_posix()
        here = Path.cwd()
        if path.is_relative_to(here) and not (Path.home().is_relative_to(here) and Path.home() != here):
            return path.relative_to(here).as_posix()
        return "path/to/" + re.split(r"[\\/]", str(path))[-1]
