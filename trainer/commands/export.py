"""`export`: a finished run as SavedModel and TFLite, each checked in a process of its own."""

import contextlib
import logging
import shlex
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from trainer.cli.config import Config
from trainer.cli.declare import NETWORK, PICTURES
from trainer.cli.flags import CommandLine
from trainer.data.configured import open_configured
from trainer.data.pipeline import Pipeline
from trainer.export import card
from trainer.export.folder import (
    CARD,
    PARITY,
    kept_models,
    put_in_place,
    require_export_place,
    unchecked_models,
)
from trainer.export.fresh_process import Answers, Picture, is_known, run_model
from trainer.export.metadata import About
from trainer.export.models import FORMS, file_of, parse_formats, write_models
from trainer.export.parity import Reference, failures, for_phones, parity, size_bytes, told, told_uses
from trainer.loop.evaluator import Evaluator
from trainer.model.backbones import libraries_of
from trainer.model.weights import assign_weights, scored_weights, weights_sha256
from trainer.paths import local_path
from trainer.record.calibration import recorded_calibration, settled_task
from trainer.record.checkpoints import Checkpoints
from trainer.record.progress import counting
from trainer.record.workdir import Workdir
from trainer.report.scored import read_report
from trainer.run.experiment import Experiment
from trainer.run.new_pictures import named_pictures
from trainer.store.files import write_json, write_text
from trainer.store.provenance import code, versions
from trainer.tasks import Task
from trainer.values import TrainerError, called

_log = logging.getLogger("trainer")
# What a model takes beside its weights: graphs, names.
_OVERHEAD_BYTES = 2**22


def run(line: CommandLine) -> int:
    """Exports what a command line asks for, and returns the exit status."""
    export(line)
    return 0


def export(line: CommandLine) -> tuple[Path, dict[str, Any]]:
    """Exports --checkpoint; returns the folder, and what parity.json in it holds.

    Raises:
      TrainerError: run, checkpoint or pictures cannot be had; a model cannot be made or run; or, after all
        was written, one of them loses more than --max_accuracy_drop.
    """
    # The converter to TFLite puts a SavedModel there.
    scratch = tempfile.gettempdir()
    local_path(scratch, flag=f"the temporary folder {scratch} ($TMPDIR)", for_tensorflow=True)
    workdir = Workdir(line.config.run.workdir)
    # On one device: what is exported has one.
    config = workdir.read_for(line.given, found_out=(PICTURES, NETWORK)).replace(strategy="one")
    formats = parse_formats(config.export.formats)
    # Better told now than after all is written.
    metrics_json = workdir.report / "metrics.json"
    report = read_report(metrics_json) if metrics_json.exists() else None
    checkpoints = Checkpoints(workdir.checkpoints, keep=config.run.keep_checkpoints)
    path = checkpoints.find(config.evaluate.checkpoint)
    folder = _folder(workdir, config)
    values = checkpoints.values(path)
    # Under the names that they have where nothing is averaged.
    of_model = {f"model/{name}": value for name, value in scored_weights(values).items()}
    num_bytes = sum(value.nbytes for value in of_model.values())
    files = [file_of(form) for form in formats]
    room = (1 + len(formats)) * (num_bytes + _OVERHEAD_BYTES)
    require_export_place(folder, files=files, num_bytes=room)
    weights = {"step": checkpoints.step_of(path), "sha256": weights_sha256(of_model)}
    way_out = _way_out(folder, formats)
    kept = kept_models(folder, files=files, weights=str(weights["sha256"]), way_out=way_out)
    experiment = _open(config, workdir)
    workdir.check_network(config, {"function": experiment.backbone.fingerprint})
    with named_pictures(experiment.source, experiment.scan):
        assign_weights(experiment.classifier, values)
        about = _about(experiment, workdir, step=checkpoints.step_of(path))
        names = {row["file"] for row in kept} | set(unchecked_models(folder, files=files))
        with put_in_place(folder, kept=names) as part:
            reference, answers, sizes = _export(experiment, part, about, formats=formats)
            found = parity(
                reference,
                answers,
                sizes=sizes,
                max_drop=config.export.max_accuracy_drop,
                weights=weights,
                kept=kept,
            )
            write_json(part / PARITY, found)
            write_text(part / CARD, _card(experiment, workdir, about, found, report))
    _tell(folder, found)
    if failed := failures(found):
        raise TrainerError(
            f"{'; '.join(failed)}: that is more than "
            f"--max_accuracy_drop={config.export.max_accuracy_drop:g} allows. All is in {folder / PARITY}"
        )
    return folder, found


