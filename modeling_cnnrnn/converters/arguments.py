"""Options of converting an old checkpoint. Light to import."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass
class ConvertArguments:
    """Options of a conversion."""

    checkpoint: list[str] = field(
        metadata={"help": "The files of the checkpoint, in any order: weights and vocabulary.", "positional": True}
    )
    output_dir: str = field(metadata={"help": "Folder to write the captioner to, new or empty."})
    from_: Literal["neuraltalk", "neuraltalk2", "pytorch_tutorial", "self_critical", "show_attend_tell"] | None = field(
        default=None, metadata={"help": "Program that wrote the checkpoint. By default guessed from its files."}
    )
