"""What a run says of itself, from first to last: its record, TensorBoard's first pages, figures, the end."""

import dataclasses
import datetime
import hashlib
import json
import logging
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trainer.cli.config import Config
from trainer.data.decode import unscale
from trainer.loop.evaluator import Evaluation
from trainer.loop.monitoring import profile_range, real_values
from trainer.loop.phases import Phase, Plan
from trainer.loop.state import TrainState
from trainer.model.backbones import libraries_of
from trainer.model.weights import network_digests
from trainer.plugins import load_plugins
from trainer.precision import left_out
from trainer.record.summaries import Summaries
from trainer.record.workdir import Workdir
from trainer.report.words import told_score
from trainer.run.experiment import Experiment, told_classes
from trainer.run.near_pictures import write_near_duplicates
from trainer.run.relabelling import keep_table
from trainer.run.stages import Stages
from trainer.store.files import write_bytes
from trainer.store.provenance import code, versions
from trainer.values import TrainerError, composed

_log = logging.getLogger("trainer")
# Times the lowest validation loss: what over-fitting alone does not come to.
_RISEN = 5
# The loss and the task of which the least loss is known.
_SMOOTHED = ("cross_entropy", "single_label")
# What a start writes as it finds it. All else was recorded under way, and holds for the rest of the run.
RENEWED_FACTS = (
    "format", "identity", "config", "first_names", "class_names", "layers", "contract", "versions",
    "precision", "plugins", "finished",
)  # fmt: skip
MOST_ROWS = 200


def record(experiment: Experiment, workdir: Workdir, stages: Stages, *, network: Mapping[str, str]) -> None:
    """Writes what the run is, and says in a few lines what it begins with.

    Args:
      experiment: of the run.
      workdir: of the run.
      stages: say in which precisions it computes.
      network: digests of the network without the weights that the run gave it, by name.

    Raises:
      UsageError: --profile_steps is not of this plan.
    """
    if text := experiment.config.run.profile_steps:
        profile_range(text, total_steps=experiment.plan.total_steps)
    recorded = check_record(experiment, workdir)
    copies = [str(workdir.plugins.absolute() / plugin["name"]) for plugin in recorded]
    # The flagfile of the run is for the run as it is, not for making it longer.
    config = experiment.asked.replace(extend=False, plugin=copies)
    before = workdir.read_facts()
    kept = {name: value for name, value in before.items() if name not in RENEWED_FACTS}
    workdir.write_run(
        config,
        flagfile=config.flagfile(),
        class_names=experiment.source.class_names,
        layers=len(experiment.classifier.named_layers),
        contract=dataclasses.asdict(experiment.backbone.contract),
        versions={**versions(), **libraries_of(experiment.backbone)},
        precision=stages.arithmetic.decided,
        **({"plugins": recorded} if recorded else {}),
        **{
            "began": str(datetime.date.today()),
            "left_out": left_out(),
            "code": code(),
            "code_changes": [],
            "rollbacks": [],
            "network": dict(network),
            **({"chosen": experiment.chosen} if experiment.chosen else {}),
            **kept,
        },
    )
    write_near_duplicates(experiment, workdir)
    sizes = ", ".join(f"{name} {len(part):,}" for name, part in experiment.splits.indices.items())
    _log.info(
        "pictures:    %s, %d classes; %s", config.data.source, len(experiment.source.class_names), sizes
    )
    _log.info("splits:      %s", experiment.splits.how)
    contract = experiment.backbone.contract
    low, high = contract.value_range
    pictures = {"stretch": "", "crop": ", pictures cropped", "pad": ", pictures padded"}[contract.fit]
    _log.info(
        "backbone:    %s, %dx%d px in [%g, %g], %d features%s",
        experiment.backbone.name, contract.width_px, contract.height_px, low, high, contract.feature_width,
        pictures + (", antialiased" if contract.antialias else ""),
    )  # fmt: skip


def check_network(experiment: Experiment, workdir: Workdir) -> dict[str, str]:
    """Makes sure that the network, as it comes, is the one that a run here began with.

    Returns:
      Digests of it, by name.

    Raises:
      TrainerError: the network, its layers or the run in --init_from are others.
    """
    specs = [phase.spec for phase in experiment.plan.phases]
    workdir.check_layers(len(experiment.classifier.named_layers), specs)
    network = network_digests(experiment.backbone)
    workdir.check_network(experiment.asked, network)
    workdir.check_start(experiment.asked)
    return network


