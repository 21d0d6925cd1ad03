"""A configuration made real: pictures, splits, network, plan. What every command begins with."""

import copy
import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np
import tensorflow as tf

from trainer import plugins
from trainer.cli.config import Config
from trainer.cli.declare import budget_secs
from trainer.cli.phase_specs import PhaseSpec, is_auto
from trainer.data.augment import Augment, make_augment
from trainer.data.configured import Pictures, open_configured, scan_configured
from trainer.data.grouping import groups_of
from trainer.data.inspect.scan import Scan, typical_area
from trainer.data.near_duplicates import Pair, find_near_duplicates, group_keys, united
from trainer.data.pipeline import Pipeline
from trainer.data.relabel import Corrected
from trainer.data.sampling import assumed_shares, chances
from trainer.data.sources import Source
from trainer.data.splits import (
    Splits,
    check_classes,
    check_counts,
    drop_shared,
    find_again,
    keep_together,
    leave_out,
    make_splits,
    missing_classes,
    shared_pictures,
)
from trainer.loop.gradient_rules import GRADIENT_RULES, make_limit
from trainer.loop.losses import class_weights_from, make_loss
from trainer.loop.metrics import make_metrics
from trainer.loop.objectives import OBJECTIVES, Recipe
from trainer.loop.phases import Plan, make_plan
from trainer.model.backbones import Backbone, keep_rounding, open_backbone, open_for_checkpoint
from trainer.model.classifier import Classifier
from trainer.model.cuts import Cut
from trainer.model.heads import make_head
from trainer.record.workdir import Workdir, if_moved
from trainer.report.shortening import MOST_LETTERS, shortened_apart
from trainer.run.bit_rule import apply_rule, bit_rule, rule_head
from trainer.run.combinations import check_options, check_together
from trainer.run.recommended import recommend, sizes_of, told, usual_effort
from trainer.run.relabelling import relabelled
from trainer.run.team import team
from trainer.runtime import has_joined, make_strategy
from trainer.store.places import cache_root
from trainer.tasks import Task, make_task
from trainer.values import Contract, TrainerError, UsageError, composed, parse_pair

_log = logging.getLogger("trainer")
SHARED_SHOWN = 5
LEAST_MOVED = 0.005
"""Of the share of a class, where weights are said to assume another one than that of the pictures."""
CLASSES_SHOWN = 10
_MISSED = {
    "validation": "the best weights are chosen without %s",
    "test": "the score says nothing about %s",
}
DEFAULT_HEAD = "mlp(512)"

Turn = Callable[[str, float], float]
"""(option, its value) -> the same, or a `Dial` of it, which a trace reads from a variable. It is asked for
dropout and label_smoothing, and for learning_rate and weight_decay of each phase."""


def as_it_is(name: str, value: float) -> float:
    """A `Turn` that makes no dials."""
    return value


def turned_spec(spec: PhaseSpec, turn: Turn) -> PhaseSpec:
    """Returns a phase with the numbers that `turn` makes of its own."""
    rate, decay = turn("learning_rate", spec.learning_rate), turn("weight_decay", spec.weight_decay)
    return dataclasses.replace(spec, learning_rate=rate, weight_decay=decay)


# What becomes of groups of near duplicates that are in two splits, by --near_duplicates.
_OF_NEAR_DUPLICATES = {
    "report": ("are", " (--near_duplicates=group or drop keeps them apart)"),
    "group": ("were", ", and are put into one"),
    "drop": ("were", ", and are left out of the earlier one"),
}


def told_pictures(
    record: Mapping[str, Sequence[Sequence[str]]], *, class_names: Sequence[str], weights: str
) -> dict[str, tuple[int, str]]:
    """Returns {split: (how many pictures, digest of them, their classes and what they weigh)}.

    Args:
      record: {split: [(id, class name, SHA-256)]}; what pictures are called makes no difference.
      class_names: of the source.
      weights: digest of what the pictures weigh; empty: they weigh the same.
    """
    around = [[*map(composed, class_names)], weights]
    texts = {split: json.dumps([around, [[*row[1:]] for row in rows]]) for split, rows in record.items()}
    return {
        split: (len(record[split]), hashlib.sha256(text.encode()).hexdigest())
        for split, text in texts.items()
    }