def _tell(folder: Path, found: Mapping[str, Any]) -> None:
    """Says what became of each model, which one is meant for what, and how to try one."""
    for model in found["models"]:
        _log.info("%s", told(model))
    _log.info("export:      %s", folder)
    for line in told_uses(found):
        _log.info("%s", line)
    files = [row["file"] for row in found["models"]]
    if tried := for_phones(found) or ("saved_model" if "saved_model" in files else ""):
        model_path = shlex.quote(str(folder / tried))
        _log.info("try one:     %s predict --model=%s photo.jpg", called(), model_path)


def _way_out(folder: Path, formats: tuple[str, ...]) -> str:
    """Returns what to do about models in a folder that do not belong to those that are to be written."""
    there = [form for form in FORMS if form in formats or (folder / file_of(form)).exists()]
    return f"--formats={','.join(there)} writes all of them anew"


def _folder(workdir: Workdir, config: Config) -> Path:
    asked = config.export.export_dir
    return local_path(asked, flag=f"--export_dir={asked}") if asked else workdir.root / "export"


def _open(config: Config, workdir: Workdir) -> Experiment:
    """Opens pictures and network; says what the pictures are for when it is they that are missing."""
    try:
        return Experiment(config, of_run=workdir)
    except TrainerError as error:
        try:
            open_configured(config)
        except TrainerError:
            raise type(error)(
                f"export checks each model on the pictures of the run, which cannot be had: {error}"
            ) from None
        raise


def _about(experiment: Experiment, workdir: Workdir, *, step: int) -> About:
    config = experiment.asked
    found = recorded_calibration(workdir, step=step)
    # For its warning where nothing was fitted with these weights.
    settled_task(workdir, experiment.task, step=step)
    return About(
        class_names=tuple(experiment.source.class_names),
        contract=experiment.backbone.contract,
        exif=config.data.exif,
        decoding=config.data.decode,
        task=config.data.task,
        temperature=found.temperature,
        thresholds=found.thresholds if experiment.task.fits_thresholds else None,
        run={
            "identity": workdir.read_facts()["identity"],
            "name": workdir.root.name,
            "step": step,
            "checkpoint": config.evaluate.checkpoint,
            "backbone": experiment.backbone.name,
            "source": experiment.source.name,
        },
        versions={**code(), **versions(), **libraries_of(experiment.backbone)},
    )


def _export(
    experiment: Experiment, folder: Path, about: About, *, formats: tuple[str, ...]
) -> tuple[Reference, dict[tuple[str, str], Answers], dict[str, int]]:
    """Writes the models and runs each.

    Returns:
      What the network says; what each way into each model says; {model: its size in bytes}.
    """
    config = experiment.config
    validation = experiment.splits.indices["validation"]
    # With the thresholds that the models have.
    task = about.make_task()
    _log.info("network:     scores validation in float32")
    reference = _reference(experiment, validation, task)
    _log.info(
        "network:     weights of step %d (%s): %.2f %% of %d validation pictures right in float32",
        about.run["step"], config.evaluate.checkpoint, 100 * reference.accuracy, len(validation),
    )  # fmt: skip
    chosen = spread(experiment, config.export.calibration_pictures)
    answers: dict[tuple[str, str], Answers] = {}
    sizes = {}
    models = write_models(
        folder,
        experiment.classifier,
        about=about,
        formats=formats,
        pictures=lambda: (pixels for _, pixels in pictures(experiment, chosen, encoded=False)),
    )
    with contextlib.closing(models):
        for model in models:
            sizes[model.name] = size_bytes(model)
            if not is_known(model):
                _log.warning("%s is not checked: what runs such a file is not known here", model.name)
                continue
            with counting(config.run.progress, f"check of {model.name}", len(validation)) as watch:
                found = run_model(
                    model,
                    pictures(experiment, validation, encoded=True),
                    size_px=about.contract.image_shape[:2],
                    decide=task.decisions,
                    watch=watch,
                )
            answers |= {(model.name, way): answer for way, answer in found.items()}
    return reference, answers, sizes


