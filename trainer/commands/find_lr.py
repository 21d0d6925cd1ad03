"""`find_lr`: trains for a few updates at a rising learning rate, draws the loss, and proposes a rate."""

import logging
from pathlib import Path

import numpy as np

from trainer.cli.config import Config
from trainer.cli.flags import CommandLine
from trainer.cli.phase_specs import LARGEST, PhaseSpec
from trainer.loop.lr_range import propose, range_spec, rising, smoothed
from trainer.loop.objectives import start
from trainer.loop.phases import make_plan
from trainer.record.progress import counting
from trainer.record.summaries import Summaries
from trainer.record.workdir import Workdir
from trainer.run.experiment import Experiment
from trainer.run.finished_run import take_weights
from trainer.run.fitting import PretrainedFeatures, fit_head
from trainer.run.new_pictures import named_pictures
from trainer.run.session import make_stages
from trainer.store.files import write_bytes, write_json
from trainer.values import TrainerError, UsageError, parse_pair

_log = logging.getLogger("trainer")
FOLDER = "find_lr"


def run(line: CommandLine) -> int:
    """Writes find_lr/ in the workdir, and returns the exit status; of a run that is there, it is of that."""
    outer = Workdir(line.config.run.workdir)
    config = outer.or_run(line.config, line.given)
    if config.fits:
        raise UsageError(
            f"--head={config.model.head} is fitted, not trained: there is no learning rate to find"
        )
    text = config.find_lr.find_lr_range
    low, high = parse_pair(text, flag="--find_lr_range", what="rates such as 1e-6,1")
    if low <= 0:
        raise UsageError(f"--find_lr_range={text}: the lowest rate must be above 0")
    if high / low > LARGEST:
        raise UsageError(
            f"--find_lr_range={text}: the highest rate must be {LARGEST:g} times the lowest or less"
        )
    outer.make()
    with outer.lock():
        experiment = Experiment(config)
        spec = _phase(experiment, config.find_lr.find_lr_phase)
        with named_pictures(experiment.source, experiment.scan):
            rates, losses = _measure(experiment, spec, low=low, high=high)
        try:
            proposed = propose(rates, losses)
        except ValueError as error:
            raise TrainerError(
                f"phase {spec.name}: {error} from {low:g} to {(rates or [high])[-1]:.3g}; try another "
                "--find_lr_range, or more --find_lr_steps"
            ) from None
        folder = Path(outer.root) / FOLDER
        _write(folder, spec, rates, losses, proposed=proposed)
    _log.info("learning rate for phase %s: %.2g, where the loss falls fastest", spec.name, proposed)
    _log.info("curve:       %s", folder / "find_lr.png")
    return 0


def _phase(experiment: Experiment, name: str) -> PhaseSpec:
    specs = {phase.spec.name: phase.spec for phase in experiment.plan.phases}
    if name and name not in specs:
        raise UsageError(f"--find_lr_phase={name} is not one of {', '.join(specs)}")
    return specs[name] if name else experiment.plan.phases[0].spec


def _measure(
    experiment: Experiment, spec: PhaseSpec, *, low: float, high: float
) -> tuple[list[float], list[float]]:
    """Returns the rates and the losses of the updates."""
    config: Config = experiment.config
    num_steps = config.find_lr.find_lr_steps
    train = experiment.splits.indices["train"]
    experiment.plan = make_plan(
        [range_spec(spec, low=low, high=high, num_steps=num_steps)],
        num_examples=len(train),
        batch_size=config.plan.batch_size,
    )
    if config.model.init_from:
        take_weights(experiment)
    start(experiment.recipe.objective)
    rates, losses = [], []
    with experiment.strategy.scope():
        stages = make_stages(experiment, decided={})
        # Where the head is fitted before it trains, rates are for that one.
        fit_head(PretrainedFeatures(stages))
        update = stages.current().make_run()
        iterator = iter(stages.current().training(0))
        what = f"find_lr, {low:g} to {high:g}"
        with counting(config.run.progress, what, num_steps, unit="updates") as done:
            for rate, loss in rising(stages.state, update, iterator):
                rates.append(rate)
                losses.append(loss)
                done(1)
    return rates, losses


def _write(
    folder: Path, spec: PhaseSpec, rates: list[float], losses: list[float], *, proposed: float
) -> None:
    from trainer.report.figures import learning_rate_figure  # Late: matplotlib takes a second.

    means = smoothed(losses)
    png = learning_rate_figure(
        np.array(rates), np.array(losses), means, proposed=proposed, title=f"phase {spec.name}"
    )
    write_bytes(folder / "find_lr.png", png)
    values = {"phase": spec.name, "proposed": proposed, "rates": rates, "losses": losses}
    write_json(folder / "find_lr.json", {**values, "smoothed": means.tolist()})
    inner = Workdir(str(folder))
    summaries = Summaries(inner)
    summaries.cut_back(None)
    for step, (rate, loss, mean) in enumerate(zip(rates, losses, means.tolist(), strict=True), 1):
        summaries.scalars("train", step, {"learning_rate": rate, "loss": loss, "smoothed_loss": mean})
    summaries.image("train", "find_lr", png, step=len(rates))
    summaries.close()
