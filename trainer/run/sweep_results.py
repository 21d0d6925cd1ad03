"""What a sweep leaves: a table, the flagfile of the best trial, a page, and all numbers."""

import logging
import math
import shlex
import sys
from typing import Any

import optuna
from optuna.trial import TrialState

from trainer.report.sweep_page import Page, Row, sweep_page
from trainer.run.sweep import Result
from trainer.store.files import write_json, write_text
from trainer.values import called

_log = logging.getLogger("trainer")
SHOWN = 10


def write_results(result: Result) -> None:
    """Writes best.flags, sweep.json and index.html, and says what is in them."""
    asked, folder = result.asked, result.asked.folder
    page = _page(result)
    texts = result.texts(result.best)
    run = asked.config.run
    as_asked = {
        name: getattr(run, name)
        for name in ("keep_checkpoints", "assert_accuracy_at_least", "assert_at_least")
    }
    config = asked.of_trial(texts, folder / "best").replace(**as_asked)
    options = " ".join(f"--{name}={text}" for name, text in texts.items())
    head = [
        f"# Trial {result.best + 1} of a sweep for {asked.config.sweep.metric}: "
        f"{result.value(result.best):.6g} with {options}",
        f"# {page.verdict}",
        f"# {called()} --flagfile={shlex.quote(str(folder / 'best.flags'))}",
    ]
    write_text(folder / "best.flags", "\n".join(head) + "\n" + config.flagfile())
    write_json(folder / "sweep.json", _numbers(result, page))
    write_text(folder / "index.html", sweep_page(page))
    for line in _table(page):
        _log.info("%s", line)
    _log.info("%s", page.verdict)
    _log.info("best:        %s", folder / "best.flags")
    _log.info("page:        %s", folder / "index.html")
    tensorboard = shlex.join([sys.executable, "-m", "tensorboard.main", "--logdir", str(folder)])
    _log.info("TensorBoard: %s", tensorboard)


def _page(result: Result) -> Page:
    asked = result.asked
    rows = []
    for trial in result.trials:
        is_known = trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
        values = trial.user_attrs.get("values", {})
        rows.append(
            Row(
                number=trial.number + 1,
                state={"COMPLETE": "done", "PRUNED": "ended early", "FAIL": "failed"}.get(
                    trial.state.name, "under way"
                ),
                value=values.get(asked.metric) if is_known else None,
                options=dict(trial.user_attrs.get("options", {})),
                seconds=trial.user_attrs.get("seconds"),
                why=trial.user_attrs.get("why", ""),
            )
        )
    return Page(
        metric=asked.config.sweep.metric,
        maximize=asked.maximize,
        rows=rows,
        best=result.best + 1,
        repeats={number + 1: values for number, values in result.repeats.items()},
        spread=result.spread,
        importance=_importance(result),
        search=[f"{one.option}" for one in asked.space],
        source=asked.config.data.source,
        how=f"{asked.config.sweep.sampler}, pruner {asked.config.sweep.pruner}, seed {asked.config.run.seed}",
    )


def _importance(result: Result) -> dict[str, float]:
    """Returns {what is drawn: its share of what the value depends on}, the most important first."""
    trials = [trial for trial in result.trials if trial.state == TrialState.COMPLETE]
    if len(trials) < 4 or len({trial.value for trial in trials}) < 2:
        return {}
    study = optuna.create_study(direction="maximize" if result.asked.maximize else "minimize")
    study.add_trials(trials)
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    try:
        found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    except (ValueError, RuntimeError) as error:
        _log.warning("importance:  cannot be computed: %s", error)
        return {}
    return {name: float(share) for name, share in found.items() if math.isfinite(share)}


def _numbers(result: Result, page: Page) -> dict[str, Any]:
    """Returns what sweep.json holds."""
    spread = page.spread
    return {
        "metric": page.metric,
        "maximize": page.maximize,
        "best": page.best,
        "verdict": page.verdict,
        "trials": [row.to_json() for row in page.rows],
        "repeats": {str(number): values for number, values in page.repeats.items()},
        "spread": spread._asdict() if spread else None,
        "importance": page.importance,
    }


def _table(page: Page) -> list[str]:
    """Returns the best trials as lines of text."""
    names = page.option_names
    rows = [["trial", page.metric, *names]]
    for row in page.ranked()[:SHOWN]:
        rows.append([str(row.number), f"{row.value:.4f}", *(row.shown(name) for name in names)])
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    counts = page.counts()
    return [*lines, ", ".join(f"{count} {what}" for what, count in counts.items() if count)]
