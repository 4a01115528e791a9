"""Record how numbers came about: the command, the versions, the machine, memory and energy."""

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
    """Return the command as it was given, the versions of the libraries, and the machine of the main process."""
    device, num_processes = accelerator.device, accelerator.num_processes
    packages = ("modeling-cnnrnn", "torch", "transformers", "accelerate", "datasets")
    return {
        "command": command_line(num_processes, device.type),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
        "hardware": f"{processor_name(device)}, {num_processes} x {device.type}, {torch.get_num_threads()} threads",
    }


def command_line(num_processes: int = 1, device_type: str = "cpu") -> str:
    """Return the command that started this program, as a user writes it."""
    program = Path(sys.argv[0])
    is_module = program.name == "__main__.py" and program.parent.name == "modeling_cnnrnn"
    is_verb = is_module or program.stem == "cnnrnn"
    words = ["-m", "modeling_cnnrnn", *sys.argv[1:]] if is_verb else sys.argv
    if num_processes > 1:
        launcher = (
            f"torchrun --nproc_per_node {num_processes}"
            if device_type == "cpu"
            else f"accelerate launch --num_processes {num_processes}"
        )
        return f"{launcher} {shlex.join(words)}"
    return shlex.join(["cnnrnn", *sys.argv[1:]]) if is_verb else f"python {shlex.join(words)}"


def processor_name(device: torch.device) -> str:
    """Return the name of the GPU or CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpu = Path("/proc/cpuinfo")
    name = re.search(r"model name\s*:\s*(.+)", cpu.read_text(encoding="utf-8")) if cpu.exists() else None
    return name[1].strip() if name else platform.processor() or platform.machine()


def peak_memory(accelerator: Accelerator) -> dict[str, float]:
    """Return the peak memory of the main process in GiB: the machine's, and its GPU's."""
    peak = {}
    if sys.platform != "win32":
        import resource

        unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
        peak["peak_memory_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
    if accelerator.device.type == "cuda":
        peak["peak_gpu_memory_gib"] = torch.cuda.max_memory_allocated(accelerator.device) / 2**30
    return {name: round(value, 3) for name, value in peak.items()}


class EnergyMeter:
    """Measure the energy that the machine uses, with codecarbon where it is installed."""

    def __init__(self):
        self.tracker = None
        if find_spec("codecarbon") is not None:
            from codecarbon import OfflineEmissionsTracker

            logging.getLogger("codecarbon").disabled = True  # it would report each of its guesses
            # the country matters only for the emissions, which are not read here
            self.tracker = OfflineEmissionsTracker(country_iso_code="USA", save_to_file=False)
            self.tracker.start_task()

    def read(self) -> float | None:
        """Return the energy since the last reading in kWh; `None` without codecarbon."""
        if self.tracker is None:
            return None
        used = self.tracker.stop_task().energy_consumed
        self.tracker.start_task()
        return used
