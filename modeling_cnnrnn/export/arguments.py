"""Options of exporting a captioner. Light to import."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass
class ExportArguments:
    """Options of an export."""

    model_name_or_path: str = field(metadata={"help": "Captioner, of the Hub or a folder.", "positional": True})
    output_dir: str = field(
        metadata={"help": "Folder to write, new, empty or of an earlier export.", "positional": True}
    )
    model_revision: str = field(default="main", metadata={"help": "Commit, tag or branch of the captioner."})
    dtype: Literal["float32", "int8", "int8-weights"] = field(
        default="float32",
        metadata={
            "help": "float32 writes the same words as `generate`; int8 computes in 8 bits, the fastest; int8-weights stores the "
            "weights in 8 bits and computes in float32."
        },
    )
    calibration_images: list[str] = field(
        default_factory=list,
        metadata={"help": "Files or folders of some 100 photographs like those to be captioned, which int8 needs."},
    )
