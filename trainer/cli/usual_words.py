"""What other tools and tutorials call things, and how it is written here. Standard library only."""

import re

_BOTH_PHASES = "--frozen_for={value}{unit} (the head) and --finetune_for={value}{unit} (all of it)"
_RATES = "--frozen_learning_rate={value} (the head) and --finetune_learning_rate={value} (all of it)"
# {words: (what to write, a value where none is given)}. One word stands in one line only.
_LINES = {
    "epoch epochs n_epochs nb_epochs num_epochs max_epochs train_epochs num_train_epochs total_epochs": (
        _BOTH_PHASES.replace("{unit}", "epochs"),
        "10",
    ),
    "steps n_steps num_steps max_steps train_steps total_steps iters iterations max_iter num_iterations "
    "max_iterations": (_BOTH_PHASES.replace("{unit}", "steps"), "500"),
    "lr learning_rate learningrate base_lr base_learning_rate init_lr initial_lr initial_learning_rate lr0 "
    "max_lr eta": (_RATES, "1e-3"),
    "data dataset datasets data_path data_root data_folder data_directory dataset_dir dataset_path "
    "dataset_name train train_dir train_path train_data training_dir training_data image_dir images_dir "
    "image_folder image_path images img_dir img_folder input input_dir input_path input_folder pictures "
    "photos root path folder directory": ("--source=folder:{value}", "photos"),
    "model model_name model_type arch architecture net network backbone_name base_model encoder "
    "feature_extractor hub_module tfhub_module": (
        "--backbone, such as --backbone=keras:MobileNetV2 (--help=backbone lists what there is)",
        "",
    ),
    "time time_limit time_budget max_time max_train_time train_time minutes": (
        "--budget=5min, which chooses what ends by then; --max_minutes=5 stops and saves",
        "",
    ),
    "img_size imgsz image_width image_height img_width img_height input_size input_shape target_size size "
    "width height resolution crop_size px": ("--image_size={pixels}", "224"),
    "batch bs b train_batch_size per_device_train_batch_size mini_batch_size minibatch_size": (
        "--batch_size={value}",
        "32",
    ),
    "val_split val_size val_ratio val_pct valid_pct valid_split validation_split validation_size "
    "validation_ratio test_split test_size test_ratio train_split train_size train_ratio split split_ratio "
    "train_test_split": ("--splits=80%,10%,10% (train, validation, test)", ""),
    "dry_run dry plan plan_only rehearse": (
        "--dry_run, which shows splits, network and plan as inspect does, and trains nothing",
        "",
    ),
    "name run_name exp_name experiment experiment_name project checkpoint_dir checkpoints_dir ckpt_dir "
    "tensorboard tensorboard_dir": ("--workdir={value}", "runs/mine"),
    "resume resume_from resume_training resume_from_checkpoint restart continue continue_training "
    "load_checkpoint initial_epoch": (
        "leave it out: the same command with the same --workdir goes on; --init_from=RUN begins with the "
        "weights of another run",
        "",
    ),
    "ckpt checkpoint_path ckpt_path weights_path model_weights load_weights pretrained_path finetune_from": (
        "--init_from=RUN, which begins with the weights of another run, or --weights=FILE",
        "",
    ),
    "pretrained use_pretrained imagenet no_pretrained": (
        "leave it out: ImageNet weights are the default, and --weights=none begins without",
        "",
    ),
    "num_classes n_classes nb_classes num_labels classes class_names labels class_mode label_mode": (
        "leave it out: the classes are the folders in --source=folder:PATH",
        "",
    ),
    "freeze freeze_backbone freeze_base freeze_layers freeze_encoder feature_extract feature_extracting "
    "linear_probe fine_tune finetune finetuning fine_tuning do_fine_tuning trainable transfer unfreeze "
    "train_module": (
        "--schedule=frozen (the head only), finetune (all of it), two_phase (one after the other) or "
        "recommended, the default",
        "",
    ),
    "unfreeze_layers fine_tune_at fine_tune_from num_unfrozen_layers": (
        "--unfreeze_top_layers=N or --from_layer=NAME",
        "",
    ),
    "fp16 bf16 fp32 half amp use_amp mixed_precision dtype": (
        "--precision=auto, which measures what is faster, float32, bfloat16 or float16",
        "",
    ),
    "device devices gpu gpus gpu_id gpu_ids num_gpus n_gpu n_gpus cuda no_cuda use_gpu use_cuda cpu "
    "accelerator": (
        "leave it out: all GPUs are used; --strategy=one takes one of those that CUDA_VISIBLE_DEVICES names",
        "",
    ),
    "workers num_workers n_workers j nproc num_threads num_parallel_calls": (
        "leave it out: pictures are read on all cores",
        "",
    ),
    "opt optim optimiser": ("--optimizer={value}", "adamw"),
    "wd l2 l2_reg weight_decay_rate": ("--optimizer=adamw --weight_decay={value}", "1e-4"),
    "scheduler lr_scheduler lr_scheduler_type sched lr_decay lr_policy decay lr_schedule_type": (
        "--lr_schedule=cosine, constant, linear, step, one_cycle or plateau",
        "",
    ),
    "warmup_epochs warmup_epoch num_warmup_epochs": ("--warmup={value}epochs", "1"),
    "warmup_steps num_warmup_steps": ("--warmup={value}steps", "100"),
    "criterion loss_fn loss_function loss_type": ("--loss=cross_entropy or focal(2)", ""),
    "smoothing label_smooth": ("--label_smoothing={value}", "0.1"),
    "drop drop_rate dropout_rate drop_out": ("--dropout={value}", "0.2"),
    "aug augs augmentation augmentations augmenter data_augmentation do_data_augmentation transform "
    "transforms flip hflip horizontal_flip random_flip random_crop hflip_prob zoom_range "
    "rotation_range width_shift_range height_shift_range shear_range brightness_range color_jitter "
    "random_erasing": (
        "--augment=flip,rotate(0.2) (--help=augment lists what there is)",
        "",
    ),
    "mixup cutmix randaugment auto_augment": ("--augment=flip,mixup(0.2) (--help=augment)", ""),
    "early_stopping early_stopping_patience es_patience": ("--early_stop=loss --patience=5", ""),
    "random_seed random_state manual_seed rng_seed seed_everything": ("--seed={value}", "0"),
    "clip grad_clip clip_grad max_grad_norm gradient_clip_val": ("--clip_norm={value}", "1.0"),
    "gradient_accumulation_steps accumulation_steps grad_accum accum_steps": ("--accumulate={value}", "2"),
    "class_weight balance balanced class_balance oversample imbalance weighted_sampler": (
        "--class_weights=balanced, or --sampling=balanced, which draws rare classes more often",
        "",
    ),
    "monitor best_metric metric_for_best_model": (
        "--early_stop=loss, which ends a phase when validation no longer gets better; the best weights are "
        "kept by themselves",
        "",
    ),
    "save_best_only save_best save_freq save_weights_only load_best_model_at_end": (
        "leave it out: the best weights and the latest ones are kept by themselves",
        "",
    ),
    "shuffle": ("leave it out: pictures to train with are shuffled in every epoch, by --seed", ""),
    "rescale normalize normalization mean std preprocess preprocessing preprocessing_function": (
        "leave it out: each network is given the values that it was trained with",
        "",
    ),
    "color_mode grayscale channels num_channels input_channels in_channels in_chans": (
        "leave it out: grey pictures become RGB, which the networks want",
        "",
    ),
    "val_dir valid_dir validation_dir val_path val_data validation_data test_dir test_path test_data "
    "eval_dir": (
        "--source=folder:PATH, where PATH holds train/, val/ and test/; without them, shares are taken by "
        "--splits=80%,10%,10%",
        "",
    ),
    "csv csv_file csv_path train_csv labels_csv label_csv label_file labels_file annotations "
    "annotation_file table excel dataframe": ("--source=table:{value}", "labels.csv"),
    "x_col path_column file_column": ("--image_column={value}", "file"),
    "y_col": ("--label_column={value}", "label"),
    "eval_only test_only only_test eval evaluate_only predict_only inference_only": (
        "write the command before the options: evaluate --workdir=runs/mine, or predict --workdir=runs/mine "
        "and pictures behind it",
        "",
    ),
    "export_format tflite onnx quantize quantization int8 saved_model": (
        "write export --workdir=runs/mine --formats=int8,onnx when the run has finished",
        "",
    ),
    "topk k top": ("--top_k={value}", "5"),
    "confidence min_confidence conf_threshold confidence_threshold score_threshold threshold_value": (
        "--threshold={value}",
        "0.5",
    ),
    "output_csv out_csv save_csv save_txt csv_output": ("--output=predictions.csv, which predict writes", ""),
    "max_images max_samples num_samples n_samples limit subset fraction limit_train_batches": (
        "--splits=800pictures,100pictures,100pictures, which takes so many and no more",
        "",
    ),
    "reduce_lr reduce_lr_on_plateau min_lr lr_patience lr_factor step_size gamma": (
        "--lr_schedule=cosine, plateau or step (--help=lr_schedule)",
        "",
    ),
    "wandb mlflow comet neptune logger report_to": (
        "leave it out: what TensorBoard shows is in --workdir; others come in as --callbacks of a --plugin",
        "",
    ),
    "kfold kfolds k_fold k_folds n_splits cv num_folds cross_validation": (
        "write cross_validate before the options, and --folds={value}",
        "5",
    ),
    "hidden_size hidden_units hidden_dim dense_units fc_units n_hidden head_size": (
        "--head=mlp({value})",
        "512",
    ),
    "pooling global_pool pool": ("leave it out: the last feature maps are averaged", ""),
    "batchnorm batch_norm freeze_bn bn_eval": ("--bn=frozen, the default, or batch", ""),
    "cache_images cache_dataset prefetch buffer_size shuffle_buffer": (
        "leave it out: what takes long is kept by itself (--help=feature_cache, --help=picture_cache)",
        "",
    ),
    "force overwrite clean exist_ok": (
        "leave it out: no run is written over; take another --workdir, or remove the folder",
        "",
    ),
    "version": ("write doctor, which says the version of everything", ""),
    "ema model_ema ema_decay": ("--average=ema(0.99)", ""),
    "config cfg config_file conf": ("--flagfile={value}", "mine.flags"),
    "local_rank world_size master_addr nodes num_nodes distributed": (
        "leave it out: one process uses all GPUs of a machine; several are named by TF_CONFIG or srun "
        "(docs/cluster.md)",
        "",
    ),
}
WORDS = {word: line for words, line in _LINES.items() for word in words.split()}
# The verbs of other tools.
VERBS = {
    word: verb
    for verb, words in {
        "train": "fit run start finetune fine_tune training resume",
        "evaluate": "test eval validate score val testing",
        "predict": "infer inference classify label detect prediction",
        "export": "convert save deploy freeze tflite onnx quantize",
        "explain": "gradcam grad_cam saliency visualize visualise",
        "serve": "web ui app gui server demo_page",
        "inspect": "show info summary plan dry_run list",
        "sweep": "tune search hpo optimize hyperparameters",
        "find_lr": "lr_find lr_finder",
        "cross_validate": "cv kfold cross_validation",
        "recipes": "examples demo example init",
        "doctor": "version check env diagnose",
    }.items()
    for word in words.split()
}
_OF_PICTURES = next(line for words, line in _LINES.items() if words.startswith("data "))
_OF_RUNS = re.compile(
    "(model|weights|ckpt|checkpoint|run|saved_?model)(_?(name|file|path|dir|folder|weights))?"
)
# They begin with what a run has found.
_OF_A_RUN = ("evaluate", "predict", "explain", "export", "serve")


def written_here(word: str, value: str = "", *, command: str = "train") -> str:
    """Returns what to write for a flag of other tools, as a sentence; empty where the word is not known.

    Args:
      word: without dashes in front.
      value: that was given with it.
      command: that was asked for.
    """
    word = word.lower().replace("-", "_")
    if command in _OF_A_RUN and _OF_RUNS.fullmatch(word):
        return f"Write --workdir={value or 'runs/mine'}, the folder of a run"
    if word not in WORDS:
        return ""
    if command in ("predict", "explain") and WORDS[word] is _OF_PICTURES:
        return (
            f"Write the pictures alone, behind the options: {command} --workdir=runs/mine {value or 'photos'}"
        )
    text, default = WORDS[word]
    pixels = re.search("[0-9]+", value)
    told = text.format(value=value or default, pixels=pixels[0] if pixels else default)
    return f"Write {told}" if told.startswith("--") else f"{told[0].upper()}{told[1:]}"
