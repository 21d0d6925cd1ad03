"""What TensorBoard's tabs show of a folder: its own plugins are asked, without a server."""

from pathlib import Path
from typing import Any

from google.protobuf import json_format
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import api_pb2, list_session_groups
from tensorboard.plugins.hparams.backend_context import Context
from tensorboard.plugins.projector.projector_plugin import ProjectorPlugin
from werkzeug.test import Client


def hparams_rows(logdir: Path) -> dict[str, dict[str, float]]:
    """Returns {name of a row: {column: value}} of the metrics in the HPARAMS tab."""
    asked = json_format.Parse(
        '{"allowedStatuses": ["STATUS_UNKNOWN", "STATUS_RUNNING"], "sliceSize": 100}',
        api_pb2.ListSessionGroupsRequest(),
    )
    groups = list_session_groups.Handler(RequestContext(), Context(_context(logdir)), "", asked).run()
    return {
        group.name: {metric.name.tag: metric.value for metric in group.metric_values}
        for group in groups.session_groups
    }


def hparams_columns(logdir: Path) -> tuple[list[str], set[str]]:
    """Returns the options of the HPARAMS tab, in its order, and the names of its metrics."""
    context, request, names = (
        Context(_context(logdir)),
        RequestContext(),
        "",
    )
    metadata = context.hparams_metadata(request, names)
    found = context.experiment_from_metadata(request, names, True, metadata, None)
    return [info.name for info in found.hparam_infos], {info.name.tag for info in found.metric_infos}


class Projector:
    """The PROJECTOR tab."""

    def __init__(self, logdir: Path):
        self._routes = ProjectorPlugin(_context(logdir)).get_plugin_apps()

    def get(self, route: str, **query: Any) -> Any:
        """Returns the answer: `json`, `text` and `data` of it."""
        answer = Client(self._routes[route]).get(query_string=query)
        assert answer.status_code == 200, answer.text
        return answer


def _context(logdir: Path) -> TBContext:
    runs = EventMultiplexer(tensor_size_guidance={"scalars": 0})
    runs.AddRunsFromDirectory(str(logdir))
    runs.Reload()
    return TBContext(data_provider=MultiplexerDataProvider(runs, str(logdir)), logdir=str(logdir))
