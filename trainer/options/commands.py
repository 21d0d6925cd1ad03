"""Options of single commands."""

from dataclasses import dataclass

from trainer.options.declare import option


@dataclass(frozen=True)
class EvaluateConfig:
    """Evaluation"""

    eval_split: str = option(
        "test",
        "Split that the evaluate command scores.",
        choices=("train", "validation", "test"),
        identity=False,
        short=True,
    )
    checkpoint: str = option(
        "best", "Checkpoint to evaluate: best, latest, or a step number.", identity=False, short=True
    )


@dataclass(frozen=True)
class BenchmarkConfig:
    """Benchmark"""

    output: str = option("", "JSON file for the numbers of the benchmark command.", identity=False)
    repeats: int = option(5, "How often each thing is measured.", identity=False)
