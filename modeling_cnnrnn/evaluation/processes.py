"""Start the processes of an evaluation, of which only the first one talks."""

import logging
from typing import Any

import torch
import transformers
from accelerate import Accelerator


def create_accelerator(mixed_precision: str = "no", **options: Any) -> Accelerator:
    """
    Create an accelerator, and let only the main process log.

    Args:
        mixed_precision: `"no"`, `"bf16"` or `"fp16"`.
        options: further arguments of `Accelerator`.
    """
    # several processes do not find each other on a CPU unless it is named
    accelerator = Accelerator(cpu=not torch.accelerator.is_available(), mixed_precision=mixed_precision, **options)
    logging.getLogger("modeling_cnnrnn").setLevel(logging.INFO if accelerator.is_main_process else logging.ERROR)
    transformers.logging.disable_progress_bar()  # weights are read and written in no time
    return accelerator
