"""`inspect`: shows what a run is, before it is one, and stops."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

from trainer.cli.flags import CommandLine
from trainer.cli.phase_specs import PhaseSpec
from trainer.loop.optimizers import multipliers
from trainer.model.freezing import Row, format_table, summary
from trainer.record.workdir import Workdir
from trainer.report.shortening import MOST_LETTERS, shortened_apart
from trainer.run.experiment import Experiment
from trainer.run.feature_cache import feature_folder, why_uncached
from trainer.store.feature_store import FeatureStore

# A line with the counts of more is longer than anybody reads.
MOST_CLASSES = 20
ENDS_SHOWN = 3


def run(line: CommandLine) -> int:
    """Prints what the configuration amounts to, and returns the exit status."""
    config = line.config
    if config.run.workdir and Workdir(config.run.workdir).run_json.exists():
        config = Workdir(config.run.workdir).read_config().replace(**line.given)
        config.require_unruled(line.given)
    experiment = Experiment(config)
    contract = experiment.backbone.contract
    print(f"configuration (identity {config.identity()})\n{_indented(config.flagfile())}")
    print(f"splits: {experiment.splits.how}")
    for split, indices in experiment.splits.indices.items():
        counts = told_counts(experiment.class_counts(split), all_of=config.inspect.verbose)
        print(f"  {split:<11}{len(indices):>8,}  ({counts})")
    print(f"\nbackbone: {experiment.backbone.name}")
    for field in dataclasses.fields(contract):
        print(f"  {field.name:<14}{getattr(contract, field.name)}")
    print(
        f"\nplan: {experiment.plan.steps_per_epoch:,} steps an epoch, {experiment.plan.total_steps:,} in all"
    )
    for phase in experiment.plan.phases:
        print(f"  {phase.describe()}")
    for phase in experiment.plan.phases:
        rows = experiment.classifier.freezing_table(phase.spec.train)
        print(f"\nvariables in phase {phase.spec.name}: {summary(rows)}")
        print(format_table(rows, multipliers=_multipliers(experiment, rows)))
        print(f"features in phase {phase.spec.name}: {_frozen_part(experiment, phase.spec)}")
    print("\n" + _cache(config.run.cache_dir, limit_gb=config.speed.cache_limit_gb), end="")
    return 0


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
