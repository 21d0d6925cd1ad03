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
class PredictConfig:
    """Prediction"""

    format: str = option(
        "auto",
        "Lines of predict. auto: CSV or a table into an --output that ends in .csv or .txt, a table on a "
        "terminal, else JSON lines.",
        choices=("auto", "table", "jsonl", "csv"),
        identity=False,
        short=True,
    )
    top_k: int = option(
        1,
        "How many classes are named for a picture, the most probable ones; CSV has the probabilities of all.",
        identity=False,
        short=True,
    )
    threshold: float = option(
        0.0,
        "A prediction with a lower probability than this is marked as uncertain, from 0 to 1.",
        identity=False,
        short=True,
    )


@dataclass(frozen=True)
class BenchmarkConfig:
    """Benchmark"""

    output: str = option(
        "",
        "File for what benchmark measures (JSON), or for the lines of predict; default the terminal.",
        identity=False,
    )
    repeats: int = option(5, "How often each thing is measured.", identity=False)


@dataclass(frozen=True)
class FindLrConfig:
    """Learning-rate finder"""

    find_lr_range: str = option("1e-6,1", "Lowest and highest rate that find_lr tries.", identity=False)
    find_lr_steps: int = option(100, "Updates from the lowest rate to the highest.", identity=False)
    find_lr_phase: str = option(
        "", "Phase whose rate is looked for, by name; default the first one.", identity=False
    )
