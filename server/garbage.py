"""When Python looks for garbage that only a search finds."""

from __future__ import annotations

import gc

# A request leaves few cycles behind, and most of what is allocated while many requests wait is theirs and alive: at
# CPython's 700 the search took a fifth of a busy server's time and lengthened its slowest answers to twice as long.
_YOUNG = 20_000
_MIDDLE, _OLD = 50, 100


def tune() -> None:
    """To be called when all is imported and set up: what is alive then is never searched again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG, _MIDDLE, _OLD)
