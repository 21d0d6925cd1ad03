"""Every option of a run, once: type, default, bounds, unit and help."""

from dataclasses import dataclass
from typing import Any

from trainer.cli.declare import (
    AT_LEAST_0,
    AT_LEAST_1,
    FOR_TENSORFLOW,
    LOCAL,
    NETWORK,
    PICTURES,
    RUN,
    SHARE,
    SPLITS,
    budget,
    calls,
    empty_or,
    floors,
    length,
    more_than_0,
    never_or_more_than_0,
    option,
    pattern,
    recommended_parts,
    safe_limit,
    signals,
    updates,
)
from trainer.cli.phase_specs import BN_MODES
from trainer.registry import LARGEST, Bounds
from trainer.values import AUTO, ENGINES, FEATURES, FITS, PRECISIONS

SPLIT_ORDERS = ("source", "permuted", "stratified")
"""Those that --split_order=auto and take_skip stand for, by the source."""
OF_OLDER_RUNS: dict[str, Any] = {
    "resize": "auto", "antialias": False, "features": "", "budget": "", "by_hand": (),
    "image_column": "", "label_column": "", "split_column": "", "group_column": "", "weight_column": "",
    "image_root": "", "groups": "", "folds": 0, "fold": 0,
    "sampling": "natural",
    "near_duplicates": "off", "relabel": "",
    "engine": "auto",
}  # fmt: skip
"""What runs did of before there was an option. At this value it is in no hash, so that they keep theirs."""


