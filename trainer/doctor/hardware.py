"""Processors, memory, GPUs and what TensorFlow can use of them, and which arithmetic pays here."""

import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from trainer.doctor.findings import Finding, ok, problem, warning
from trainer.doctor.packages import NEEDED_ONLY_BY, pip_install
from trainer.doctor.probe import WHAT
from trainer.precision import Choice, read_choice
from trainer.runtime import INSTRUCTION_SETS, cores, named_cluster, processor
from trainer.store.files import told_size
from trainer.store.places import cache_root
from trainer.values import UsageError, called

MOST_SHOWN = 5


def check_precisions(probed: Mapping[str, Any], *, cache_dir: str) -> list[Finding]:
    """Says what was measured just now, and before.

    Args:
      probed: what `probe.finish` returned.
      cache_dir: the value of --cache_dir.
    """
    speeds = probed.get("speeds")
    if speeds is None:
        return [warning("nothing was measured: TensorFlow does not compute", "see what is said of it above")]
    measured = Choice.from_json(speeds["measured"])
    taken = ", ".join(f"{1e3 * secs:,.3g} ms in {name}" for name, secs in measured.step_secs.items())
    if len(measured.step_secs) == 1:
        return [
            ok(f"TensorFlow computes only in float32 here, so there is nothing to choose: {taken} ({WHAT})")
        ]
    pays = (
        "16 bits save less than a tenth" if measured.precision == "float32" else f"{measured.precision} pays"
    )
    rule = "--precision=auto measures each phase's own step instead, and remembers it"
    found = [ok(f"{pays}: {taken} ({WHAT})"), ok(rule)]
    return found + _remembered(cache_root(cache_dir) / "precision", speeds["machine"])


def _remembered(folder: Path, here: Mapping[str, Any]) -> list[Finding]:
    """Returns the latest measurements of runs that are kept, and hold for this machine as it is."""
    mine, others = [], 0
    for path in folder.glob("*.json"):
        choice = read_choice(path)
        if choice is None:
            continue
        if choice.machine == here:
            mine.append(choice)
        else:
            others += 1
    mine.sort(key=lambda choice: choice.measured_at, reverse=True)
    found = [ok(choice.describe()) for choice in mine[:MOST_SHOWN]]
    if len(mine) > MOST_SHOWN:
        found.append(ok(f"and {len(mine) - MOST_SHOWN} older measurements in {folder}"))
    if others:
        found.append(ok(f"{others} more in {folder} are of other machines or settings, and do not count"))
    return found


LITTLE_MEMORY_BYTES = 4e9
_NVIDIA_SMI_SECS = 10.0
# What makes oneDNN, or TensorFlow without it, leave instructions unused.
_HOLDING_BACK = {"TF_ENABLE_ONEDNN_OPTS": "0", "ONEDNN_MAX_CPU_ISA": ""}
_X86 = ("x86_64", "AMD64")


def check_processor(*, cgroup: Path = Path("/sys/fs/cgroup")) -> list[Finding]:
    """Looks at what this process may use.

    Args:
      cgroup: where Linux says what a container may use.
    """
    name, flags = processor()
    found = [ok(f"{name}, {cores()} cores")]
    share = _cpu_limit(cgroup)
    if share is not None and share < cores():
        advice = f"set TF_NUM_INTRAOP_THREADS={max(1, round(share))}, or give the container more"
        text = f"the container may use {share:g} of {cores()} cores: TensorFlow starts a thread for each"
        found.append(warning(text, advice))
    found.append(_memory(cgroup))
    has = [name for name in INSTRUCTION_SETS if name in flags]
    if platform.machine() in _X86 and flags and "avx" not in flags:
        text = "the processor has no AVX: TensorFlow as it comes from PyPI ends on it with SIGILL"
        found.append(problem(text, "use another machine, or a virtual one that passes AVX through"))
    elif platform.machine() in _X86 and flags and "avx2" not in flags:
        found.append(warning("the processor has no AVX2: networks are several times slower", "use another"))
    else:
        found.append(ok(f"instruction sets: {', '.join(has) or 'those of ' + platform.machine()}"))
    for variable, off in _HOLDING_BACK.items():
        value = os.environ.get(variable)
        if value is not None and (not off or value == off):
            text = f"{variable}={value} keeps instruction sets from being used"
            found.append(warning(text, f"unset {variable}"))
    return found


def check_cluster() -> list[Finding]:
    """Looks whether TF_CONFIG makes this machine one of several."""
    try:
        cluster = named_cluster()
    except UsageError as error:
        return [problem(str(error), f"env -u TF_CONFIG {called()} ...")]
    if cluster is None:
        return []
    count = len(cluster.addresses)
    return [
        ok(f"{cluster.named_by} makes this {cluster.told(cluster.index)} of {count}: train works with all")
    ]


