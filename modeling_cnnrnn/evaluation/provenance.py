"""Where a training's numbers come from: the command, the versions, the machine, and what it took."""

import logging
import platform
import re
import shlex
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator


def provenance(accelerator: Accelerator) -> dict[str, Any]:
    """The command as it was given, the versions of what ran it, and the machine of the main process."""
    device, num_processes = accelerator.device, accelerator.num_processes
    launcher = "python"
    if num_processes > 1:
        launcher = (
            f"torchrun --nproc_per_node {num_processes}"
            if device.type == "cpu"
            else f"accelerate launch --num_processes {num_processes}"
        )
    packages = ("modeling-cnnrnn", "torch", "transformers", "accelerate", "datasets")
    return {
        "command": f"{launcher} {shlex.join(sys.argv)}",
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
        "hardware": f"{processor_name(device)}, {num_processes} x {device.type}, {torch.get_num_threads()} threads",
    }


def processor_name(device: torch.device) -> str:
    """What computes, in its maker's words where the system tells."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpu = Path("/proc/cpuinfo")
    name = re.search(r"model name\s*:\s*(.+)", cpu.read_text(encoding="utf-8")) if cpu.exists() else None
    return name[1].strip() if name else platform.processor() or platform.machine()


def peak_memory(accelerator: Accelerator) -> dict[str, float]:
    """The most memory that the main process has held, in GiB: of the machine, and of its GPU."""
    peak = {}
    if sys.platform != "win32":
        import resource

        unit = 1 if sys.platform == "darwin" else 1024  # bytes there, and KiB elsewhere
        peak["peak_memory_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
    if accelerator.device.type == "cuda":
        peak["peak_gpu_memory_gib"] = torch.cuda.max_memory_allocated(accelerator.device) / 2**30
    return {name: round(value, 3) for name, value in peak.items()}


class EnergyMeter:
    """What the machine has used, as codecarbon measures or estimates it; nothing where it is not installed."""

    def __init__(self):
        self.tracker = None
        if find_spec("codecarbon") is not None:
            from codecarbon import OfflineEmissionsTracker

            logging.getLogger("codecarbon").disabled = True  # else it reports each of its guesses
            # the country matters for the emissions alone, which are not asked for here
            self.tracker = OfflineEmissionsTracker(country_iso_code="USA", save_to_file=False)
            self.tracker.start_task()

    def read(self) -> float | None:
        """Energy since the last reading, in kWh; `None` without codecarbon."""
        if self.tracker is None:
            return None
        used = self.tracker.stop_task().energy_consumed
        self.tracker.start_task()
        return used
