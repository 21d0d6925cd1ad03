"""The verbs called from Python: `trainer.train` and `trainer.load`, and the run that they return.

Options become a command line, which is parsed as one that was typed: the same checks, the same messages.
"""

import contextlib
import html
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Unpack

from trainer import commands
from trainer.cli import flags
from trainer.cli.keywords import Options, PathLike
from trainer.paths import local_path
from trainer.plugins import apart, failures_named, load_plugins
from trainer.record.workdir import Workdir
from trainer.report.words import told_ranking
from trainer.values import TrainerError, UsageError, in_words

if TYPE_CHECKING:
    from trainer.commands.predict import Predictor
    from trainer.data.picture_files import Found
    from trainer.record.predictions import Prediction
    from trainer.run.experiment import Experiment

_BEST = "best"


def train(**options: Unpack[Options]) -> "Run":
    """Does what `trainer.train` says."""
    line = _line("train", options)
    with _told():
        commands.run(line)
    return Run(line.config.run.workdir, is_there=commands.has_the_run())


def load(
    workdir: PathLike, *, checkpoint: str | int = _BEST, plugin: PathLike | Sequence[PathLike] = ()
) -> "Run":
    """Does what `trainer.load` says."""
    with _told():
        commands.start("predict")
        from trainer.export.metadata import (
            is_model,  # It imports TensorFlow, which has now begun as it should.
        )

        if is_model(local_path(workdir, flag=os.fspath(workdir))):
            load_plugins(_paths(plugin))
            return ExportedRun(workdir)
        if plugin:
            raise UsageError(f"plugin={plugin!r}: a run brings its own; an exported model may need one")
        local_path(workdir, flag=os.fspath(workdir), for_tensorflow=True)
        return Run(workdir, checkpoint=checkpoint)


def prepare(**options: Unpack[Options]) -> "Experiment":
    """Does what `trainer.prepare` says."""
    line = _line("inspect", options)
    with _told():
        commands.opened(line)
        from trainer.run.experiment import Experiment

        return Experiment(line.config)


@dataclass(frozen=True)
class Explained:
    """What a run says of a picture, and what it goes by: a line of explain.jsonl.

    `file` is the drawing, None where `error` says why there is none. `box` is the part of the picture that
    speaks most for `explained_class`, which is the predicted one unless --explain_class names another.
    """

    path: str
    true_label: str | None
    label: str | None
    probability: float | None
    explained_class: str | None
    explained_probability: float | None
    method: str | None
    file: Path | None
    box: Any
    gain: float | None
    completeness_error: float | None
    error: str | None


@dataclass(frozen=True)
class Exported:
    """What was exported: `folder`, and `parity`, which is what parity.json in it holds (docs/export.md)."""

    folder: Path
    parity: dict[str, Any]

    @property
    def files(self) -> tuple[Path, ...]:
        """The models: SavedModel folders and files."""
        return tuple(self.folder / name for name in dict.fromkeys(m["file"] for m in self.parity["models"]))


