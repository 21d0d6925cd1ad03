"""`doctor`: what this machine has and can reach, and what to do about what is wrong."""

import subprocess
import sys
from typing import Any

from trainer.cli.flags import CommandLine
from trainer.doctor import probe
from trainer.doctor.findings import Finding, Section, as_json, count, shown, verdict
from trainer.doctor.hardware import (
    check_cluster,
    check_gpus,
    check_precisions,
    check_processor,
    check_tensorflow,
)
from trainer.doctor.packages import check_encodings, check_packages
from trainer.doctor.storage import Reach, check_caches, check_workdir
from trainer.paths import local_path
from trainer.store.files import require_place, write_json
from trainer.values import UsageError


def run(line: CommandLine) -> int:
    """Prints what each check finds; returns the exit status, 1 where nothing can be trained."""
    config, output = line.config, line.config.benchmark.output
    if output:
        if not output.lower().endswith(".json"):
            raise UsageError(f"--output={output} must end in .json: that is how doctor writes it")
        require_place(local_path(output, flag=f"--output={output}"), flag=f"--output={output}")
    sections: list[Section] = []

    def tell(title: str, findings: list[Finding]) -> None:
        sections.append(Section(title, findings))
        print(shown(sections[-1]), flush=True)

    reach, process = Reach(), probe.start()
    tell("packages", check_packages())
    tell("machine", [*check_processor(), *check_cluster(), *check_encodings()])
    probed = _waited_for(process)
    tell("TensorFlow", [*check_tensorflow(probed), *check_gpus(probed)])
    run = config.run
    tell("precision", check_precisions(probed, cache_dir=run.cache_dir))
    caches = check_caches(
        cache_dir=run.cache_dir, data_dir=config.data.data_dir, limit_gb=config.speed.cache_limit_gb
    )
    tell("caches", caches)
    tell("network", reach.findings())
    if run.workdir:
        tell("workdir", check_workdir(run.workdir))
    print(verdict(sections))
    if output:
        write_json(local_path(output, flag=f"--output={output}"), as_json(sections))
    return 1 if count(sections, "problem") else 0


def _waited_for(process: subprocess.Popen[Any] | str) -> dict[str, Any]:
    """Returns what the process found; on a terminal, a line says meanwhile what is waited for."""
    waiting = "trying TensorFlow ..." if sys.stdout.isatty() else ""
    print(waiting, end="\r" * bool(waiting), flush=True)
    probed = probe.finish(process)
    print(" " * len(waiting), end="\r" * bool(waiting), flush=True)
    return probed