def _reference(experiment: Experiment, indices: np.ndarray, task: Task) -> Reference:
    """Returns what training's own evaluation gives in float32; `task` decides."""
    evaluator = Evaluator(experiment.classifier, strategy=experiment.strategy)
    scored = evaluator(experiment.pipeline.once(indices))
    return Reference(scored.labels, task.probabilities(scored.logits), task)


def pictures(experiment: Experiment, indices: np.ndarray, *, encoded: bool) -> Iterator[Picture]:
    """Yields pictures as training decodes them, with pixels in [0, 1]; b"" where `encoded` is not wanted."""
    pipeline = Pipeline(
        experiment.source,
        experiment.scan,
        contract=replace(experiment.backbone.contract, value_range=(0.0, 1.0)),
        batch_size=experiment.config.plan.batch_size,
        seed=experiment.config.run.seed,
        decoding=experiment.config.data.decode,
        task=experiment.task,
    )
    for batch in pipeline.once(indices):
        for index, pixels in zip(batch["id"].numpy().tolist(), batch["image"].numpy(), strict=True):
            if index >= 0:
                yield pipeline.encoded(index) if encoded else b"", pixels


def spread(experiment: Experiment, count: int) -> np.ndarray:
    """Returns positions of `count` training pictures, or of all, in turn from each class that has more.

    The choice is always the same, and within a class at even distances.
    """
    train = experiment.splits.indices["train"]
    labels = experiment.task.groups(experiment.source.labels[train])
    by_class = [train[labels == k] for k in np.unique(labels)]
    turns = [(i, k) for k, of in enumerate(by_class) for i in range(len(of))]
    shares = np.bincount([k for _, k in sorted(turns)[:count]], minlength=len(by_class))
    chosen = [
        of[np.linspace(0, len(of) - 1, share).astype(int)] for of, share in zip(by_class, shares, strict=True)
    ]
    return np.concatenate(chosen)


def _card(
    experiment: Experiment,
    workdir: Workdir,
    about: About,
    found: dict[str, Any],
    report: dict[str, Any] | None,
) -> str:
    config, asked, step = experiment.config, workdir.read_config(), about.run["step"]
    # What came after these weights was not in their training.
    before = [phase for phase in experiment.plan.phases if phase.start_step < step]
    phases = [f"- {card.escaped(phase.describe())}" for phase in before]
    if before and before[-1].stop_step > step:
        phases[-1] += f"; these weights are those of step {step:,}"
    files = list(dict.fromkeys(model["file"] for model in found["models"]))
    parts = [
        card.title_section(about, head=config.model.head, task=experiment.task),
        card.data_section(
            source=about.run["source"],
            how=experiment.splits.how,
            counts={name: experiment.class_counts(name) for name in experiment.splits.indices},
            num_left_out=len(experiment.left_out),
            num_shared=workdir.read_num_shared(),
            dropped=config.data.drop_duplicates,
            sizes={name: len(indices) for name, indices in experiment.splits.indices.items()},
        ),
        "\n".join(["## Recipe", "", *phases, "", "The flagfile at the end has every option."]),
        card.metrics_section(report, step=step, temperature=about.temperature, task=experiment.task),
        card.limits_section(about, task=experiment.task, near_duplicates=config.data.near_duplicates),
        card.models_section(found),
        card.usage_section(
            about,
            has_saved_model="saved_model" in files,
            tflite_files=[name for name in files if name.endswith(".tflite")],
        ),
        f"## Versions\n\n{card.table(['of', 'version'], list(about.versions.items()))}",
        f"## Flagfile\n\n{card.fenced(asked.flagfile() + config.chosen_beside(asked))}",
    ]
    return "\n\n".join(parts) + "\n"