@dataclass(frozen=True)
class DataConfig:
    """Pictures"""

    source: str = option(
        "synthetic:flowers",
        "Where the pictures come from, such as folder:photos; --helpfull lists what there is. Given several "
        "times: all of them, with classes matched by name.",
        short=True,
        identity=PICTURES,
    )
    task: str = option(
        "single_label",
        "What labels mean: single_label, one class each; multi_label, any number of classes each, with "
        "thresholds fitted to validation, or multi_label(0.5) with one threshold for all; or what a plugin "
        "registers.",
        check=calls("single_label or multi_label"),
    )
    splits: str = option(
        "auto",
        "Train, validation and test, one after another: shares (50%,25%,25%), numbers of pictures "
        "(1835,918,rest) or named ranges (train[:90%],train[90%:],test). auto: the source's own "
        "splits where it has them, else 80%,10%,10%.",
        short=True,
        identity=SPLITS,
    )
    split_order: str = option(
        "auto",
        "Order that splits are taken from: the source's own; permuted by --split_seed; stratified, which is "
        "permuted so that each split has its share of every class. auto: stratified where the source is "
        "sorted by class, as folders are, else source; take_skip: permuted there, else source.",
        choices=("auto", "take_skip", *SPLIT_ORDERS),
        identity=SPLITS,
    )
    split_seed: int = option(
        42,
        "Seed of the permutation; apart from --seed, so that runs with other seeds share splits.",
        bounds=AT_LEAST_0,
        identity=SPLITS,
    )
    drop_duplicates: bool = option(
        False,
        "Leave pictures out of an earlier split that are byte for byte in a later one.",
        identity=SPLITS,
    )
    image_column: str = option(
        "",
        "Column of a table that names the pictures, or holds them; default the one that does.",
        identity=PICTURES,
    )
    label_column: str = option(
        "",
        "Column of a table that has the labels, or several with commas between them that say 0 or 1 of a "
        "class each; default the one that is called so, or the only one that can be.",
        identity=PICTURES,
    )
    split_column: str = option(
        "",
        "Column of a table that says of which split a picture is; default one named split, or the like, that "
        "says train, validation or test.",
        identity=PICTURES,
    )
    group_column: str = option(
        "",
        "Column of a table with what pictures have in common, such as a patient: no group is in two splits.",
        identity=SPLITS,
    )
    weight_column: str = option(
        "", "Column of a table with the weight of each picture in the loss, 0 or more; default 1 each."
    )
    image_root: str = option(
        "",
        "Folder that the paths in a table begin in; default the folder of the table.",
        identity=PICTURES,
        path=LOCAL,
    )
    groups: str = option(
        "",
        "Regular expression over the names of pictures, such as '^(patient[0-9]+)_': where it finds the same "
        "(in its first bracket, if there is one), pictures are of one group, and no group is in two splits.",
        identity=SPLITS,
        check=pattern,
    )
    folds: int = option(
        0,
        "Divide all pictures into so many parts, three or more, instead of --splits: --fold is for test, the "
        "one after it for validation, the others train. 0: no.",
        identity=SPLITS,
        bounds=AT_LEAST_0,
    )
    fold: int = option(
        0,
        "Which of --folds is for test, from 1 on; cross_validate trains all.",
        identity=SPLITS,
        bounds=AT_LEAST_0,
    )
    near_duplicates: str = option(
        "off",
        "Look for pictures that are one although their bytes differ, such as copies that were rescaled, "
        "mirrored or cropped a little: list pairs and say which are in two splits (report), put all that "
        "hang together into one split (group), or leave them out of the earlier split (drop).",
        choices=("off", "report", "group", "drop"),
        identity=SPLITS,
        short=True,
    )
    relabel: str = option(
        "",
        "CSV, such as audit writes, with columns id, sha256 and new_label: another class for a picture, or "
        "'leave out'. Pictures stay in the splits they were in.",
        identity=PICTURES,
        path=LOCAL,
    )
    exif: str = option(
        "apply", "Turn pictures upright as their EXIF orientation says.", choices=("apply", "ignore")
    )
    # Not of the identity: what they change shows in the record of the splits, which decides.
    on_bad_image: str = option(
        "fail",
        "Pictures that cannot be read, or many of kinds that cannot be decoded: stop before training and "
        "name them, or leave them out of the splits (skip).",
        choices=("fail", "skip"),
        identity=False,
        short=True,
    )
    max_pixels: int = option(
        100_000_000,
        "A picture with more pixels than this is a bad one, however small its file.",
        identity=False,
        bounds=AT_LEAST_1,
    )
    data_dir: str = option(
        "", "Folder of prepared tfds data sets; default $TFDS_DATA_DIR or tfds's own.", identity=False
    )
    checksum: str = option("", "SHA-256 that an archive of pictures must have.", identity=False)
    decode: str = option(
        "exact",
        "Decode JPEGs in full, or at 1/2, 1/4 or 1/8 where that is still as large as the network wants: "
        "faster for large photos, other pixels.",
        choices=("exact", "scaled"),
    )
    memory_budget_mb: int = option(
        64,
        "Encoded pictures, and features, are held in memory up to this many MB each; beyond it they are "
        "read from files.",
        identity=False,
        bounds=AT_LEAST_0,
    )
    synthetic_examples: int = option(
        1000,
        "How many pictures are drawn by a source that draws.",
        bounds=AT_LEAST_1,
    )
    synthetic_seed: int = option(
        0,
        "Seed of the drawn pictures.",
        bounds=AT_LEAST_0,
    )


# Begins the name of a head whose logits start at zero.
ZERO = "zero_"
# Heads that are fitted to features before the first update, and that of them which no update can change.
FITTED = ("probe", "knn")
NEVER_TRAINED = "knn"


