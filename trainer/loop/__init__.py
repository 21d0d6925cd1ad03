"""The training loop and all that an update consists of.

Start with `loop.py` and `step.py`. Objectives, gradient rules, losses, metrics, schedules, optimizers,
averages and callbacks are registered functions: a new one is a function in its file, or in a plugin. Nothing
here knows of files, sources or options that are text.
"""
