"""What people look at after a run: the page of an evaluation, figures, curves, overlays, comparisons.

It reads what `record` wrote and draws what `metrics` computed; it computes no number of its own.
"""
