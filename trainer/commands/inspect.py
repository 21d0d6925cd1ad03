"""`inspect`: shows what a run is, before it is one, and stops."""

import dataclasses

from trainer.experiment import Experiment
from trainer.flags import CommandLine, to_flagfile
from trainer.model.freezing import format_table, freezing_table, summary
from trainer.record.workdir import Workdir


def run(line: CommandLine) -> int:
    """Prints what the configuration amounts to, and returns the exit status."""
    config = line.config
    if config.run.workdir and Workdir(config.run.workdir).run_json.exists():
        config = Workdir(config.run.workdir).read_config().replace(**line.given)
    experiment = Experiment(config)
    contract = experiment.backbone.contract
    print(f"configuration (identity {config.identity()})\n{_indented(to_flagfile(config))}")
    print(f"splits: {experiment.splits.how}")
    for split, indices in experiment.splits.indices.items():
        counts = ", ".join(f"{name} {n:,}" for name, n in experiment.class_counts(split).items())
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
        rows = freezing_table(experiment.classifier.named_variables, phase.spec.train)
        print(f"\nvariables in phase {phase.spec.name}: {summary(rows)}\n{format_table(rows)}")
    return 0


def _indented(text: str) -> str:
    return "".join(f"  {line}\n" for line in text.splitlines())
