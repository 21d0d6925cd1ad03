"""`synthetic:flowers`: photos that are drawn, for machines that can download none.

The demo and the tests train on them: classes are told apart by shape and colour, and each picture is drawn
from its own seed.
"""

from trainer.data.sources.synthetic.source import open_synthetic

__all__ = ["open_synthetic"]
