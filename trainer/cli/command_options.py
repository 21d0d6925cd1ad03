"""Options of single commands."""

from dataclasses import dataclass

from trainer.cli.declare import (
    AT_LEAST_1,
    FOR_TENSORFLOW,
    LOCAL,
    SHARE,
    calls,
    of_validation,
    option,
    part_of,
    rising_shares,
    which_checkpoint,
)
from trainer.registry import Bounds


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
        "best",
        "Checkpoint to evaluate, predict with, explain or export: best, latest, or a step number.",
        identity=False,
        short=True,
        check=which_checkpoint,
    )
    report_dir: str = option(
        "",
        "Folder for what evaluate finds; default report/ below --workdir for the split that train ends with, "
        "report/NAME/ for another split or source.",
        identity=False,
        path=LOCAL,
    )


@dataclass(frozen=True)
class PredictConfig:
    """Prediction"""

    model: str = option(
        "",
        "Exported model that predict takes instead of --workdir: a SavedModel folder or a .tflite file.",
        identity=False,
        short=True,
        path=LOCAL,
    )
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
        bounds=AT_LEAST_1,
    )
    threshold: float = option(
        0.0,
        "A prediction with a lower probability than this is marked as uncertain, from 0 to 1.",
        identity=False,
        short=True,
        bounds=SHARE,
    )


@dataclass(frozen=True)
class ExplainConfig:
    """Explanation"""

    saliency: str = option(
        "auto",
        "How explain finds what a decision goes by; --helpfull lists what there is. auto: grad_cam where the "
        "network's last feature map is known, else integrated_gradients.",
        check=calls("grad_cam"),
        identity=False,
        short=True,
    )
    explain_class: str = option(
        "", "Class whose probability is explained; default the predicted one.", identity=False
    )
    ig_steps: int = option(
        64,
        "Points on the path of integrated gradients: more are more exact.",
        identity=False,
        bounds=AT_LEAST_1,
    )
    num_explained: int = option(
        16,
        "How many of the worst mistakes explain shows when no pictures are named.",
        identity=False,
        bounds=AT_LEAST_1,
    )


@dataclass(frozen=True)
class ExportConfig:
    """Export"""

    formats: str = option(
        "saved_model,float32,float16,dynamic_range,int8",
        "What export writes: saved_model; TFLite as float32, float16, dynamic_range and int8; and onnx, for "
        "which tf2onnx, onnx and onnxruntime must be installed.",
        identity=False,
        short=True,
    )
    export_dir: str = option(
        "", "Folder that export writes; default export/ below --workdir.", identity=False, path=FOR_TENSORFLOW
    )
    calibration_pictures: int = option(
        200,
        "Training pictures that the ranges of int8 are taken from.",
        identity=False,
        bounds=AT_LEAST_1,
    )
    max_accuracy_drop: float = option(
        1.0,
        "The export fails, with status 1, when one of its models loses more accuracy than this on "
        "validation: a share from 0 to 1.",
        identity=False,
        short=True,
        bounds=SHARE,
    )


@dataclass(frozen=True)
class ServeConfig:
    """Serving"""

    bind: str = option(
        "127.0.0.1",
        "Address that serve listens on. Any other lets others on the network use the page.",
        identity=False,
    )
    port: int = option(
        8000,
        "Port that serve listens on; 0: any that is free.",
        identity=False,
        short=True,
        bounds=Bounds(at_least=0, at_most=65_535),
    )
    max_upload_mb: int = option(
        20,
        "The largest picture file that serve takes, in MiB.",
        identity=False,
        bounds=AT_LEAST_1,
    )


@dataclass(frozen=True)
class InspectConfig:
    """Inspect"""

    verbose: bool = option(
        False,
        "Show in inspect besides all options, the network's contract, all variables and classes, and what is "
        "cached.",
        identity=False,
    )


@dataclass(frozen=True)
class BenchmarkConfig:
    """Results and measurements"""

    output: str = option(
        "",
        "File for what benchmark and doctor find (.json), the lines of predict, or the table of compare "
        "(.json, .csv, .md); default the terminal. Folder of explain; default explain/ below --workdir.",
        identity=False,
        path=LOCAL,
    )
    repeats: int = option(
        5,
        "How often each thing is measured.",
        identity=False,
        bounds=AT_LEAST_1,
    )


