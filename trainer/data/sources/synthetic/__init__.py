"""`synthetic:flowers`: photos that are drawn, for machines that can download none.

The demo and the tests train on them: classes are told apart by shape and colour, and each picture is drawn
from its own seed.
"""
