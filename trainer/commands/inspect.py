"""`inspect`: shows what a run is, before it is one, and stops."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

from trainer.cli.config import Config
from trainer.cli.declare import NETWORK, PICTURES, RUN, SPLITS, budget_secs
from trainer.cli.flags import CommandLine
from trainer.cli.phase_specs import PhaseSpec
from trainer.loop.optimizers import multipliers
from trainer.model.freezing import Row, format_table, group_lines, summary
from trainer.record.checkpoints import Checkpoints
from trainer.record.workdir import Workdir
from trainer.report.shortening import MOST_LETTERS, shortened_apart
from trainer.run.experiment import Experiment
from trainer.run.feature_cache import feature_folder, why_uncached
from trainer.run.introduction import check_network, check_record
from trainer.store.feature_store import FeatureStore

# A line with the counts of more is longer than anybody reads.
MOST_CLASSES = 20
ENDS_SHOWN = 3


def run(line: CommandLine) -> int:
    """Prints what the configuration amounts to, and returns the exit status."""
    config = line.config
    workdir = Workdir(config.run.workdir) if config.run.workdir else None
    if workdir and line.is_dry:
        experiment = _as_trained(workdir, line)
    else:
        experiment = Experiment(workdir.or_run(config, line.given) if workdir else config)
    is_begun = workdir and workdir.run_json.exists()
    verbose = experiment.asked.inspect.verbose
    if "source" not in line.given and not is_begun:
        print("no --source, so the pictures are drawn; of your own, --source=folder:PATH")
    print(_overview(experiment, verbose=verbose))
    if verbose:
        print("\n" + _details(experiment), end="")
    else:
        print("\n--verbose shows all options, variables and what is cached")
    return 0


def _as_trained(workdir: Workdir, line: CommandLine) -> Experiment:
    """Returns what `train` would go by; what it would write is compared with what is there.

    Raises:
      UsageError: it would refuse the options in this workdir, or
      TrainerError: as those, or the pictures, network or plugins, of another run.
    """
    if not Checkpoints(workdir.checkpoints, keep=1).exist():
        return Experiment(line.config)  # An attempt that saved nothing binds nobody.
    if "source" not in line.given:
        workdir.require_unnamed(line.config.data.source)
    config = workdir.as_begun(line.config, line.given)
    workdir.check_same_run(config, found_out=(PICTURES, SPLITS, NETWORK, RUN))
    experiment = Experiment(config)
    check_network(experiment, workdir)
    check_record(experiment, workdir, writes=False)
    return experiment


def _overview(experiment: Experiment, *, verbose: bool) -> str:
    """Returns what one looks for before training: splits, plan, what trains; a screen."""
    config, contract, plan = experiment.config, experiment.backbone.contract, experiment.plan
    low, high = contract.value_range
    lines = [
        f"pictures: {config.data.source}, {len(experiment.source.class_names):,} classes",
        f"splits: {experiment.splits.how}",
    ]
    for split, indices in experiment.splits.indices.items():
        lines.append(f"  {split:<11}{len(indices):>8,}  ({_counts(experiment, split, verbose=verbose)})")
    if "test" not in experiment.splits.indices:
        lines.append("  no test split: the score will be that of validation, slightly too good")
    lines += [
        f"backbone: {experiment.backbone.name}, {contract.width_px}x{contract.height_px} px in "
        f"[{low:g}, {high:g}], {contract.feature_width:,} features",
        "",
        *_planned_later(config),
        f"plan: {plan.steps_per_epoch:,} steps an epoch, {plan.total_steps:,} in all",
        *(f"  {phase.describe()}" for phase in plan.phases),
    ]
    for phase in plan.phases:
        rows = experiment.classifier.freezing_table(phase.spec.train)
        lines += [
            "",
            f"phase {phase.spec.name}: {summary(rows)}",
            *group_lines(rows),
            f"  features: {_frozen_part(experiment, phase.spec)}",
        ]
    return "\n".join(lines)


def _planned_later(config: Config) -> list[str]:
    """Returns a line on a plan that is made when training begins, by how fast this machine is then."""
    budget = config.plan.budget
    if not budget_secs(budget) or (config.run.workdir and Workdir(config.run.workdir).read_chosen()):
        return []
    return [f"--budget={budget} is planned when training begins, by steps measured then; without it:"]


def _counts(experiment: Experiment, split: str, *, verbose: bool) -> str:
    return told_counts(experiment.class_counts(split), all_of=verbose)


def _details(experiment: Experiment) -> str:
    """Returns all there is to know besides: options, contract, every variable, what is cached."""
    config, contract = experiment.asked, experiment.backbone.contract
    parts = [f"configuration (identity {config.identity()})\n{_indented(config.flagfile())}"]
    fields = "".join(
        f"  {field.name:<14}{getattr(contract, field.name)}\n" for field in dataclasses.fields(contract)
    )
    parts.append(f"contract of {experiment.backbone.name}\n{fields}")
    for phase in experiment.plan.phases:
        rows = experiment.classifier.freezing_table(phase.spec.train)
        table = format_table(rows, multipliers=_multipliers(experiment, rows))
        parts.append(f"variables in phase {phase.spec.name}\n{table}\n")
    parts.append(_cache(config.run.cache_dir, limit_gb=config.speed.cache_limit_gb))
    return "\n".join(parts)


def told_counts(counts: Mapping[str, int], *, all_of: bool = False) -> str:
    """Returns how many examples each class has; of many classes, the smallest and the largest or `all_of`."""
    if all_of or len(counts) <= MOST_CLASSES:
        return ", ".join(f"{name} {count:,}" for name, count in counts.items())
    by_size = sorted(counts, key=lambda name: counts[name])
    ends = by_size[:ENDS_SHOWN] + by_size[-ENDS_SHOWN:]
    short = shortened_apart(ends, MOST_LETTERS)
    smallest, *_, largest = (counts[name] for name in by_size)
    few, many = (
        ", ".join(f"{short[name]} {counts[name]:,}" for name in names)
        for names in (ends[:ENDS_SHOWN], ends[ENDS_SHOWN:])
    )
    empty = sum(not count for count in counts.values())
    return (
        f"{len(counts):,} classes of {smallest:,} to {largest:,}"
        + (f", {empty:,} of them empty" if empty else "")
        + f"; fewest: {few}; most: {many}; --verbose lists all"
    )


def _multipliers(experiment: Experiment, rows: Sequence[Row]) -> dict[str, float]:
    update, classifier = experiment.config.update, experiment.classifier
    return multipliers(
        [row.name for row in rows if row.state == "train"],
        all_names=list(classifier.named_variables),
        rules=update.lr_multiplier,
        layer_decay=update.layer_decay,
        layers=classifier.named_layers,
    )


def _frozen_part(experiment: Experiment, spec: PhaseSpec) -> str:
    """Returns what of a phase's network is computed once, or why nothing is."""
    if experiment.config.speed.feature_cache == "off":
        return "computed in each epoch, as --feature_cache=off asks for"
    why, cut = why_uncached(experiment, spec), experiment.cut(spec)
    if why or cut is None:
        return f"computed in each epoch: {why}"
    kilobytes = math.prod(cut.shape) * 4 / 1e3
    return f"computed once up to {cut.name}, {'x'.join(map(str, cut.shape))}: {kilobytes:,.1f} KB a picture"


def _cache(cache_dir: str, *, limit_gb: float) -> str:
    """Returns what the feature cache holds, last used first."""
    folder = feature_folder(cache_dir)
    entries = FeatureStore(folder, limit_bytes=int(limit_gb * 1e9)).entries()
    total = sum(entry.num_bytes for entry in entries) / 1e6
    lines = [f"feature cache: {folder}, {len(entries)} entries, {total:,.1f} MB of at most {limit_gb:g} GB"]
    lines += [
        f"  {entry.digest[:12]}  {entry.num_bytes / 1e6:>9,.1f} MB  used {entry.last_used:%Y-%m-%d %H:%M}  "
        f"{entry.describe}"
        for entry in entries
    ]
    return "\n".join(lines) + "\n"


def _indented(text: str) -> str:
    return "".join(f"  {line}\n" for line in text.splitlines())