@dataclass(frozen=True)
class ModelConfig:
    """Model"""

    backbone: str = option(
        "efficientnet_lite0",
        "Pretrained network, such as keras:MobileNetV2; --helpfull lists what there is.",
        short=True,
        identity=NETWORK,
    )
    weights: str = option(
        "imagenet",
        "Weights of a backbone that has a choice: imagenet, none, or a weights file.",
        path=LOCAL,
        identity=NETWORK,
    )
    image_size: int = option(
        0,
        "Side of the pictures the network sees, in px; 0: what the backbone asks for.",
        short=True,
        bounds=Bounds(at_least=0, at_most=10_000),
    )
    features: str = option(
        "",
        "Features of a transformer with a class token: the token (cls), the mean over the patches (mean), or "
        "both (cls+mean); empty: the token there, and what other networks give.",
        check=empty_or(*FEATURES),
    )
    resize: str = option(
        "auto",
        "How a picture gets the aspect that the network wants, a square mostly: stretch it, crop it to its "
        "middle, or pad it with grey. auto: as the preset of a kerashub: backbone says, with its "
        "smoothing; stretch for all others.",
        choices=(AUTO, *FITS),
        short=True,
    )
    antialias: bool = option(
        False,
        "Smooth pictures when they are made smaller, so that fine detail does not become false patterns.",
    )
    init_from: str = option(
        "",
        "Workdir of another run whose best weights this one begins with, instead of the pretrained ones.",
        short=True,
        identity=RUN,
        path=FOR_TENSORFLOW,
    )
    init_part: str = option(
        "all",
        "What is taken from there: network and head, or the network alone.",
        choices=("all", "backbone"),
    )
    value_range: str = option(
        "", "Pixel values that a backbone wants which leaves it open, e.g. -1,1; default 0,1."
    )
    head: str = option(
        "auto",
        "Layers after the backbone: linear, or mlp(WIDTH,...) with ReLU; zero_linear and zero_mlp(WIDTH,...) "
        "start with logits of zero. probe and knn(20) are fitted in seconds, without updates. auto: "
        "mlp(512), or what --schedule=auto says.",
        short=True,
        check=calls("linear or mlp(512)"),
    )
    logits: str = option(
        "per_class",
        "Logits of the head: one for each class, or, of two classes, one for the second (binary "
        "cross-entropy, decided at 0).",
        choices=("per_class", "one"),
    )
    dropout: float = option(
        0.0,
        "Share of the last features dropped in training, 0 to 1.",
        bounds=Bounds(at_least=0, below=1),
    )