def check_record(experiment: Experiment, workdir: Workdir, *, writes: bool = True) -> list[dict[str, Any]]:
    """Writes who is in which split, and the plugins, or compares with what an earlier start wrote.

    Args:
      experiment: of the run.
      workdir: of the run.
      writes: whether what is not there is written; else only what is there is compared.

    Returns:
      What is recorded of the plugins.

    Raises:
      TrainerError: pictures, classes or plugins are no longer those that the run began with.
    """
    was, now = workdir.read_facts().get("class_names"), experiment.source.class_names
    if was is not None and [*map(composed, was)] != [*map(composed, now)]:
        raise TrainerError(
            f"{workdir.root} tells {told_classes(was)} apart, in this order, and the pictures have "
            f"{told_classes(now)}: its head means something else; choose another --workdir"
        )
    plugins = {plugin.name: plugin.source for plugin in load_plugins(experiment.asked.run.plugin)}
    recorded = workdir.keep_plugins(plugins) if writes else workdir.check_plugins(plugins)
    weights = experiment.weights_digest()
    if writes:
        keep_table(experiment.asked, workdir)
    elif not workdir.splits_json.exists():
        return recorded
    workdir.write_or_check_splits(
        experiment.split_record(),
        config=experiment.asked,
        how=experiment.splits.how,
        order=experiment.splits.order,
        shared=experiment.shared,
        **({"near_duplicates": experiment.near_groups} if experiment.near_pairs is not None else {}),
        left_out=experiment.left_out,
        missing_classes=experiment.missing,
        **({"weights": weights} if weights else {}),
    )
    return recorded


def tell_finished(workdir: Workdir, report: Mapping[str, Any], *, may_grow: bool) -> None:
    """Says of a run that was started again after its end what it has, and what can be done with it.

    Args:
      workdir: of the run.
      report: what its metrics.json holds.
      may_grow: whether --extend goes on with it, which a learning rate that falls to the end of a phase does
        not allow.
    """
    _log.info(
        "%s is finished: %s, weights of step %d. Nothing is left to do",
        workdir.root, told_score(report), report["step"],
    )  # fmt: skip
    _log.info("report:      %s", workdir.report / "index.html")
    evaluate = shlex.join(["evaluate", f"--workdir={workdir.root}", "--source=folder:PATH"])
    begin = shlex.quote(f"--init_from={workdir.root}")
    longer = "--extend and longer phases" if may_grow else f"{begin} begins another run with these weights"
    _log.info("ways on:     %s; %s; another --workdir for another run", longer, evaluate)


def introduce(stages: Stages, summaries: Summaries) -> None:
    """Writes what TensorBoard shows of any run: options, splits, graph of the model as it is run."""
    experiment, config = stages.experiment, stages.experiment.config
    show_options(experiment, summaries, step=0)
    summaries.text("train", "manifest", _manifest(experiment))
    if config.run.histograms_every:
        summaries.histograms("train", 0, real_values(experiment.classifier.named_variables))
    if experiment.strategy.num_replicas_in_sync == 1:
        summaries.graph("train", stages.current().graph())


def show_options(experiment: Experiment, summaries: Summaries, *, step: int) -> None:
    """Writes the options for TensorBoard, as those from a step on."""
    # All that changes the numbers of a run, as TensorBoard takes it.
    settled = experiment.asked if experiment.chosen else experiment.config
    options = settled.compared_values(experiment.chosen)
    summaries.hparams({name: json.dumps(v) if isinstance(v, tuple) else v for name, v in options.items()})
    changed = experiment.asked.replace(extend=False).flagfile(changed_only=True)
    told = "Changed from the defaults; `flagfile.flags` in the folder of the run has all options.\n\n"
    lines = "\n".join("    " + line for line in changed.splitlines())
    summaries.text("train", "flagfile", told + lines, step=step)


def _manifest(experiment: Experiment) -> str:
    """Returns a table, in Markdown, of how many pictures of each class are in each split, and what is odd."""
    counts = {split: experiment.class_counts(split) for split in experiment.splits.indices}
    names = experiment.source.class_names
    rows = [["class", *counts], ["---", *("---:" for _ in counts)]]
    rows += [[_plain(name), *(f"{of[name]:,}" for of in counts.values())] for name in names[:MOST_ROWS]]
    if len(names) > MOST_ROWS:
        rest = names[MOST_ROWS:]
        rows.append([f"{len(rest):,} more", *(f"{sum(of[n] for n in rest):,}" for of in counts.values())])
    # A picture may have several classes.
    rows.append(["**all**", *(f"**{len(at):,}**" for at in experiment.splits.indices.values())])
    splits = Workdir(experiment.config.run.workdir).splits_json
    facts = {
        "source": experiment.config.data.source,
        "splits": experiment.splits.how,
        "pictures that are in two splits": f"{len(experiment.still_shared):,}",
        "bad pictures left out": f"{len(experiment.left_out):,}",
        f"SHA-256 of {splits.name}": hashlib.sha256(splits.read_bytes()).hexdigest(),
    }
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return table + "\n\n" + "\n".join(f"- {what}: {_plain(value)}" for what, value in facts.items())


def _plain(text: str) -> str:
    """Returns Markdown that shows a text, such as the name of a folder, letter by letter."""
    return re.sub(r"[^\w ]", lambda found: f"&#{ord(found[0])};", text, flags=re.ASCII)


