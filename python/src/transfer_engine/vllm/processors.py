"""Where an engine's threads may run inside vLLM."""

from __future__ import annotations

import contextlib
import os
from typing import Iterator

__all__ = ["on_all_processors"]


@contextlib.contextmanager
def on_all_processors() -> Iterator[None]:
    """Threads that begin in here may run wherever the process may. vLLM has bound this thread to the processor that computes; an
    engine's threads would inherit that, and wait there behind it."""
    bound = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, range(os.cpu_count() or 1))
        yield
    finally:
        os.sched_setaffinity(0, bound)