class Experiment:
    """Everything a configuration names, opened and checked against one another."""

    task: Task
    source: Source
    scan: Scan
    splits: Splits
    shared: list[list[str]]
    near_pairs: list[Pair] | None = None
    """What --near_duplicates has found; None where it is off, or the splits are those of a run."""
    near_groups: list[list[str]]
    """Those of them that were in two splits, each with its split, as they were divided at first."""
    split_before: dict[int, str]
    """The split that each picture was in then, by position."""
    missing: dict[str, list[str]]
    """{split: classes that train has and it has not}, where there are any."""
    left_out: list[tuple[str, str]]
    """(id, reason) of the bad pictures that --on_bad_image=skip leaves out, then those of --relabel."""
    removed: tuple[int, ...]
    """Positions of the pictures that --relabel leaves out."""
    backbone: Backbone
    classifier: Classifier
    plan: Plan
    pipeline: Pipeline
    recipe: Recipe
    chances: np.ndarray | None
    """How often each picture of the source is seen in training beside the others; None: once an epoch."""
    asked: Config
    """The configuration as it was asked for; `config` is what it comes to with these pictures."""
    chosen: dict[str, Any]
    """What --schedule=recommended chose, by name of the option: what is set by hand has no effect."""

    def __init__(
        self,
        config: Config,
        *,
        of_run: Workdir | None = None,
        pictures: Pictures | None = None,
        pictures_only: bool = False,
        chosen: Mapping[str, Any] | None = None,
    ):
        """Opens the pictures, then the network, unless the pictures are all that is asked for.

        Args:
          config: as it was asked for.
          of_run: a run whose pictures are to be found again as it recorded them, and whose checkpoint has all
            weights; None: pictures are divided.
          pictures: of --source, where they have been looked at.
          pictures_only: whether the network is not wanted.
          chosen: what --schedule=recommended is to come to, by name of the option; None: what the run in
            --workdir has recorded, or else what its rule says.

        Raises:
          UsageError: options do not fit one another, the pictures or the network.
          TrainerError: pictures or network cannot be had.
        """
        self.asked = self.config = config
        self._of_run, self._pictures, self.chosen = of_run, pictures, dict(chosen or {})
        if has_joined() and team().count == 1:
            raise UsageError(
                "this process has trained with several workers, and what it opens now would wait for them: "
                "do it in another process"
            )
        self.strategy: tf.distribute.Strategy = make_strategy(config.run.strategy)
        self._check_shares(config)
        check_options(config)
        self.task = make_task(config.data.task)
        self.open_pictures()
        if not pictures_only:
            self._take_up(config)

    def variant(self, config: Config, *, turn: Turn = as_it_is) -> "Experiment":
        """Returns the same pictures and network with a head, a plan and a recipe of other options.

        Args:
          config: as it would be asked for; options of pictures and network are those of this experiment.
          turn: makes dials of numbers, see `Turn`.

        Raises:
          UsageError: options do not fit one another, the pictures or the network.
        """
        check_options(config)
        other = copy.copy(self)
        other.asked, other.chosen = config, {}
        other._take_up(config, turn=turn)
        return other

    def config_of(self, config: Config) -> Config:
        """Returns options as they would be asked for, with what is left to the pictures filled in."""
        return self._settled(config)

    def _take_up(self, config: Config, *, turn: Turn = as_it_is) -> None:
        """Settles what is left to the pictures, and makes network, head, plan and recipe."""
        self._cuts: dict[PhaseSpec, Cut | None] = {}
        num_train = len(self.splits.indices["train"])
        self.config = config = self._settled(config)
        self._check_shares(config)
        self._check_batch(num_train, batch_size=config.plan.batch_size)
        with self.strategy.scope():
            if not hasattr(self, "backbone"):
                self._open_network()
            self.classifier = make_classifier(
                config,
                self.backbone,
                num_classes=len(self.source.class_names),
                num_examples=num_train,
                task=self.task,
                dropout=turn("dropout", config.model.dropout),
            )
        specs = [turned_spec(spec, turn) for spec in config.phases]
        # Now, while the plugins that were asked for are those that are seen.
        self._augments = {spec.augment: make_augment(spec.augment) for spec in specs}
        self.plan = make_plan(specs, num_examples=num_train, batch_size=config.plan.batch_size)
        for spec in specs:
            self._check_training(spec)
        check_together(
            config,
            task=self.task,
            validation=self.class_counts("validation"),
            num_shares=self.num_shares,
        )
        self.chances = self._chances(config.update.sampling)
        self.pipeline = Pipeline(
            self.source,
            self.scan,
            contract=self.backbone.contract,
            batch_size=config.plan.batch_size,
            seed=config.run.seed,
            decoding=config.data.decode,
            task=self.task,
        ).drawing(self.chances)
        self.recipe = self._make_recipe(config, turn)

    def _make_recipe(self, config: Config, turn: Turn) -> Recipe:
        names, update = self.source.class_names, config.update
        weights = class_weights_from(
            update.class_weights, class_names=names, counts=self.class_counts("train")
        )
        loss = make_loss(
            update.loss,
            num_classes=len(names),
            label_smoothing=turn("label_smoothing", update.label_smoothing),
            class_weights=weights,
            task=self.task,
        )
        with self.strategy.scope():
            objective = OBJECTIVES.choose(update.objective)(
                loss=loss, num_classes=len(names), experiment=self
            )
            gradient_rule = GRADIENT_RULES.choose(update.gradient_rule)()
        return Recipe(
            objective,
            make_metrics(update.metrics, task=self.task),
            gradient_rule,
            make_limit(norm=update.clip_norm, value=update.clip_value),
            num_parts=update.accumulate,
            seed=config.run.seed,
        )

    def _chances(self, sampling: str) -> np.ndarray | None:
        """Returns how often each picture of the source is seen in training, [N]; None: once an epoch."""
        train, num_classes = self.splits.indices["train"], len(self.source.class_names)
        found = chances(sampling, self.source.labels[train], task=self.task, num_classes=num_classes)
        if found is None:
            return None
        of_all = np.zeros(len(self.source.ids))
        of_all[train] = found
        return of_all

    def assumed_prevalence(self) -> dict[str, Any] | None:
        """Returns which shares of the classes the probabilities assume; None: those of the pictures.

        {"why": the options, "classes": {name: {"train", "assumed"}}}, see `assumed_shares`.
        """
        update, names = self.config.update, self.source.class_names
        why = [f"--sampling={update.sampling}"] * (self.chances is not None)
        why += [f"--class_weights={update.class_weights}"] * bool(update.class_weights)
        of_source = getattr(self.source, "weights", None)
        if not why and of_source is None:
            return None
        train = self.splits.indices["train"]
        labels, weights = self.source.labels[train], np.ones(len(train))
        if self.chances is not None:
            weights = self.chances[train]
        if of_source is not None:
            weights = weights * of_source[train]
        of_class = class_weights_from(
            update.class_weights, class_names=names, counts=self.class_counts("train")
        )
        if of_class is not None:
            weights = weights * self.task.weights(tf.constant(labels), None, tf.constant(of_class)).numpy()
        shares = assumed_shares(labels, weights, task=self.task, class_names=names)
        if of_source is not None:
            moved = any(abs(of["assumed"] - of["train"]) > LEAST_MOVED for of in shares.values())
            # Weights that have nothing to do with the classes assume nothing of them.
            why += [f"--weight_column={self.config.data.weight_column}"] * moved
        if not why:
            return None
        return {"why": " and ".join(why), "classes": shares}

    def _settled(self, config: Config) -> Config:
        """Returns the options with what is left to the pictures filled in."""
        train = self.splits.indices["train"]
        if config.is_recommended:
            known = self.chosen or self._recorded()
            usual = usual_effort(len(train), sizes=sizes_of(config), budget=config.plan.budget)
            self.chosen = known or recommend(usual, num_train=len(train), asked=config)
            # What is to end in time is chosen once its steps have been measured.
            if known or not budget_secs(config.plan.budget):
                _log.info("schedule:    %s", told(config, self.chosen, num_train=len(train)))
            config = config.filled_in(self.chosen)
        if config.fits:
            return config.replace(schedule="fit")
        if not is_auto(config.plan):
            return config.replace(head=head_of(config))
        area = typical_area(self.source, train)
        rule = bit_rule(num_examples=len(train), area_px=area)
        settled = apply_rule(config, rule)
        _log.info(
            "schedule:    BiT-HyperRule for %s pictures of about %s px: --head='%s' --image_size=%d "
            "--phase='%s'",
            f"{len(train):,}", f"{area:,.0f}", settled.model.head, settled.model.image_size,
            settled.plan.phase[0],
        )  # fmt: skip
        return settled

    def _recorded(self) -> dict[str, Any]:
        """Returns what a run in --workdir has chosen; empty where there is none."""
        workdir = self.config.run.workdir
        return dict(Workdir(workdir).read_chosen()) if workdir else {}

    def _check_shares(self, config: Config) -> None:
        replicas, asked = self.strategy.num_replicas_in_sync, config.plan.batch_size
        multiple = replicas * config.update.accumulate
        if asked % multiple:
            parts = f" in {config.update.accumulate} parts each" if config.update.accumulate > 1 else ""
            below, above = asked // multiple * multiple, -(-asked // multiple) * multiple
            raise UsageError(
                f"--batch_size={asked} must be a multiple of {multiple}, for {replicas} devices{parts}: use "
                + (f"{below} or {above}" if below else f"{above}")
            )

    def _check_batch(self, num_train: int, *, batch_size: int) -> None:
        num_all = len(self.source.ids)
        # Who has few pictures and says nothing of batches should not have to.
        if batch_size > num_all and batch_size != Config().plan.batch_size:
            raise UsageError(
                f"--batch_size={batch_size} is larger than the data: there are {num_all:,} pictures, and "
                f"{num_train:,} to train with; take {num_train:,} or fewer"
            )
        if batch_size > num_train:
            _log.warning(
                "--batch_size=%d: there are only %d pictures to train with, so every update sees all of them",
                batch_size, num_train,
            )  # fmt: skip

    def open_pictures(self) -> None:
        """Opens the pictures, looks at them, and divides them.

        Raises:
          UsageError: they do not go with the options.
          TrainerError: they cannot be had.
        """
        data, pictures = self.config.data, self._pictures
        self.source = pictures.source if pictures else self._open_source()
        # Before the pictures are looked at, which may take long.
        splits = None if self._of_run else self._make_splits()
        if not pictures:
            pictures = scan_configured(self.source, self.config, plugins=plugins.sources("source"))
            # Only now, so that every picture is in the split that it was in without.
            pictures = relabelled(pictures, self.config, task=self.task, strict=not self._of_run)
        self.source, self.scan, self.left_out = pictures.source, pictures.scan, pictures.left_out
        self.removed = pictures.removed
        splits = self._find_again() if splits is None else self._without_left_out(splits)
        if data.near_duplicates != "off" and not self._of_run:
            splits = self._without_near_duplicates(splits)
        groups = shared_pictures(splits.indices, self.scan.digests)
        self.shared = [[f"{self.source.ids[at]} ({split})" for split, at in group] for group in groups]
        self.splits = splits
        if data.drop_duplicates:
            self.splits = self._checked(drop_shared(splits, self.scan.digests))
        team().require_same("pictures", self._digest_of_splits())
        self.missing = missing_classes(self.source, self.splits.indices, task=self.task)
        self._tell_odd(len(groups))

    def _open_source(self) -> Source:
        """Opens --source; where a run had its pictures there, and they have gone, says what to do."""
        try:
            return open_configured(self.config, also_written=[team().asked_workdir])
        except UsageError:
            raise
        except TrainerError as error:
            workdir = self._workdir()
            has_run = workdir is not None and workdir.run_json.exists()
            if not workdir or not has_run or workdir.read_config().data.source != self.config.data.source:
                raise
            raise TrainerError(if_moved(error)) from None

    def _workdir(self) -> Workdir | None:
        """Returns the folder of the run that this is of, or will be; None where there is to be none."""
        if self._of_run:
            return self._of_run
        return Workdir(self.config.run.workdir) if self.config.run.workdir else None

    def _checked(self, splits: Splits) -> Splits:
        # In one of several folds a rare class may be missing: in another it is there.
        if not self.config.data.folds:
            check_classes(self.source, splits.indices, self.config.data.splits, task=self.task)
        return splits

    def _without_left_out(self, splits: Splits) -> Splits:
        # What `_checked` says of folds holds here, too.
        given: dict[str, Any] = {"task": self.task, "may_lack_classes": bool(self.config.data.folds)}
        if self.left_out:
            splits = leave_out(splits, self.scan.bad, self.source, **given)
        if self.removed:
            what = "pictures that --relabel leaves out"
            splits = leave_out(splits, self.removed, self.source, what=what, **given)
        return self._checked(splits) if self.config.data.relabel else splits

    def _without_near_duplicates(self, splits: Splits) -> Splits:
        """Looks for pictures that are one in two splits, and returns the splits as --near_duplicates says."""
        data, source = self.config.data, self.source
        if data.near_duplicates == "group" and splits.is_named:
            raise UsageError(
                "--near_duplicates=group divides pictures anew, and these splits are the source's own: use "
                "--near_duplicates=drop, or shares such as --splits=80%,10%,10%"
            )
        recorded = cache_root(self.config.run.cache_dir) / "near_duplicates"
        pairs = find_near_duplicates(
            source, self.scan, task=self.task, recorded=recorded, plugins=plugins.sources("source")
        )
        keys = group_keys(pairs, len(source.ids))
        self.near_pairs = pairs
        self.split_before = {at: name for name, of in splits.indices.items() for at in of.tolist()}
        torn = shared_pictures(splits.indices, keys)
        self.near_groups = [[f"{source.ids[at]} ({split})" for split, at in group] for group in torn]
        if torn:
            shown = "; ".join(_told_same(names) for names in self.near_groups[:SHARED_SHOWN])
            more = f"; and {len(torn) - SHARED_SHOWN} more (splits.json)" if len(torn) > SHARED_SHOWN else ""
            are, what_then = _OF_NEAR_DUPLICATES[data.near_duplicates]
            _log.info(
                "near duplicates: %d groups of pictures that are one %s in two splits%s: %s%s",
                len(torn), are, what_then, shown, more,
            )  # fmt: skip
        else:
            _log.info("near duplicates: none are in two splits")
        if data.near_duplicates == "group" and (data.folds or self._groups is not None):
            # All folds must be divided alike, and a group of pictures must stay whole.
            splits = self._without_left_out(self._make_splits(united(pairs, self._groups, len(source.ids))))
        elif data.near_duplicates == "group":
            task, labels = self.task, source.labels
            splits = keep_together(splits, keys, classes_of=lambda at: task.classes_in(labels[at : at + 1]))
        elif data.near_duplicates == "drop":
            flag, what = "--near_duplicates=drop", "near duplicates"
            splits = drop_shared(splits, keys, flag=flag, what=what)
        return self._checked(splits)

    @cached_property
    def _groups(self) -> np.ndarray | None:
        data = self.config.data
        return groups_of(self.source, column=data.group_column, pattern=data.groups)

    def _make_splits(self, groups: np.ndarray | None = None) -> Splits:
        data = self.config.data
        order = data.split_order
        workdir = Workdir(self.config.run.workdir) if self.config.run.workdir else None
        if workdir:
            order = workdir.split_order(order)
        # A run that is there has been asked.
        asked = workdir.read_config().data.splits if workdir and workdir.run_json.exists() else ""
        if asked != data.splits and (unused := check_counts(data.splits, len(self.source.ids))):
            _log.warning("%s", unused)
        source = self.source.source if isinstance(self.source, Corrected) else self.source
        return make_splits(
            source,
            data.splits,
            order=order,
            seed=data.split_seed,
            task=self.task,
            groups=self._groups if groups is None else groups,
            fold=(data.fold, data.folds) if data.folds or data.fold else None,
        )

    def _find_again(self) -> Splits:
        """Returns the splits that the run recorded, under whatever names its pictures are now."""
        assert self._of_run
        recorded, class_names = self._of_run.read_splits(), self._of_run.read_facts()["class_names"]
        if [*map(composed, self.source.class_names)] != [*map(composed, class_names)]:
            raise TrainerError(
                f"{self.source.name} has the classes {told_classes(self.source.class_names)}, and "
                f"this run tells {told_classes(class_names)} apart"
            )
        found = find_again(recorded, self.source, self.scan.digests, task=self.task)
        self._of_run.require_found(found, recorded, source=self.source.name)
        return Splits(found, self._of_run.read_how())

    def _tell_odd(self, num_shared: int) -> None:
        labels, indices = self.source.labels, self.splits.indices
        there = self.task.classes_in(labels[np.concatenate([*indices.values()])])
        if unseen := sorted(there - self.task.classes_in(labels[indices["train"]])):
            _log.warning(
                "train has no picture of %s, as it may be in a fold: what others have can only be got wrong",
                told_classes([self.source.class_names[label] for label in unseen]),
            )  # fmt: skip
        if untaught := sorted(set(range(len(self.source.class_names))) - there):
            _log.warning(
                "no picture is of %s: the network can name what nothing has taught it",
                told_classes([self.source.class_names[label] for label in untaught]),
            )
        for split, names in self.missing.items():
            effect = _MISSED[split] % ("it" if len(names) == 1 else "them")
            _log.warning("%s has no picture of %s: %s", split, told_classes(names), effect)
        if num_shared and not self.config.data.drop_duplicates:
            shown = "; ".join(_told_same(names) for names in self.shared[:SHARED_SHOWN])
            more = (
                f"; and {num_shared - SHARED_SHOWN} more (splits.json)" if num_shared > SHARED_SHOWN else ""
            )
            _log.info(
                "%d pictures are in two splits under different names: %s%s. --drop_duplicates removes them "
                "from the earlier split",
                num_shared, shown, more,
            )  # fmt: skip

    def _open_network(self) -> None:
        model, run = self.config.model, self.config.run
        wanted = None
        if model.value_range:
            wanted = parse_pair(model.value_range, flag="--value_range", what="numbers such as -1,1")
        options: dict[str, Any] = {
            "weights": model.weights,
            "image_size": model.image_size,
            "value_range": wanted,
            "cache_dir": run.cache_dir,
            "features": model.features,
            "resize": model.resize,
            "antialias": model.antialias,
        }
        # Who finds the pictures of a run again reads its checkpoint, too.
        if self._of_run:
            function = self._of_run.network_function()
            self.backbone = open_for_checkpoint(model.backbone, function=function, **options)
        else:
            self.backbone = open_backbone(model.backbone, **options)
        workdir = self._workdir()
        if workdir and (facts := workdir.read_facts()):
            keep_rounding(self.backbone, Contract.from_json(facts["contract"]))

    def _check_training(self, spec: PhaseSpec) -> None:
        """Makes sure that a phase can train what it is to train: not to be found out when it begins."""
        trained = self.trained_in_backbone(spec)
        only_head = all(pattern.startswith(("head/", "not:")) for pattern in spec.train)
        if only_head and spec.bn != "batch":
            return
        try:
            with self.strategy.scope():
                self.backbone.check_training(trained, bn_batch=spec.bn == "batch")
        except UsageError as error:
            raise UsageError(f"phase {spec.name}: {error}") from None

    def cut(self, spec: PhaseSpec) -> Cut | None:
        """Returns the deepest place in the network below which a phase changes nothing."""
        if spec not in self._cuts:
            trained = self.trained_in_backbone(spec)
            self._cuts[spec] = self.backbone.cut(trained, bn_batch=spec.bn == "batch")
        return self._cuts[spec]

    def augment(self, spec: PhaseSpec) -> Augment | None:
        """Returns how a phase changes its pictures, if it does."""
        if spec.augment not in self._augments:
            self._augments[spec.augment] = make_augment(spec.augment)
        return self._augments[spec.augment]

    def num_shares(self, spec: PhaseSpec) -> int:
        """Returns into how many shares a phase divides a batch, each normalised by its own statistics.

        Layers that tell what they see (`Backbone.batch_norms`) go by what all devices have, but not within
        the loop over the parts of --accumulate.
        """
        if spec.bn != "batch" or all(variable.trainable for variable in self.backbone.variables.values()):
            return 1
        num_parts = self.config.update.accumulate
        together = self.backbone.batch_norms and num_parts == 1
        return 1 if together else num_parts * self.strategy.num_replicas_in_sync

    def trained_in_backbone(self, spec: PhaseSpec) -> list[str]:
        """Returns the keys of `backbone.variables` that a phase trains."""
        rows = self.classifier.freezing_table(spec.train)
        trained = [row.name for row in rows if row.state == "train"]
        return [name.removeprefix("backbone/") for name in trained if name.startswith("backbone/")]

    def split_record(self) -> dict[str, list[tuple[str, str, str]]]:
        """Returns {split: [(id, class name, SHA-256)]}."""
        source, digests = self.source, self.scan.digests
        words = partial(self.task.label_words, class_names=source.class_names)
        return {
            split: [(source.ids[i], words(source.labels[i]), digests[i]) for i in indices.tolist()]
            for split, indices in self.splits.indices.items()
        }

    def _digest_of_splits(self) -> str:
        """Returns a digest of the pictures of all splits; empty where no other worker asks for it."""
        if team().count == 1:
            return ""
        # What they are called may differ.
        content = {split: [row[1:] for row in rows] for split, rows in self.split_record().items()}
        names = [*map(composed, self.source.class_names)]
        return hashlib.sha256(json.dumps([content, names, self.weights_digest()]).encode()).hexdigest()

    def told_pictures(self) -> dict[str, tuple[int, str]]:
        """Returns {split: (how many pictures, digest of them, their classes and what they weigh)}."""
        names, weights = self.source.class_names, self.weights_digest()
        return told_pictures(self.split_record(), class_names=names, weights=weights)

    def weights_digest(self) -> str:
        """Returns a digest of what --weight_column says of the pictures of all splits; empty without one."""
        if (weights := getattr(self.source, "weights", None)) is None:
            return ""
        of_splits = np.concatenate([weights[at] for at in self.splits.indices.values()])
        return hashlib.sha256(of_splits.tobytes()).hexdigest()

    @property
    def still_shared(self) -> list[list[str]]:
        """Those of `shared` that are in two splits now: --drop_duplicates leaves none."""
        return [] if self.config.data.drop_duplicates else self.shared

    def class_counts(self, split: str) -> dict[str, int]:
        """Returns {class name: number of examples} of a split."""
        labels = self.source.labels[self.splits.indices[split]]
        return self.task.class_counts(labels, self.source.class_names)

    def describe(self, step: int) -> dict[str, Any]:
        """Returns the epoch and phase that the update to `step` belonged to."""
        name = self.plan.phase_at(max(step - 1, 0)).spec.name
        return {"epoch": round(step / self.plan.steps_per_epoch, 4), "phase": name}


