"""What a run says of itself before and while it trains: its record, TensorBoard's first pages, pictures."""

import dataclasses
import json
import logging
import os
from collections.abc import Sequence

import numpy as np

from trainer.data.decode import unscale
from trainer.experiment import Experiment
from trainer.files import write_bytes
from trainer.flags import to_flagfile
from trainer.loop.phases import Phase
from trainer.provenance import code, versions
from trainer.record.summaries import Summaries
from trainer.record.workdir import Workdir
from trainer.stages import Stages

_log = logging.getLogger("trainer")
# What was recorded under way, and holds for the rest of the run.
KEPT_FACTS = ("code", "code_changes", "rollbacks", "init_from")


def record(experiment: Experiment, workdir: Workdir, stages: Stages) -> None:
    """Writes what the run is, and says in a few lines what it begins with."""
    config = experiment.asked
    record = experiment.split_record()
    workdir.write_or_check_splits(
        record, how=experiment.splits.how, shared=experiment.shared, left_out=experiment.left_out
    )
    before = workdir.read_facts()
    kept = {name: before[name] for name in KEPT_FACTS if name in before}
    workdir.write_run(
        config,
        flagfile=to_flagfile(config),
        class_names=experiment.source.class_names,
        contract=dataclasses.asdict(experiment.backbone.contract),
        versions=versions(),
        precision=stages.arithmetic.decided,
        **{"code": code(), "code_changes": [], "rollbacks": [], **kept},
    )
    sizes = ", ".join(f"{name} {len(rows):,}" for name, rows in record.items())
    _log.info(
        "pictures:    %s, %d classes; %s", config.data.source, len(experiment.source.class_names), sizes
    )
    _log.info("splits:      %s", experiment.splits.how)
    contract = experiment.backbone.contract
    low, high = contract.value_range
    _log.info(
        "backbone:    %s, %dx%d px in [%g, %g], %d features",
        experiment.backbone.name, contract.width_px, contract.height_px, low, high, contract.feature_width,
    )  # fmt: skip


def introduce(stages: Stages, summaries: Summaries) -> None:
    """Writes what TensorBoard shows once a run: options, flagfile, graph of the model as it is run."""
    experiment, config = stages.experiment, stages.experiment.config
    swept = {
        name: value
        for section in (config.model, config.plan, config.update)
        for name, value in dataclasses.asdict(section).items()
    }
    swept |= {"source": config.data.source, "seed": config.run.seed}
    values = {name: json.dumps(v) if isinstance(v, tuple) else v for name, v in swept.items()}
    summaries.hparams(values, session=os.path.basename(config.run.workdir.rstrip("/")))
    flagfile = "\n".join("    " + line for line in to_flagfile(experiment.asked).splitlines())
    summaries.text("train", "flagfile", flagfile)
    if experiment.strategy.num_replicas_in_sync == 1:
        summaries.graph("train", stages.current().graph())


def show_pictures(experiment: Experiment, summaries: Summaries, phase: Phase) -> None:
    """Writes a grid of the first pictures of a phase as the network sees them."""
    first = experiment.pipeline.training(
        experiment.splits.indices["train"],
        start_step=phase.start_step,
        stop_step=phase.start_step + 1,
        augment=phase.spec.augment,
    )
    batch = next(iter(first))
    shown = [i for i, real in enumerate(batch["mask"].numpy()) if real][:16]
    images = unscale(batch["image"].numpy()[shown], experiment.backbone.contract)
    names = experiment.source.class_names
    titles = [names[label] for label in batch["label"].numpy()[shown]]
    if "target" in batch:
        titles = [_mixture(names, target) for target in batch["target"].numpy()[shown]]
    from trainer.record.figures import picture_grid  # Late, as in `evaluate`.

    png = picture_grid(images, titles)
    # Of the update they are for: a run that starts again at the phase's first step shows them again.
    summaries.image("train", f"train_images/{phase.spec.name}", png, step=phase.start_step + 1)


def _mixture(names: Sequence[str], target: np.ndarray) -> str:
    """Returns e.g. 'roses 0.7 tulips 0.3' of a soft label [K]."""
    parts = [(share, name) for share, name in zip(target.tolist(), names, strict=True) if share >= 0.005]
    return " ".join(f"{name} {share:.2g}" for share, name in sorted(parts, reverse=True))


def draw_curves(experiment: Experiment, workdir: Workdir, summaries: Summaries) -> None:
    """Draws loss and accuracy of the whole run, with the starts of its phases."""
    from trainer.record.curves import learning_curves, read_metrics  # Late, as in `evaluate`.

    plan = experiment.plan
    png = learning_curves(
        read_metrics(workdir.metrics_jsonl),
        phases=[(phase.spec.name, phase.start_step / plan.steps_per_epoch) for phase in plan.phases],
        title=f"{experiment.backbone.name}, {experiment.backbone.contract.width_px} px",
    )
    write_bytes(workdir.report / "learning_curves.png", png)
    # Where a run that is started again at its end writes it again.
    summaries.image("validation", "learning_curves", png, step=plan.total_steps)
