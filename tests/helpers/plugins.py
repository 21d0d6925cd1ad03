"""Plugins that tests load, and forget."""

from trainer import plugins


def forget_plugins():
    """Forgets all, as a new process would not know them."""
    for origin in list(plugins.loaded):
        plugins.forget(origin)