@dataclass(frozen=True)
class PlanConfig:
    """Training"""

    schedule: str = option(
        "recommended",
        "Phases: what experiments/defaults found to be best for this number of pictures, with all options "
        "that are not given (recommended); only the head (frozen), backbone too (finetune), one after the "
        "other (two_phase), the head and then the backbone opened from the top in N - 1 steps (gradual(N)), "
        "or as BiT-HyperRule says, with head, resolution and learning rate (auto). With --head=knn(20) or "
        "probe the default is fit: the head is fitted, and nothing trains.",
        short=True,
    )
    budget: str = option(
        "",
        "How long --schedule=recommended may take on this machine, such as 5min or 1h; or quick, the head "
        "alone, or best, as long as more was found to help.",
        short=True,
        check=budget,
    )
    by_hand: tuple[str, ...] = option(
        (),
        "Options that --schedule=recommended leaves as they are; those that are given are among them.",
        check=recommended_parts,
    )
    phase: tuple[str, ...] = option(
        (),
        "One phase in full, repeatable, instead of --schedule: 'for=5epochs; train=head; lr=1e-3; "
        "lr_schedule=cosine; warmup=1epochs; optimizer=adam; bn=frozen; augment=flip'. train= "
        "takes regexes over variable names, first match wins, not:REGEX freezes; or from_layer= or "
        "unfreeze_top_layers=, as the flags of those names.",
        short=True,
    )
    frozen_for: str = option(
        "10epochs", "Length of the frozen phase (epochs, steps, examples).", short=True, check=length
    )
    finetune_for: str = option(
        "5epochs", "Length of the fine-tuning phase, or of all of them together.", short=True, check=length
    )
    frozen_learning_rate: float = option(1e-3, "Peak learning rate of the frozen phase.", short=True)
    finetune_learning_rate: float = option(1e-4, "Peak learning rate of fine-tuning.", short=True)
    finetune_train: str = option(
        "all", "What trains in fine-tuning: regexes over variable names, as in --phase train=."
    )
    from_layer: str = option(
        "",
        "What trains in fine-tuning: this layer of the network, by name or index, and all after it.",
        short=True,
    )
    unfreeze_top_layers: int = option(
        0,
        "What trains in fine-tuning: the last N layers, counted over backbone and head.",
        bounds=AT_LEAST_0,
    )
    bn: str = option(
        "frozen",
        "BatchNorm statistics while fine-tuning: the stored ones, or the batch's (which moves them).",
        choices=BN_MODES,
    )
    optimizer: str = option("adam", "Update rule: adam, adamw, sgd, rmsprop or lion.")
    momentum: float = option(0.9, "Momentum of sgd.")
    nesterov: bool = option(False, "Nesterov's momentum in sgd.")
    weight_decay: float = option(
        0.0,
        "Decoupled weight decay of adamw, sgd and lion, per unit of learning rate; variables of one "
        "dimension have none, as BatchNorm's and biases but for those of attention in Keras 3.",
    )
    lr_schedule: str = option(
        "constant",
        "Course of the learning rate: constant, cosine(0), linear(0) and exponential(0.01) with what is left "
        "at the end, step(0.33,0.67) with the shares of the phase after which it is divided by 10, "
        "one_cycle, or plateau(0.1,5): times 0.1 when the validation loss has not fallen in 5 evaluations.",
    )
    warmup: str = option("0steps", "Linear warm-up at the start of each phase; % is of the phase.")
    augment: str = option(
        "",
        "Random changes of training pictures, in order, e.g. flip,rotate(0.2),randaugment(2,9) or "
        "flip,mixup(0.2). A phase can override it.",
        short=True,
    )
    average: str = option(
        "",
        "Weights that are scored and kept: an exponential average (ema(0.999)), the mean over the ends of "
        "the epochs in the last quarter of each phase (swa(0.25)), or the last ones.",
    )
    batch_size: int = option(
        32,
        "In predict and explain, pictures at a time; else, examples per update, over all devices.",
        short=True,
        bounds=AT_LEAST_1,
    )


@dataclass(frozen=True)
class UpdateConfig:
    """Updates, in all phases"""

    accumulate: int = option(
        1,
        "Parts of each batch that are computed one after another: the same update in less memory.",
        bounds=AT_LEAST_1,
    )
    objective: str = option(
        "supervised",
        "What an update makes smaller: the loss of the labels, or what a plugin registers.",
        check=calls("supervised"),
    )
    loss: str = option(
        "cross_entropy",
        "Loss of an example: cross_entropy, focal(2), or, of several labels, asymmetric(4,1,0.05).",
        check=calls("cross_entropy or focal(2)"),
    )
    gradient_rule: str = option(
        "plain",
        "Which gradients an update takes: those at the weights, or what a plugin registers.",
        check=calls("plain"),
    )
    metrics: str = option(
        "",
        "What is measured of the examples besides loss and accuracy, such as confidence.",
        check=calls("confidence"),
    )
    label_smoothing: float = option(
        0.0,
        "Share of each label spread evenly over all classes, 0 to 1.",
        bounds=Bounds(at_least=0, below=1),
    )
    class_weights: str = option(
        "", "Weights of the classes in the loss: balanced, or such as roses=2,tulips=0.5."
    )
    sampling: str = option(
        "natural",
        "How often training sees each picture: once an epoch (natural), or in as many draws an epoch, those "
        "of rare classes more often: each class equally often (balanced), or by the root of how many there "
        "are (sqrt).",
        choices=("natural", "balanced", "sqrt"),
    )
    lr_multiplier: tuple[str, ...] = option(
        (), "REGEX=FACTOR on the learning rate of variables, repeatable; the first that matches counts."
    )
    layer_decay: float = option(
        1.0,
        "Factor on the learning rate from each of 12 groups of layers to the one below it, 0 to 1.",
        bounds=Bounds(above=0, at_most=1),
    )
    clip_norm: float = option(
        0.0,
        "Largest norm of all gradients together; 0: no limit.",
        check=safe_limit,
    )
    clip_value: float = option(
        0.0,
        "Largest absolute value in a gradient; 0: no limit.",
        check=safe_limit,
    )
    early_stop: str = option(
        "",
        "Stop a phase when this validation metric stops improving: loss, accuracy, or auc of two classes; of "
        "several labels also map, macro_f1 and micro_f1; empty: off.",
    )
    patience: int = option(
        5,
        "Evaluations without change for the better until --early_stop acts.",
        bounds=AT_LEAST_1,
    )
    min_change: float = option(
        0.0,
        "Smallest change for the better that --early_stop counts.",
        bounds=AT_LEAST_0,
    )


