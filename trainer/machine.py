"""What numbers are measured on: processor, devices, memory."""

import os
import platform
import sys
from pathlib import Path
from typing import Any

# What decides how fast a network is on a processor, as Linux calls it.
INSTRUCTION_SETS = (
    "avx2", "avx_vnni", "avx512f", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_fp16",
    "amx_int8",
)  # fmt: skip


def unsupported_system() -> str:
    """Returns what to say on a system that this does not run on; empty elsewhere."""
    if sys.platform == "win32":
        return "Windows is not supported, Linux and macOS are; on Windows, run it in WSL (wsl --install)"
    return ""


def machine() -> dict[str, Any]:
    """Returns the processor with its cores and instruction sets, memory in GB, and the GPUs."""
    import tensorflow as tf

    model, flags = processor()
    gpus = [tf.config.experimental.get_device_details(gpu) for gpu in tf.config.list_physical_devices("GPU")]
    return {
        "processor": model,
        "cores": cores(),
        "instruction_sets": [name for name in INSTRUCTION_SETS if name in flags],
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "gpus": [gpu.get("device_name", "GPU") for gpu in gpus],
    }


def peak_memory_mb() -> float:
    """Returns the most memory this process has had resident, in MB."""
    try:
        status = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        status = []
    for line in status:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    import resource  # Not at the top: Windows has none, and is to be told so.

    # On Linux this begins with the peak of whoever started the process; on macOS it is in bytes.
    unit_bytes = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit_bytes / 1e6


def cores() -> int:
    """Returns how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> tuple[str, set[str]]:
    """Returns the name of the processor and its flags, as far as the system tells them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor() or platform.machine(), set()
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return fields.get("model name", platform.machine()), set(fields.get("flags", "").split())
