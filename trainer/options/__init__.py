"""Every option of the project, once: type, default, unit and help.

`config.py` makes the configuration of a run from these, `flags.py` the command line. Standard library
only: `--help` must not wait for TensorFlow.
"""

from trainer.options.commands import (
    BenchmarkConfig,
    EvaluateConfig,
    ExplainConfig,
    ExportConfig,
    FindLrConfig,
    InspectConfig,
    PredictConfig,
    ServeConfig,
)
from trainer.options.data import DataConfig
from trainer.options.model import ModelConfig
from trainer.options.plan import PlanConfig, UpdateConfig
from trainer.options.run import GuardConfig, RunConfig
from trainer.options.speed import SpeedConfig

__all__ = [
    "BenchmarkConfig",
    "DataConfig",
    "EvaluateConfig",
    "ExplainConfig",
    "ExportConfig",
    "FindLrConfig",
    "GuardConfig",
    "InspectConfig",
    "ModelConfig",
    "PlanConfig",
    "PredictConfig",
    "RunConfig",
    "ServeConfig",
    "SpeedConfig",
    "UpdateConfig",
]
