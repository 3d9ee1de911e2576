"""Regions of this process, and what there is of peers."""

from __future__ import annotations

import ctypes
import math
from typing import TYPE_CHECKING, Any, Optional, Sequence, Tuple

from . import _native
from .config import Digest
from .errors import Busy

if TYPE_CHECKING:
    import numpy
    import torch

    from .engine import Engine

__all__ = ["Region", "Remote", "Peer", "Group"]


class Region(_native.Memory):
    """Registered memory: a source of writes, and a target of peers' writes where that was allowed.

    Made by `Engine.allocate` and `Engine.register`. It has the buffer protocol and DLPack: `memoryview(region)`,
    `numpy.asarray(region)`, `torch.from_dlpack(region)` are views of the same bytes. Peers may be writing: read what
    a counter has announced.
    """

    def __init__(self, engine: "Engine", what: Any, access: int, nics: int, is_populated: bool) -> None:
        super().__init__(engine._handle, what, access, nics, is_populated)
        self.engine = engine
        """The engine that it is registered with."""

    @property
    def descriptor(self) -> bytes:
        """What a peer needs to write into the region, for `Engine.attach`: send it by any channel."""
        return _native.region_descriptor(self._handle)

    def revoke(self) -> None:
        """Ends every peer's right to write into the region, and returns when that is true. `descriptor` is new then.

        Raises `Busy` while a transfer has the region as its source.
        """
        _native.region_revoke(self._handle)

    def digest(self, offset: int = 0, byte_count: Optional[int] = None, target_offset: Optional[int] = None) -> Digest:
        """The digest of a range that goes to, or has arrived at, `target_offset` (default: `offset`) of its target."""
        byte_count = self.nbytes - offset if byte_count is None else byte_count
        target = offset if target_offset is None else target_offset
        return Digest(*_native.digest_range(self._handle, offset, byte_count, target))

    def numpy(self, dtype: Any = "uint8", shape: Optional[Sequence[int]] = None, offset: int = 0) -> "numpy.ndarray":
        """A numpy array of the region's bytes from `offset` on, without a copy."""
        import numpy

        count = -1 if shape is None else math.prod(shape)
        array = numpy.frombuffer(memoryview(self), dtype=dtype, count=count, offset=offset)
        return array if shape is None else array.reshape(shape)

    def torch(self, dtype: Any = None, shape: Optional[Sequence[int]] = None, offset: int = 0) -> "torch.Tensor":
        """A torch tensor of the region's bytes from `offset` on, without a copy."""
        import torch

        dtype = torch.uint8 if dtype is None else dtype
        count = -1 if shape is None else math.prod(shape)
        tensor = torch.frombuffer(self, dtype=dtype, count=count, offset=offset)
        return tensor if shape is None else tensor.reshape(tuple(shape))

    def __dlpack__(self, *, stream: Any = None, max_version: Any = None, dl_device: Any = None, copy: Any = None) -> Any:
        if copy:
            raise BufferError("a region lends its memory; copy what you get")
        return self._dlpack()

    def __dlpack_device__(self) -> Tuple[int, int]:
        return (1, 0)

    def __len__(self) -> int:
        return self.nbytes

    def close(self) -> None:
        """Ends the registration: nobody can write into the memory afterwards. Again is fine.

        Raises `Busy` while a transfer has it as its source, and BufferError while views of allocated memory exist.
        """
        self._release()
        self.engine._regions.discard(self)

    def __enter__(self) -> "Region":
        return self

    def __exit__(self, kind: Any, *unused: object) -> None:
        try:
            self.close()
        except (BufferError, Busy):
            if kind is None:  # otherwise what went wrong is worth more
                raise

    def __repr__(self) -> str:
        return f"<Region of {self.nbytes} bytes>" if self._handle else "<Region, closed>"


class _Named:
    """Something of a peer with a handle."""

    __slots__ = ("_handle", "engine")

    def __init__(self, engine: "Engine", handle: int) -> None:
        self._handle = handle
        self.engine = engine

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def close(self) -> None:
        raise NotImplementedError


class Remote(_Named):
    """A peer's region, ready to be written into. Made by `Engine.attach`."""

    __slots__ = ("nbytes", "engine_id")

    def __init__(self, engine: "Engine", handle: int) -> None:
        super().__init__(engine, handle)
        self.nbytes, self.engine_id = _native.remote_info(handle)

    def close(self) -> None:
        """Detaches. Raises `Busy` while a transfer to it has not ended. Again is fine."""
        if self._handle and self.engine._handle:
            _native.remote_detach(self._handle)
        self._handle = 0

    def __repr__(self) -> str:
        return f"<Remote of {self.nbytes} bytes at engine {self.engine_id:016x}>"


class Peer(_Named):
    """An engine that was connected to: a target of messages, immediates and barriers. Made by `Engine.connect`."""

    __slots__ = ("name", "engine_id")

    def __init__(self, engine: "Engine", handle: int) -> None:
        super().__init__(engine, handle)
        self.engine_id, self.name = _native.peer_info(handle)

    def close(self) -> None:
        """Disconnects. Raises `Busy` while a transfer to it has not ended. Again is fine."""
        if self._handle and self.engine._handle:
            _native.peer_disconnect(self._handle)
        self._handle = 0

    def __repr__(self) -> str:
        return f"<Peer {self.name!r} {self.engine_id:016x}>"


class Group(_Named):
    """Remotes or peers resolved once, for scatters and barriers. Made by `Engine.group`."""

    __slots__ = ("members",)

    def __init__(self, engine: "Engine", members: Sequence[Any]) -> None:
        super().__init__(engine, _native.group_create(engine._handle, [member._handle for member in members]))
        self.members = tuple(members)

    def close(self) -> None:
        """Forgets the group; transfers to it go on. Again is fine."""
        if self._handle and self.engine._handle:
            _native.group_destroy(self._handle)
        self._handle = 0

    def __len__(self) -> int:
        return len(self.members)


def bytes_of(object: Any) -> Any:
    """Something with the buffer protocol over the memory of `object`, which may be a torch tensor of any type."""
    pointer = getattr(object, "data_ptr", None)
    if pointer is None:
        return object
    if object.device.type != "cpu" or not object.is_contiguous():
        raise ValueError("tensors have to be contiguous, in the memory of the CPU")
    length = object.numel() * object.element_size()
    return (ctypes.c_char * length).from_address(pointer()) if length else bytearray()
