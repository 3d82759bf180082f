"""Keeps the pauses of Python's garbage collector short.

Reference counting frees nearly everything here; the collector looks for what refers to itself in circles. A full
collection looks at every object: modules, classes and all of the caches, for 55 to 70 ms after the imports alone. All
that while nothing else happens, so the objects that arrive then wait for their Jobs.
"""

import gc

THRESHOLDS = (2_000, 5, 10)
"""New objects after which the youngest are looked through, and how often before the next older ones are.

Python's own 700 objects come together several times for each FunctionCallFineTune that is served.
"""


def settle() -> None:
    """Collect once, and leave what is there now out of all later collections: it lives as long as the process."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