class Run:
    """A run that has trained: what its folder holds, and what can be done with it.

    Made by `trainer.train` and `trainer.load`. Safe to use from several threads; what two of them write
    into one folder at once, as two evaluations do, the later one leaves there.

    Attributes:
      workdir: the folder, absolute.
      checkpoint: whose weights predict, explain, export and evaluate take: best, latest, or a step.
    """

    def __init__(self, workdir: PathLike, *, checkpoint: str | int = _BEST, is_there: bool = True):
        """Looks whether there is such a run, if it is to be there.

        Raises:
          TrainerError: there is no run, or not this checkpoint.
        """
        self._of = Workdir(os.fspath(workdir))
        self.workdir, self.checkpoint = self._of.root, str(checkpoint)
        self._opening = threading.Lock()
        self._predictor: Predictor | None = None
        if is_there:
            self._require()

    @property
    def _folder(self) -> Workdir:
        return self._of

    def _require(self) -> None:
        """Raises TrainerError where there is nothing to work with."""
        self._line("evaluate")
        config = self._folder.read_config()
        from trainer.record.checkpoints import Checkpoints

        Checkpoints(self._folder.checkpoints, keep=config.run.keep_checkpoints).find(self.checkpoint)

    @property
    def options(self) -> dict[str, Any]:
        """All options of the run, {name of the flag: value}; what a rule chose is filled in."""
        return self._folder.read_filled_in().flat()

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes, in the order of the network's outputs."""
        return tuple(self._folder.read_facts()["class_names"])

    @property
    def metrics(self) -> dict[str, Any]:
        """What the report found: report/metrics.json, whose keys docs/report.md explains.

        Training ends with it: it is of the best weights, on test, or on validation where there is no test.

        Raises:
          TrainerError: there is no report.
        """
        from trainer.report.scored import read_report

        return read_report(self._reported("metrics.json"))

    @property
    def history(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, what was logged under way: {"step", "split", "loss", "accuracy", ...}.

        Those of split `train` are means since the line before; those of `validation` are evaluations.
        """
        from trainer.report.curves import read_metrics

        return read_metrics(self._folder.metrics_jsonl)

    @property
    def report(self) -> Path:
        """The page of the report, report/index.html.

        Raises:
          TrainerError: there is no report.
        """
        return self._reported("index.html")

    def predict(self, paths: PathLike | Iterable[PathLike]) -> "list[Prediction]":
        """Predicts pictures, in the order given, each once.

        The pictures that the run was trained with need not be there.

        Args:
          paths: one or more files, folders (the pictures below them) or patterns such as `a/*.jpg`.

        Returns:
          One for each picture; of those that could not be read, `error` says why.

        Raises:
          TrainerError: the network cannot be opened, or TensorFlow fails.
        """
        with _told():
            return self._opened().predict(paths)

    def stream(self, found: "Iterable[Found]") -> "Iterator[Prediction]":
        """Yields predictions in the order of what was found, batch by batch: for what has no end."""
        with _told():
            opened = self._opened()
        return opened.stream(found)

    def predict_encoded(self, pictures: Iterable[tuple[str, bytes]]) -> "list[Prediction]":
        """Predicts encoded pictures, given with a name each: does as `predict` does with files."""
        with _told():
            return self._opened().predict_encoded(pictures)

    def evaluate(self, **options: Unpack[Options]) -> dict[str, Any]:
        """Scores a split, or other pictures, and writes a report.

        Args:
          **options: of the command `evaluate`, such as eval_split="validation", or source="folder:others" for
            pictures that the run was not made with; report_dir.

        Returns:
          What metrics.json of the report holds.

        Raises:
          TrainerError: the pictures cannot be had, or the accuracy is below assert_accuracy_at_least.
        """
        with self._verb("evaluate", options) as (verb, line):
            scored: dict[str, Any] = verb.evaluate(line)
        return scored

    def explain(
        self, paths: PathLike | Iterable[PathLike] | None = None, **options: Unpack[Options]
    ) -> list[Explained]:
        """Draws which regions of pictures drive a prediction.

        Args:
          paths: as of `predict`; None: the worst mistakes of the report.
          **options: of the command `explain`, such as explain_class="roses", saliency, output.

        Returns:
          One for each picture.

        Raises:
          TrainerError: the network cannot be opened or explained, or no report has the mistakes.
        """
        if paths is not None and not (paths := _paths(paths)):
            return []
        with self._verb("explain", options, paths or ()) as (verb, line):
            folder, found = verb.explain(line)
        return [Explained(**{**one, "file": one["file"] and folder / one["file"]}) for one in found]

    def export(self, **options: Unpack[Options]) -> Exported:
        """Writes the network as SavedModel and TFLite, and checks each in a process of its own.

        Args:
          **options: of the command `export`, such as formats="saved_model,int8", export_dir,
            max_accuracy_drop.

        Raises:
          TrainerError: the pictures of the run cannot be had, a model cannot be made, or one loses more than
            max_accuracy_drop; all is written by then.
        """
        with self._verb("export", options) as (verb, line):
            folder, parity = verb.export(line)
        return Exported(folder, parity)

    def __repr__(self) -> str:
        return f"<trainer run in {self.workdir}, checkpoint {self.checkpoint}>"

    def _repr_html_(self) -> str:
        """Returns a table for notebooks. It never fails: a run without a report has fewer rows."""
        rows = [("run", str(self.workdir))]
        with contextlib.suppress(TrainerError):
            options = self.options
            rows.append(("pictures", f"{options['source']}, {len(self.class_names)} classes"))
            rows.append(("backbone", options["backbone"]))
        with contextlib.suppress(TrainerError):
            values = self.metrics
            low, high = values["accuracy_95_percent_interval"]
            if values.get("several_labels"):
                rows.append((f"{values['split']} labels", told_ranking(values)))
            rows.append(
                (
                    f"{values['split']} accuracy",
                    f"{100 * values['accuracy']:.2f} % ({values['num_correct']:,} of "
                    f"{values['num_examples']:,}; 95 % interval {100 * low:.1f} to {100 * high:.1f} %)",
                )
            )
            rows.append(("loss", f"{values['loss']:.4f}"))
            rows.append(("weights of step", f"{values['step']:,}"))
            rows.append(("report", str(self.report)))
        cells = "".join(
            f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
            f"<td style='text-align:left'>{html.escape(value)}</td></tr>"
            for name, value in rows
        )
        return f"<table>{cells}</table>"

    def _reported(self, name: str) -> Path:
        path = self._folder.report / name
        if not path.exists():
            raise TrainerError(f"there is no {path}: `evaluate` writes it")
        return path

    def _line(
        self, command: str, options: Mapping[str, Any] | None = None, paths: Sequence[str] = ()
    ) -> flags.CommandLine:
        options = options or {}
        if "workdir" in options:
            raise UsageError(f"--workdir={options['workdir']}: the run in {self.workdir} has its own")
        given = {"workdir": str(self.workdir), "checkpoint": self.checkpoint, **options}
        return _line(command, given, paths)

    @contextlib.contextmanager
    def _verb(
        self, command: str, options: Options, paths: PathLike | Iterable[PathLike] = ()
    ) -> Iterator[tuple[ModuleType, flags.CommandLine]]:
        """Yields the module of a command, and what it is asked; errors of the block are told in words."""
        line = self._line(command, options, _paths(paths))
        with _told():
            yield commands.opened(line), line

    def _opened(self) -> "Predictor":
        with self._opening:
            if self._predictor is None:
                self._predictor = self._open()
            return self._predictor

    def _open(self) -> "Predictor":
        verb = commands.opened(self._line("predict"))
        found: Predictor = verb.load_run(self._folder, checkpoint=self.checkpoint)
        return found


class ExportedRun(Run):
    """A model that `export` wrote: it predicts. For all else there is the run that it came from."""

    def __init__(self, path: PathLike):
        """Opens the model.

        Raises:
          TrainerError: it cannot be opened.
        """
        self.workdir, self.checkpoint = local_path(path, flag=os.fspath(path)), ""
        self._opening = threading.Lock()
        self._predictor = commands.start("predict").load_model(path)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes, in the order of the model's outputs."""
        return self._opened().class_names

    @property
    def _folder(self) -> Workdir:
        raise TrainerError(f"{self.workdir} is an exported model, and no run: it can only predict")

    def _line(
        self, command: str, options: Mapping[str, Any] | None = None, paths: Sequence[str] = ()
    ) -> flags.CommandLine:
        raise TrainerError(f"{self.workdir} is an exported model, and no run: it can only predict")

    def __repr__(self) -> str:
        return f"<trainer model in {self.workdir}>"


def _paths(paths: PathLike | Iterable[PathLike]) -> list[str]:
    return [os.fspath(path) for path in ([paths] if isinstance(paths, str | os.PathLike) else paths)]


def _line(command: str, options: Mapping[str, Any], paths: Sequence[str] = ()) -> flags.CommandLine:
    """Parses what was typed as keyword arguments."""
    files = options.get("flagfile")
    given = [f"--flagfile={os.fspath(file)}" for file in _several(files)]
    for name, value in options.items():
        if name != "flagfile":
            given += [f"--{name}={one}" for one in _texts(name, value)]
    return flags.parse(["trainer", command, *given, *(["--", *paths] if paths else [])])


def _texts(name: str, value: Any) -> list[str]:
    """Returns the values of a flag, as they are typed."""
    if isinstance(value, list | tuple) and name not in flags.REPEATED:
        raise UsageError(f"--{name}={value!r} must be one value, and is a {type(value).__name__}")
    return [os.fspath(one) if isinstance(one, os.PathLike) else str(one) for one in _several(value)]


def _several(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Does what a command does, with the plugins of its own; errors become the line of the command line.

    Raises:
      TrainerError: from the error itself.
    """
    try:
        with failures_named(), apart():
            yield
    except TrainerError:
        raise
    except Exception as error:
        if not (told := in_words(error)):
            raise
        raise TrainerError(told) from error