@dataclass(frozen=True)
class FindLrConfig:
    """Learning-rate finder"""

    find_lr_range: str = option("1e-6,1", "Lowest and highest rate that find_lr tries.", identity=False)
    find_lr_steps: int = option(
        100,
        "Updates from the lowest rate to the highest.",
        identity=False,
        bounds=Bounds(at_least=10),
    )
    find_lr_phase: str = option(
        "", "Phase whose rate is looked for, by name; default the first one.", identity=False
    )


@dataclass(frozen=True)
class LearningCurveConfig:
    """Learning curve"""

    curve_shares: str = option(
        "5%,10%,20%,50%,100%",
        "Shares of train that learning_curve fits the head to, rising.",
        identity=False,
        check=rising_shares,
    )
    curve_draws: int = option(
        5,
        "How often each share but all of it is drawn.",
        identity=False,
        bounds=Bounds(at_least=2, at_most=100),
    )


@dataclass(frozen=True)
class AuditConfig:
    """Audit"""

    audit_folds: int = option(
        5,
        "Parts that audit divides all pictures into; the labels of each are judged by a head fitted to the "
        "others.",
        identity=False,
        bounds=Bounds(at_least=2, at_most=100),
    )
    audit_shown: int = option(
        200,
        "How many pictures of a kind the page of audit shows at most; its tables have all.",
        identity=False,
        bounds=AT_LEAST_1,
    )


@dataclass(frozen=True)
class SweepConfig:
    """Sweep"""

    search: tuple[str, ...] = option(
        (),
        "Option that sweep searches, and its values, repeatable: 'dropout=0,0.2,0.5', "
        "'frozen_learning_rate=log(1e-4,1e-2)', 'loss=cross_entropy|focal(uniform(0,5))'; ranges are log, "
        "uniform, int, logint and choice(a|b). phase.1.lr is a field of the first --phase.",
        identity=False,
        short=True,
    )
    space: str = option(
        "",
        "YAML file with more of them, also of options that are searched only beside some value of another.",
        identity=False,
        path=LOCAL,
    )
    trials: int = option(
        50, "How many trials there are in the end.", identity=False, short=True, bounds=AT_LEAST_1
    )
    metric: str = option(
        "validation_accuracy",
        "What the best trial is best in, of validation with the weights that a run keeps: loss, accuracy, "
        "and what else is logged, each with validation_ before it.",
        identity=False,
        short=True,
        check=of_validation,
    )
    sampler: str = option(
        "tpe",
        "How options are chosen: by what was good so far (tpe, Bergstra et al., 2011), at random, or all "
        "combinations one after another (grid).",
        choices=("tpe", "random", "grid"),
        identity=False,
    )
    pruner: str = option(
        "none",
        "Which trials end early, judged after each evaluation: those worse than the median of the others "
        "at that time, those that hyperband gives no more (Li et al., 2018), or none.",
        choices=("none", "median", "hyperband"),
        identity=False,
    )
    study: str = option(
        "",
        "Where trials are recorded: URL of a database, such as postgresql+psycopg://user@host/name, which "
        "many machines may share; default a file in --workdir.",
        identity=False,
    )
    jobs: int = option(
        1,
        "Processes on this machine that train trials at the same time, each on a GPU of its own where there "
        "are several.",
        identity=False,
        bounds=Bounds(at_least=1, at_most=1000),
    )
    repeat_seeds: int = option(
        3,
        "With how many other seeds the best three trials are repeated before one of them is named; 0: the "
        "best one is named as it is.",
        identity=False,
        bounds=Bounds(at_least=0, at_most=100),
    )


@dataclass(frozen=True)
class FeaturesConfig:
    """Features"""

    shard: str = option(
        "1/1",
        "Which part of the features is computed, such as 3/16: the third of sixteen, one for each machine.",
        identity=False,
        short=True,
        check=part_of,
    )
