"""Point-to-point transfers for LLM systems: one-sided writes whose arrival the receiver counts.

```python
import transfer_engine as te

with te.Engine("prefill") as engine:
    kv = engine.register(tensor)
    target = engine.attach(descriptor)                     # bytes from the peer's region.descriptor
    engine.write_pages(page_bytes, kv, blocks, target, theirs, immediate=layer).wait()
```
"""

from . import _native
from .config import NIC, Digest, Libfabric, SharedMemory, Statistics, Verbs
from .engine import Engine
from .errors import *  # noqa: F401,F403
from .errors import __all__ as _errors
from .errors import _make
from .memory import Group, Peer, Region, Remote
from .operations import Batch
from .transfer import Lease, Transfer, Watcher

_native.set_error_maker(_make)

__all__ = [
    "Engine", "Region", "Remote", "Peer", "Group", "Transfer", "Watcher", "Lease", "Batch", "Statistics", "Digest",
    "NIC", "SharedMemory", "Libfabric", "Verbs", *_errors,
]