def told_classes(names: Sequence[str]) -> str:
    """Returns the names of classes, the first ones of many."""
    more = f" and {len(names) - CLASSES_SHOWN:,} more classes" if len(names) > CLASSES_SHOWN else ""
    return ", ".join(shortened_apart(names[:CLASSES_SHOWN], MOST_LETTERS).values()) + more


def _told_same(names: Sequence[str]) -> str:
    """Returns the names of a picture, the first ones of many."""
    more = f" and {len(names) - SHARED_SHOWN:,} more" if len(names) > SHARED_SHOWN else ""
    return " = ".join(names[:SHARED_SHOWN]) + more


def make_classifier(
    config: Config,
    backbone: Backbone,
    *,
    num_classes: int,
    num_examples: int,
    task: Task | None = None,
    dropout: float | None = None,
) -> Classifier:
    """Returns the network with the head that a configuration gives it.

    Args:
      config: with what was left to the pictures filled in, unless that is the head of --schedule=auto.
      backbone: of the network.
      num_classes: K.
      num_examples: pictures of train, which a head may keep.
      task: that of --task, where it has been made.
      dropout: of the head; None: --dropout.

    Raises:
      UsageError: --logits does not go with the number of classes.
    """
    task = task or make_task(config.data.task)
    model = config.model
    head = make_head(
        head_of(config),
        num_classes=num_classes,
        num_logits=task.num_logits(num_classes, asked=model.logits),
        dropout=model.dropout if dropout is None else dropout,
        seed=config.run.seed,
        num_examples=num_examples,
        width=backbone.contract.feature_width,
        task=task,
    )
    return Classifier(backbone, head, task)


def head_of(config: Config) -> str:
    """Returns the head that is asked for, or what `auto` stands for."""
    if is_auto(config.plan) and not config.fits:
        return rule_head(config.model.head)
    return DEFAULT_HEAD if config.model.head == "auto" else config.model.head
