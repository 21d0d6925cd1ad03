"""The folder of a run: whether it can be written, who uses it, and how far the run in it has come."""

from pathlib import Path

from trainer.doctor.findings import Finding, ok, problem, warning
from trainer.doctor.storage import check_place
from trainer.file_lock import held_by
from trainer.phase_specs import phase_specs
from trainer.record.checkpoint_files import CheckpointFolder
from trainer.record.scored import read_report
from trainer.record.workdir import LOCK, Workdir
from trainer.values import TrainerError

# Locks and renames reach other machines late on these, or not at all.
NETWORK_FILE_SYSTEMS = (
    "nfs",
    "cifs",
    "smb",
    "9p",
    "fuse.sshfs",
    "fuse.gcsfuse",
    "fuse.s3fs",
    "lustre",
    "ceph",
)


def check_workdir(workdir: str, *, mounts: Path = Path("/proc/self/mountinfo")) -> list[Finding]:
    """Looks at a folder that --workdir names.

    Args:
      workdir: the value of the flag.
      mounts: where Linux tells file systems.
    """
    run = Workdir(workdir)
    found = [check_place(run.root, what="workdir", flag="--workdir", needed=True)]
    kind = file_system(run.root, mounts=mounts)
    if kind.startswith(NETWORK_FILE_SYSTEMS):
        text = (
            f"it is on a network file system ({kind}): the lock of a run may not be seen from other machines"
        )
        found.append(warning(text, "start a run on one machine at a time, or use a local disk"))
    if not run.root.is_dir() or found[0].mark == "problem":
        return found
    if holder := held_by(run.root / LOCK):
        found.append(ok(f"{holder} is at work in it"))
    if run.run_json.exists():
        found.append(_progress(run))
    elif any(run.root.iterdir()):
        found.append(ok("no run is in it, but other files are: they are left alone"))
    return found


def file_system(path: Path, *, mounts: Path) -> str:
    """Returns the kind of the file system that a path is on, such as ext4; empty where it is not told."""
    try:
        lines = mounts.read_text().splitlines()
    except OSError:
        return ""
    best, kind = -1, ""
    for line in lines:
        before, _, after = line.partition(" - ")
        # Spaces and the like are written as octal numbers.
        point = Path(before.split()[4].encode().decode("unicode_escape"))
        if (path == point or point in path.parents) and len(point.parts) >= best:
            best, kind = len(point.parts), after.split()[0]
    return kind


def _progress(run: Workdir) -> Finding:
    try:
        config = run.read_config()
        names = CheckpointFolder(run.checkpoints).names()
        run.read_facts()
        rows = run.read_splits().get("train", []) if run.splits_json.exists() else []
        report = read_report(run.report / "metrics.json") if (run.report / "metrics.json").exists() else None
    except TrainerError as error:
        return problem(f"the run in it cannot be read: {error}", "choose another --workdir")
    step, total = int(names[-1].rpartition("-")[2]) if names else 0, 0
    # What auto comes to is known only once the pictures have been looked at.
    if rows and config.plan.schedule != "auto":
        size = {"num_examples": len(rows), "batch_size": config.plan.batch_size}
        total = sum(spec.duration.to_steps(**size) for spec in phase_specs(config.plan))
    text = f"a run of {config.model.backbone} on {config.data.source}, saved up to step {step:,}"
    if total:
        text += f" of {total:,}: {'finished' if step >= total else 'the same train command goes on'}"
    if report:
        return ok(f"{text}; {report['split']} accuracy {report['accuracy']:.4f} in its report")
    return ok(f"{text}; no report, which train ends with and evaluate writes")