@dataclass(frozen=True)
class SpeedConfig:
    """Speed"""

    precision: str = option(
        "auto",
        "Arithmetic of the network, by TensorFlow's graph rewriter; variables, logits and loss stay "
        "float32. auto: measured for each phase, the faster one.",
        choices=("auto", *PRECISIONS),
        short=True,
    )
    engine: str = option(
        "auto",
        "What runs the part of a network that a phase does not change: tensorflow, or openvino (extra "
        "openvino; on the processor). auto: under --precision=auto, OpenVINO is measured where it is "
        "installed, and taken if it saves a tenth. predict, serve and evaluate may be given another.",
        choices=("auto", *ENGINES),
    )
    feature_cache: str = option(
        "auto",
        "Compute what a frozen network gives only once and keep it on disk: where that is exact (auto), "
        "never, or else fail (require).",
        choices=("auto", "off", "require"),
        identity=False,
        short=True,
    )
    feature_views: int = option(
        0,
        "How many augmented views of each picture a frozen phase keeps; epoch e sees view e modulo this.",
        bounds=AT_LEAST_0,
    )
    picture_cache: str = option(
        "auto",
        "Keep decoded and resized pictures on disk, the same to the last bit, for the epochs after the first "
        "one: where that saves more than it costs, as it does for large photos (auto), never, or else fail "
        "(require).",
        choices=("auto", "off", "require"),
        identity=False,
    )
    cache_limit_gb: float = option(
        20.0,
        "Most GB of features kept, and of pictures; those not used for longest go first.",
        identity=False,
        bounds=Bounds(at_least=0, at_most=1e9),
    )


