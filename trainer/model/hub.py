"""tensorflow_hub, to be imported from here only: `from trainer.model.hub import hub`.

Its first line of work is `from pkg_resources import parse_version`, which setuptools has had to 81 and
nothing declares. packaging.version.parse is what that function is.
"""

import sys
import types
from typing import Any

from packaging.version import parse


def _imported() -> Any:
    """Imports tensorflow_hub with a stand-in for pkg_resources, which is gone again afterwards."""
    name = "pkg_resources"
    if name in sys.modules:
        import tensorflow_hub

        return tensorflow_hub
    stand_in = types.ModuleType(name)
    stand_in.__dict__["parse_version"] = parse
    sys.modules[name] = stand_in
    try:
        import tensorflow_hub
    finally:
        sys.modules.pop(name, None)
    return tensorflow_hub


hub = _imported()
