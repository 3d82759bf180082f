"""Settings of Python's garbage collector that keep its pauses short.

Reference counting frees nearly everything here. A full collection of reference cycles visits every object: modules,
classes and caches, which takes 55 to 70 ms after the imports alone. New objects have to wait for their Jobs meanwhile.
"""

import gc

THRESHOLDS = (2_000, 5, 10)
"""Thresholds of the three generations.  The default of 700 objects would be reached several times per reconciled
FunctionCallFineTune."""


def settle() -> None:
    """Collect once, and exclude the existing objects from later collections: they live as long as the process."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