@dataclass(frozen=True)
class RunConfig:
    """Run"""

    workdir: str = option(
        "",
        "Folder of this run: checkpoints, event files, report. Required.",
        identity=False,
        short=True,
        path=FOR_TENSORFLOW,
    )
    plugin: tuple[str, ...] = option(
        (),
        "Code of your own to load first, a file or a module, repeatable: what it registers can be asked for "
        "by name. It is run with your rights, and copied into --workdir.",
        identity=False,
        short=True,
    )
    callbacks: str = option(
        "",
        "What happens between updates besides, such as what a plugin registers.",
        identity=False,
        check=calls("mine(2)"),
    )
    extend: bool = option(
        False,
        "Go on with the run in --workdir under longer phases, as if they had been as long from the start; "
        "refused where the updates so far would have been others.",
        identity=False,
    )
    seed: int = option(
        0,
        "Seed of initial weights, order and augmentation.",
        short=True,
        bounds=AT_LEAST_0,
    )
    log_every: str = option(
        "10steps",
        "How often loss and accuracy are written.",
        identity=False,
        check=more_than_0,
    )
    # Part of the identity: which weights are the best depends on when they are looked at.
    evaluate_every: str = option(
        "1epochs",
        "How often the validation split is evaluated.",
        check=more_than_0,
    )
    save_every: str = option(
        "1epochs",
        "How often a checkpoint is written.",
        identity=False,
        check=more_than_0,
    )
    save_every_secs: float = option(
        600.0,
        "A checkpoint is written, too, when the last one is this many seconds old; 0: never.",
        identity=False,
        bounds=AT_LEAST_0,
    )
    keep_checkpoints: int = option(
        3,
        "How many of the latest checkpoints are kept, besides the best.",
        identity=False,
        bounds=AT_LEAST_1,
    )
    figures_every: str = option(
        "5epochs",
        "How often the confusion matrix and the reliability diagram of validation are drawn for TensorBoard, "
        "besides at the end of each phase; empty: never.",
        identity=False,
        check=never_or_more_than_0,
    )
    histograms_every: str = option(
        "",
        "How often the distributions of all variables are written for TensorBoard; default never.",
        identity=False,
        check=never_or_more_than_0,
    )
    profile_steps: str = option(
        "",
        "Updates that TensorFlow's profiler watches, such as 100-110, for TensorBoard's PROFILE tab.",
        identity=False,
        check=updates,
    )
    embeddings: int = option(
        500,
        "How many validation pictures TensorBoard's projector shows by their features; 0: none.",
        identity=False,
        bounds=AT_LEAST_0,
    )
    max_minutes: float = option(
        0.0,
        "Save and stop, with status 75, after this many minutes; the same command goes on. 0: no limit.",
        identity=False,
        bounds=AT_LEAST_0,
    )
    assert_accuracy_at_least: float = option(
        0.0,
        "The run fails, with status 1, when its last score is lower: a share from 0 to 1.",
        identity=False,
        bounds=SHARE,
    )
    assert_at_least: str = option(
        "",
        "The run fails, with status 1, when a metric of its last score is lower, such as "
        "map=0.8,macro_f1=0.7: accuracy, macro_f1 and roc_auc; of several labels also map, micro_f1 and "
        "samples_f1.",
        identity=False,
        check=floors,
    )
    stop_signals: str = option(
        "SIGTERM,SIGUSR1",
        "Signals besides Ctrl-C on which a run saves and stops with status 75, such as the one that SLURM's "
        "--signal announces the end of a job with.",
        identity=False,
        check=signals,
    )
    strategy: str = option(
        "auto",
        "Devices: one, all local ones (mirrored), those of several machines (multi_worker), or whatever "
        "there is (auto): the workers that TF_CONFIG or srun names, else all GPUs.",
        choices=("auto", "one", "mirrored", "multi_worker"),
        identity=False,
    )
    wait_for_workers_secs: float = option(
        300.0,
        "How many seconds training on several machines waits at its start until all workers are there.",
        identity=False,
        bounds=Bounds(above=0, at_most=LARGEST),
    )
    cache_dir: str = option(
        "",
        "Folder for downloaded and converted networks; default the user's cache folder "
        "($TFHUB_CACHE_DIR is honoured).",
        identity=False,
        path=FOR_TENSORFLOW,
    )
    progress: str = option(
        "auto",
        "Progress bar, or plain lines (auto: a bar on a terminal).",
        choices=("auto", "bar", "plain"),
        identity=False,
    )


@dataclass(frozen=True)
class GuardConfig:
    """Guards"""

    # Not of the identity: who has met a bad batch wants to go on past it.
    on_nonfinite: str = option(
        "fail",
        "A loss or gradient that is not finite: stop, or go back to the last checkpoint and leave that "
        "batch out (rollback).",
        choices=("fail", "rollback"),
        identity=False,
    )
    max_rollbacks: int = option(
        3,
        "How many batches of a run rollback leaves out at most.",
        identity=False,
        bounds=AT_LEAST_0,
    )
    max_loss: float = option(
        0.0,
        "A training loss above this counts as one that is not finite; 0: no limit.",
        identity=False,
        bounds=Bounds(at_least=0, at_most=LARGEST),
    )
