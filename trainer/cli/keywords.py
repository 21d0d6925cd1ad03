"""The options as keyword arguments, with their types: for editors and type checkers, which read no flags.

`tests/test_python_api.py` compares it with the declarations, and prints what is to stand here.
"""

import os
from collections.abc import Sequence
from typing import TypedDict

PathLike = str | os.PathLike[str]


class Options(TypedDict, total=False):
    """What `python -m trainer.main --helpfull` explains, by the name of the flag.

    A list of texts is a flag that may be given several times. None, like leaving it out, is the default.
    """

    flagfile: PathLike | Sequence[PathLike]
    # Pictures
    source: str
    task: str
    splits: str
    split_order: str
    split_seed: int
    drop_duplicates: bool
    image_column: str
    label_column: str
    split_column: str
    group_column: str
    weight_column: str
    image_root: PathLike
    groups: str
    folds: int
    fold: int
    near_duplicates: str
    relabel: PathLike
    exif: str
    on_bad_image: str
    max_pixels: int
    data_dir: str
    checksum: str
    decode: str
    memory_budget_mb: int
    synthetic_examples: int
    synthetic_seed: int
    # Model
    backbone: str
    weights: PathLike
    image_size: int
    features: str
    resize: str
    antialias: bool
    init_from: PathLike
    init_part: str
    value_range: str
    head: str
    logits: str
    dropout: float
    # Training
    schedule: str
    budget: str
    by_hand: Sequence[str]
    phase: Sequence[str]
    frozen_for: str
    finetune_for: str
    frozen_learning_rate: float
    finetune_learning_rate: float
    finetune_train: str
    from_layer: str
    unfreeze_top_layers: int
    bn: str
    optimizer: str
    momentum: float
    nesterov: bool
    weight_decay: float
    lr_schedule: str
    warmup: str
    augment: str
    average: str
    batch_size: int
    # Updates, in all phases
    accumulate: int
    objective: str
    loss: str
    gradient_rule: str
    metrics: str
    label_smoothing: float
    class_weights: str
    sampling: str
    lr_multiplier: Sequence[str]
    layer_decay: float
    clip_norm: float
    clip_value: float
    early_stop: str
    patience: int
    min_change: float
    # Run
    workdir: PathLike
    plugin: PathLike | Sequence[PathLike]
    callbacks: str
    extend: bool
    seed: int
    log_every: str
    evaluate_every: str
    save_every: str
    save_every_secs: float
    keep_checkpoints: int
    figures_every: str
    histograms_every: str
    profile_steps: str
    embeddings: int
    max_minutes: float
    assert_accuracy_at_least: float
    assert_at_least: str
    stop_signals: str
    strategy: str
    wait_for_workers_secs: float
    cache_dir: PathLike
    progress: str
    # Guards
    on_nonfinite: str
    max_rollbacks: int
    max_loss: float
    # Speed
    precision: str
    engine: str
    feature_cache: str
    feature_views: int
    picture_cache: str
    cache_limit_gb: float
    # Evaluation
    eval_split: str
    checkpoint: str
    report_dir: PathLike
    # Prediction
    model: PathLike
    format: str
    top_k: int
    threshold: float
    # Explanation
    saliency: str
    explain_class: str
    ig_steps: int
    num_explained: int
    # Export
    formats: str
    export_dir: PathLike
    calibration_pictures: int
    max_accuracy_drop: float
    # Serving
    bind: str
    port: int
    max_upload_mb: int
    # Inspect
    verbose: bool
    # Results and measurements
    output: PathLike
    repeats: int
    # Learning-rate finder
    find_lr_range: str
    find_lr_steps: int
    find_lr_phase: str
    # Learning curve
    curve_shares: str
    curve_draws: int
    # Audit
    audit_folds: int
    audit_shown: int
    # Sweep
    search: Sequence[str]
    space: PathLike
    trials: int
    metric: str
    sampler: str
    pruner: str
    study: str
    jobs: int
    repeat_seeds: int
    # Features
    shard: str
