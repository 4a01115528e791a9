"""Options of exporting a captioner, and of the page with the camera. Light to import."""

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
    dtype: Literal["float32", "int8", "int8-weights"] | None = field(
        default=None,
        metadata={
            "help": "Precision: float32 writes the same words as `generate`; int8 computes in 8 bits, the fastest; int8-weights stores the "
            "weights in 8 bits and computes in float32. By default float32, with --web int8-weights."
        },
    )
    calibration_images: list[str] = field(
        default_factory=list,
        metadata={"help": "Files or folders of some 100 photographs like those to be captioned, which int8 needs."},
    )
    web: bool = field(
        default=False,
        metadata={"help": "Write the page for browsers too; downloads onnxruntime-web, 33 MB, at the first time."},
    )


@dataclass
class WebcamArguments:
    """Options of the page with the camera."""

    model_name_or_path: str = field(
        metadata={"help": "Captioner, of the Hub or a folder, or an export of one with --web.", "positional": True}
    )
    model_revision: str = field(default="main", metadata={"help": "Commit, tag or branch of the captioner."})
    port: int = field(default=8000, metadata={"help": "Port on 127.0.0.1; 0 takes a free one."})
    open_browser: bool = field(default=True, metadata={"help": "Open the page in the browser."})
