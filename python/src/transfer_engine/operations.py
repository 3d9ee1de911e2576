"""The operations, submitted one at a time or in batches: both have the same methods."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, List, Optional, Sequence, Union

from . import _native
from .config import Slice, nanoseconds
from .memory import Group, Peer, Region, Remote
from .transfer import Transfer

if TYPE_CHECKING:
    from .engine import Engine

__all__ = ["Operations", "Batch"]

_IMMEDIATE, _BARRIER = 4, 5


class Operations:
    """What can be submitted. Arguments are checked before anything is sent."""

    _handle: int
    _has_thread: bool

    def write(
        self, source: Region, target: Remote, byte_count: Optional[int] = None, *, source_offset: int = 0,
        target_offset: int = 0, immediate: Optional[int] = None, timeout: Optional[float] = None,
    ) -> Transfer:
        """Writes one contiguous range (by default all of `source`); the receiver counts `immediate` once.

        The source must stay unchanged until the transfer has ended.
        """
        if byte_count is None:
            byte_count = source.nbytes - source_offset
        return self._submitted(_native.write(
            self._handle, self._has_thread, source._handle, source_offset, byte_count, target._handle, target_offset,
            immediate, 0 if timeout is None else nanoseconds(timeout, 0)))

    def write_pages(
        self, page_bytes: int, source: Region, source_pages: Any, target: Remote, target_pages: Any, *,
        source_stride: int = 0, target_stride: int = 0, source_offset: int = 0, target_offset: int = 0,
        immediate: Optional[int] = None, timeout: Optional[float] = None,
    ) -> Transfer:
        """Copies pages `source_pages[i]` of `source` to pages `target_pages[i]` of `target`, in any order; the receiver counts
        `immediate` once for each.

        Page i begins at offset + i * stride; a stride of 0 is `page_bytes`. The lists are arrays of 32- or 64-bit integers
        (numpy, array, torch; 32 bits without a copy) or any sequence of ints.
        """
        return self._submitted(_native.paged(
            self._handle, self._has_thread, source._handle, source_offset, source_stride or page_bytes,
            target._handle, target_offset, target_stride or page_bytes, page_bytes, source_pages, target_pages,
            immediate, 0 if timeout is None else nanoseconds(timeout, 0)))

    def scatter(
        self, source: Region, slices: Sequence[Slice], group: Group, *, immediate: Optional[int] = None,
        timeout: Optional[float] = None,
    ) -> Transfer:
        """Writes slice i, (source offset, bytes, target offset), to member i of the group; each counts `immediate` once."""
        return self._submitted(_native.scatter(
            self._handle, self._has_thread, source._handle, group._handle, slices, immediate,
            nanoseconds(timeout, 0)))

    def send_immediate(
        self, target: Union[Remote, Peer], immediate: int, *, timeout: Optional[float] = None
    ) -> Transfer:
        """Sends an immediate without data."""
        return self._submitted(_native.immediate(
            self._handle, self._has_thread, _IMMEDIATE, target._handle, immediate, nanoseconds(timeout, 0)))

    def barrier(self, group: Group, immediate: int, *, timeout: Optional[float] = None) -> Transfer:
        """Meets the other members: sends each an immediate, and ends when as many have been counted here."""
        return self._submitted(_native.immediate(
            self._handle, self._has_thread, _BARRIER, group._handle, immediate, nanoseconds(timeout, 0)))

    def send(self, peer: Peer, payload: Any, *, timeout: Optional[float] = None) -> Transfer:
        """Sends a message of at most 16384 bytes, which the peer gets whole from `Engine.receive`. It is copied."""
        return self._submitted(_native.send(
            self._handle, self._has_thread, peer._handle, payload, nanoseconds(timeout, 0)))

    def expect(
        self, immediate: int, count: int = 1, *, senders: Sequence[Peer] = (), timeout: Optional[float] = None
    ) -> Transfer:
        """Waits until `immediate` has been counted `count` times, and takes them away. Early arrivals count.

        When one of `senders` is lost the wait fails with its name.
        """
        return self._submitted(_native.expect(
            self._handle, self._has_thread, immediate, count, tuple(peer._handle for peer in senders),
            nanoseconds(timeout, 0)))

    def _submitted(self, handle: int) -> Transfer:
        return Transfer(self, handle)  # type: ignore[arg-type]


class Batch:
    """Operations that are submitted in one call. Made by `Engine.batch`; its methods take what the engine's take.

    ```python
    batch = engine.batch()
    for layer in layers:
        batch.write_pages(page_bytes, layer.region, blocks, layer.target, theirs, immediate=layer.number)
    transfers = batch.submit()
    ```
    """

    def __init__(self, engine: "Engine") -> None:
        self.engine = engine
        self._batch = _native.Batch()

    def __len__(self) -> int:
        return self._batch.count

    def write(
        self, source: Region, target: Remote, byte_count: Optional[int] = None, *, source_offset: int = 0,
        target_offset: int = 0, immediate: Optional[int] = None, timeout: Optional[float] = None,
    ) -> None:
        """Adds `Engine.write`."""
        if byte_count is None:
            byte_count = source.nbytes - source_offset
        self._batch.write(source._handle, source_offset, byte_count, target._handle, target_offset, immediate,
                          nanoseconds(timeout, 0))

    def write_pages(
        self, page_bytes: int, source: Region, source_pages: Any, target: Remote, target_pages: Any, *,
        source_stride: int = 0, target_stride: int = 0, source_offset: int = 0, target_offset: int = 0,
        immediate: Optional[int] = None, timeout: Optional[float] = None,
    ) -> None:
        """Adds `Engine.write_pages`. The lists must not change before `submit`."""
        self._batch.paged(source._handle, source_offset, source_stride or page_bytes, target._handle, target_offset,
                          target_stride or page_bytes, page_bytes, source_pages, target_pages, immediate,
                          nanoseconds(timeout, 0))

    def scatter(
        self, source: Region, slices: Sequence[Slice], group: Group, *, immediate: Optional[int] = None,
        timeout: Optional[float] = None,
    ) -> None:
        """Adds `Engine.scatter`."""
        self._batch.scatter(source._handle, group._handle, slices, immediate, nanoseconds(timeout, 0))

    def send_immediate(
        self, target: Union[Remote, Peer], immediate: int, *, timeout: Optional[float] = None
    ) -> None:
        """Adds `Engine.send_immediate`."""
        self._batch.immediate(_IMMEDIATE, target._handle, immediate, nanoseconds(timeout, 0))

    def barrier(self, group: Group, immediate: int, *, timeout: Optional[float] = None) -> None:
        """Adds `Engine.barrier`."""
        self._batch.immediate(_BARRIER, group._handle, immediate, nanoseconds(timeout, 0))

    def send(self, peer: Peer, payload: Any, *, timeout: Optional[float] = None) -> None:
        """Adds `Engine.send`."""
        self._batch.send(peer._handle, payload, nanoseconds(timeout, 0))

    def expect(
        self, immediate: int, count: int = 1, *, senders: Sequence[Peer] = (), timeout: Optional[float] = None
    ) -> None:
        """Adds `Engine.expect`."""
        self._batch.expect(immediate, count, tuple(peer._handle for peer in senders), nanoseconds(timeout, 0))

    def submit(self) -> List[Transfer]:
        """Submits everything in order, and empties the batch.

        When an operation is refused, its exception is raised with the transfers of those before it, which go on, in
        its attribute `transfers`; the others are dropped.
        """
        handles, error = self._batch.submit(self.engine._handle)
        transfers = [Transfer(self.engine, handle) for handle in handles]
        if error is not None:
            error.transfers = transfers
            raise error
        return transfers