def show_pictures(experiment: Experiment, summaries: Summaries, phase: Phase) -> None:
    """Writes a grid of the first pictures of a phase as the network sees them."""
    first = experiment.pipeline.training(
        experiment.splits.indices["train"],
        start_step=phase.start_step,
        stop_step=phase.start_step + 1,
        augment=experiment.augment(phase.spec),
    )
    batch = next(iter(first))
    shown = [i for i, real in enumerate(batch["mask"].numpy()) if real][:16]
    images = unscale(batch["image"].numpy()[shown], experiment.backbone.contract)
    names = experiment.source.class_names
    titles = [experiment.task.label_words(label, names) for label in batch["label"].numpy()[shown]]
    if "target" in batch:
        titles = [_mixture(names, target) for target in batch["target"].numpy()[shown]]
    from trainer.report.figures import picture_grid  # Late: matplotlib takes a second.

    png = picture_grid(images, titles)
    # Of the update they are for: a run that starts again at the phase's first step shows them again.
    summaries.image("train", f"train_images/{phase.spec.name}", png, step=phase.start_step + 1)


def _mixture(names: Sequence[str], target: np.ndarray) -> str:
    """Returns e.g. 'roses 0.7 tulips 0.3' of a soft label [K]."""
    parts = [(share, name) for share, name in zip(target.tolist(), names, strict=True) if share >= 0.005]
    return " ".join(f"{name} {share:.2g}" for share, name in sorted(parts, reverse=True))


def draw_evaluation(experiment: Experiment, summaries: Summaries, scored: Evaluation, step: int) -> None:
    """Draws which classes are taken for which, and what the probabilities are worth."""
    from trainer.report.writer import evaluation_figures  # Late: it imports scikit-learn.

    figures = evaluation_figures(
        scored.labels,
        scored.logits,
        experiment.source.class_names,
        task=experiment.task,
        title=f"validation, step {step:,} ({len(scored.labels):,} pictures)",
    )
    for tag, png in figures.items():
        summaries.image("validation", tag, png, step=step)


def sum_up(state: TrainState, summaries: Summaries, report: Mapping[str, Any]) -> None:
    """Writes what finished runs are compared by.

    Args:
      state: with the best weights.
      summaries: where to.
      report: of the last score.
    """
    names = (state.classifier.task.best, "loss")
    values = {f"validation_{name}": float(state.best[name].numpy()) for name in names}
    if report["split"] == "test":
        values |= {f"test_{name}": report[name] for name in names}
    known = {name: value for name, value in values.items() if value is not None and math.isfinite(value)}
    summaries.final(known, step=state.plan.total_steps)


def told_in_vain(plan: Plan, state: TrainState, *, metric: str) -> str:
    """Returns a line on the phases after the one that gave the best weights; empty where it was the last.

    Args:
      plan: of the run.
      state: with the best weights.
      metric: by which they are the best.
    """
    step = int(state.best["step"].numpy())
    best = plan.phase_at(max(step - 1, 0))
    if not (after := [phase.spec.name for phase in plan.phases[best.index + 1 :]]):
        return ""
    score = f"validation {metric} {float(state.best[metric].numpy()):.4f}"
    phases = f"phase {' and '.join(after)} did not beat phase {best.spec.name}"
    return f"{phases}: the best weights are those of step {step:,}, with {score}"


def told_of_smoothing(config: Config, *, num_classes: int) -> str:
    """Returns a line on the least loss that training can come to; empty where that is 0, or not known."""
    share = config.update.label_smoothing
    if not share or num_classes < 2 or (config.update.loss, config.data.task) != _SMOOTHED:
        return ""
    other = share / num_classes
    right = 1 - share + other
    least = -right * math.log(right) - (num_classes - 1) * other * math.log(other)
    return (
        f"loss:        in training {least:.2f} at best, by --label_smoothing={share:g}; validation's is "
        "without"
    )


def told_of_rise(workdir: Workdir) -> str:
    """Returns a line on a validation loss that has risen far above its lowest; empty where it has not."""
    from trainer.report.curves import read_metrics  # Late: matplotlib takes a second.

    lines = [line for line in read_metrics(workdir.metrics_jsonl) if line.get("split") == "validation"]
    losses = {line["step"]: line["loss"] for line in lines if isinstance(line.get("loss"), float)}
    if not losses:
        return ""
    best, last = min(losses, key=lambda step: losses[step]), max(losses)
    if losses[last] < max(_RISEN * losses[best], 1):
        return ""
    return (
        f"validation loss rose from {losses[best]:,.4g} at step {best:,} to {losses[last]:,.4g}: a smaller "
        "learning rate may do better (find_lr proposes one)"
    )


def draw_curves(experiment: Experiment, workdir: Workdir, summaries: Summaries) -> None:
    """Draws loss and metric of the whole run, with the starts of its phases."""
    from trainer.report.curves import learning_curves, read_metrics  # Late: matplotlib takes a second.

    plan = experiment.plan
    png = learning_curves(
        read_metrics(workdir.metrics_jsonl),
        phases=[(phase.spec.name, phase.start_step / plan.steps_per_epoch) for phase in plan.phases],
        title=f"{experiment.backbone.name}, {experiment.backbone.contract.width_px} px",
        metric=experiment.task.best,
    )
    write_bytes(workdir.report / "learning_curves.png", png)
    # Where a run that is started again at its end writes it again.
    summaries.image("validation", "learning_curves", png, step=plan.total_steps)
