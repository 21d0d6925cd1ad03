"""`serve`: a page on this machine to drop pictures on, which shows what a finished run says, and why."""

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from trainer.cli.declare import NETWORK
from trainer.cli.flags import CommandLine
from trainer.data.inspect.bad_pictures import BadPictureError
from trainer.model.saliency import check_saliency
from trainer.record.workdir import Workdir
from trainer.report.overlays import overlay_png
from trainer.run.explanations import Explanations, label_of
from trainer.run.finished_run import open_network
from trainer.serving.app import Network, Overlay, RefusedError, make_app
from trainer.serving.server import Listener
from trainer.values import TrainerError, UsageError

_log = logging.getLogger("trainer")


def run(line: CommandLine) -> int:
    """Serves the page until Ctrl-C; returns the exit status."""
    workdir = Workdir(line.config.run.workdir)
    config = workdir.read_for(line.given, found_out=[NETWORK])
    check_saliency(config.explain.saliency)
    options = config.serve
    # First of all: loading the network takes seconds.
    listener = Listener(options.bind, options.port)
    opened = open_network(workdir, config)
    # Alone in its batch, a picture costs the least; the last bits of its probabilities may be others.
    explanations = Explanations(opened, config, batch_size=1)
    about = {
        "run": workdir.root.name,
        "network": _told(config.model.backbone),
        "weights": f"of step {opened.step:,}",
        "classes": f"{len(opened.class_names):,}",
        "input": f"{opened.contract.width_px}x{opened.contract.height_px} px",
    }
    app = make_app(
        _asked(explanations, about),
        max_upload_bytes=options.max_upload_mb * 2**20,
        hosts=listener.names,
        any_address=listener.is_any,
    )
    if not listener.is_local:
        _log.warning("--bind=%s: anybody on the network can use this page", options.bind)
    _log.info("serving %s (Ctrl-C ends it)", listener.url)
    listener.serve(app)
    return 0


def _told(backbone: str) -> str:
    """Returns the name of a network; of a folder on this machine, only its last part."""
    scheme, _, rest = backbone.partition(":")
    return f"{scheme}:{Path(rest).name}" if rest.startswith(("/", "~")) else backbone


def _asked(explanations: Explanations, about: dict[str, str]) -> Network:
    """Returns what the page asks of a network, which has answered once: the first time takes longest."""
    names = explanations.class_names

    def read(data: bytes) -> np.ndarray:
        try:
            return explanations.pixels(data, name="the picture")
        except BadPictureError as error:
            raise RefusedError(f"this picture cannot be read: {error.reason}") from None

    def predict(data: bytes) -> list[tuple[str, float]]:
        [probabilities] = explanations.probabilities([read(data)])
        return [(names[k], float(probabilities[k])) for k in np.argsort(-probabilities, kind="stable")]

    def explain(data: bytes, wanted: str) -> Overlay:
        try:
            asked = label_of(wanted, names, flag="class") if wanted else None
        except UsageError as error:
            raise RefusedError(str(error)) from None
        pixels = read(data)
        [probabilities] = explanations.probabilities([pixels])
        label = explanations.task.explained_class(probabilities) if asked is None else asked
        found = explanations.explain(data, pixels, label)
        png = overlay_png(found.picture, found.saliency.heat)
        return Overlay(names[label], float(probabilities[label]), png)

    method = explanations.method_title
    try:
        explanations.rehearse()
    except TrainerError as error:
        _log.warning("the page will not say why: %s", error)
        method = ""
    found = explanations.task.thresholds(len(names))
    thresholds = None if found is None else dict(zip(names, found, strict=True))

    def decide(probabilities: Mapping[str, float]) -> tuple[str, ...]:
        task, of_all = explanations.task, np.array([probabilities[name] for name in names])
        return task.names(task.decisions(of_all[None])[0], names)

    return Network(about, predict, explain, method, thresholds, decide)