def _cpu_limit(cgroup: Path) -> float | None:
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return None


def _memory(cgroup: Path) -> Finding:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = int((cgroup / "memory.max").read_text())
    except (OSError, ValueError):
        limit = total
    text = f"memory: {told_size(total)}"
    if limit < total:
        text += f", of which the container may use {told_size(limit)}"
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        free = limit
    text += f", {told_size(min(free, limit))} free"
    if min(free, limit) < LITTLE_MEMORY_BYTES:
        return warning(text, "a smaller --batch_size, --accumulate or --memory_budget_mb needs less")
    return ok(text)


def check_tensorflow(probed: Mapping[str, Any]) -> list[Finding]:
    """Says whether TensorFlow, and what is built on it, can be imported; `probed` is of `probe.finish`."""
    imports = probed.get("imports", {"secs": {}, "errors": {}})
    found = []
    if secs := imports["secs"]:
        found.append(ok(f"{', '.join(secs)} can be imported, in {sum(secs.values()):.1f} s"))
    of_packages = metadata.packages_distributions() if imports["errors"] else {}
    for name, error in imports["errors"].items():
        text = f"{name} cannot be imported: {error}"
        if name == "tensorflow_datasets":
            found.append(warning(text, "without it, all but tfds: sources work"))
            continue
        project = next(iter(of_packages.get(name, [])), name)
        advice = f"mend what is said of packages above; else {pip_install('--force-reinstall', project)}"
        user = NEEDED_ONLY_BY.get(name.replace("_", "-"))
        found.append(warning(f"{text}: needed by {user}", advice) if user else problem(text, advice))
    if "failed" in probed:
        stage = next((s for s in ("imports", "devices", "speeds") if s not in probed), "its end")
        what = {"imports": "importing it", "devices": "looking for devices", "speeds": "computing with it"}
        text = f"TensorFlow fails, {what.get(stage, stage)}: {probed['failed']}"
        found.append(problem(text, "mend what is said of packages and machine above"))
    return found


def check_gpus(probed: Mapping[str, Any]) -> list[Finding]:
    """Compares the GPUs that TensorFlow sees with those that the driver shows."""
    shown, failure = _nvidia_gpus()
    devices = probed.get("devices")
    if devices is None:
        told = f"the driver shows {', '.join(shown)}" if shown else "no GPU that a driver shows"
        return [ok(f"{told}; TensorFlow could not be asked")]
    if devices["gpus"]:
        return [ok(f"TensorFlow uses {', '.join(devices['gpus'])}; {', '.join(shown) or 'no nvidia-smi'}")]
    if failure:
        advice = "restart the machine, or reinstall the driver; without a GPU all works, slower"
        return [warning(f"nvidia-smi is here, and fails: {failure}", advice)]
    if not shown:
        return [ok("no GPU: TensorFlow computes on the processor")]
    return [warning(f"TensorFlow does not see {', '.join(shown)}", _why_unseen(devices))]


def _why_unseen(devices: Mapping[str, Any]) -> str:
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None and hidden.strip() in ("", "-1"):
        return f"CUDA_VISIBLE_DEVICES={hidden} hides it: unset CUDA_VISIBLE_DEVICES"
    install = f"pip install 'tensorflow[and-cuda]=={devices['version']}'"
    if not devices["is_built_with_cuda"]:
        return f"this TensorFlow is built without CUDA: {install}"
    version = f" {devices['cuda_version']}" if devices["cuda_version"] else ""
    return f"{install} brings the libraries of CUDA{version}; the driver must be new enough for it"


def _nvidia_gpus() -> tuple[list[str], str]:
    """Returns the NVIDIA GPUs with their drivers, and why they cannot be told."""
    if not (program := shutil.which("nvidia-smi")):
        folders = sorted(Path("/proc/driver/nvidia/gpus").glob("*"))
        return [f"an NVIDIA GPU ({folder.name})" for folder in folders], ""
    command = [program, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_NVIDIA_SMI_SECS)
    except (OSError, subprocess.SubprocessError) as error:
        return [], " ".join(str(error).split())
    if done.returncode:
        return [], " ".join((done.stdout + done.stderr).split())[:200] or f"status {done.returncode}"
    rows = [line.split(", ") for line in done.stdout.splitlines() if line.strip()]
    return [f"{row[0]} ({row[1]}, driver {row[2]})" if len(row) == 3 else row[0] for row in rows], ""
