"""The engine: one for each device of a process."""

from __future__ import annotations

import asyncio
import atexit
import itertools
import weakref
from typing import Any, AsyncIterator, Callable, Dict, Iterable, List, Optional, Sequence, Set, Tuple, Union

from . import _native
from .config import NIC, PROGRESS, Digest, Statistics, nanoseconds, parse_nic
from .errors import Closed, TransferError
from .memory import Group, Peer, Region, Remote
from .operations import Batch, Operations
from .transfer import Lease, Transfer, Watcher

__all__ = ["Engine"]

_TRAFFIC = {"normal": 0, "urgent": 1, "bulk": 2}
_TRANSFER, _RECEIPT, _WATCH, _MESSAGE = 1, 2, 3, 4


class Engine(Operations):
    """Point-to-point transfers of one device: one-sided writes whose arrival the receiver counts.

    ```python
    with te.Engine("decoder") as engine:
        region = engine.allocate(1 << 20)
        arrived = engine.expect(7, count=4)
        send(region.descriptor)            # by any channel, to the peer
        arrived.wait()                     # four writes with immediate 7 have arrived
    ```

    Times are in seconds. All methods may be called from any thread, unless the engine has no thread ("manual",
    "event_loop"): then from one thread at a time. Blocking calls release the GIL. An engine does not survive `fork`: open one
    in the child.
    """

    def __init__(
        self,
        name: str = "engine",
        *,
        nics: Sequence[NIC] = ("shm",),
        progress: str = "adaptive",
        spin: Optional[float] = None,
        processor: Optional[int] = None,
        timeout: float = 30.0,
        liveness_interval: float = 1.0,
        liveness_intervals: int = 3,
        stripe_bytes: int = 65536,
        trace_events: int = 8192,
        trace_directory: Optional[str] = None,
        event_capacity: int = 16384,
        message_capacity: int = 1024,
    ) -> None:
        """Opens an engine.

        - name: appears in errors.
        - nics: the NICs of its device, 1 to 8: "shm", "tcp:eth0", "verbs:mlx5_0", or `SharedMemory`, `Libfabric`, `Verbs`.
          Where several fabrics reach a peer, the first is used.
        - progress: "adaptive" (a thread that spins for `spin` and then sleeps), "busy" (a thread that spins for ever), or
          "manual" (no thread: `progress`, `poll` and waits make progress), or "event_loop" (as "manual", and NICs wake the
          loop that waits for `fileno` or awaits something).
        - processor: what its thread is pinned to.
        - timeout: of transfers and waits that name none.
        - liveness_interval, liveness_intervals: when a silent peer is asked whether it lives, and when it is lost.
        - stripe_bytes: writes of twice as many bytes go over several NICs.
        - trace_events, trace_directory: the flight recorder, and where traces of stalls go.
        - event_capacity, message_capacity: how much may wait to be polled before `BackPressure`.

        Raises `Unavailable` when a NIC is not there, `LimitReached` when memory, files or threads run out.
        """
        if progress not in PROGRESS:
            raise ValueError(f"progress is {progress!r}; one of {sorted(PROGRESS)}")
        self._handle = 0
        self._handle = _native.engine_open(
            name, tuple(parse_nic(nic)._native() for nic in nics), PROGRESS[progress],
            nanoseconds(spin, -1), -1 if processor is None else processor, liveness_intervals,
            nanoseconds(liveness_interval, 0), nanoseconds(timeout, 0), stripe_bytes, trace_events or 0xFFFFFFFF,
            event_capacity, message_capacity, trace_directory)
        self.progress_mode = progress
        self._has_thread = progress not in ("manual", "event_loop")
        self.name = name
        self.id: int = _native.engine_id(self._handle)
        """A random number that identifies the engine to its peers."""
        self._regions: Set[Region] = set()
        # What is to happen when an event with a tag comes: a future, or a function of the event's value.
        self._waiting: Dict[int, Any] = {}
        self._tags = itertools.count(1)
        self._loops: "weakref.WeakSet[asyncio.AbstractEventLoop]" = weakref.WeakSet()
        self._file = -1
        self._message_events = 0
        self._message_waiters: List["asyncio.Future[None]"] = []
        # Prefillers and decoders that stand on it.
        self._roles: "weakref.WeakSet[Any]" = weakref.WeakSet()
        _open_engines.add(self)

    # Life

    def close(self) -> None:
        """Ends the engine, its registrations and its NICs. Waits of other threads raise `Closed`. Again is fine.

        Raises BufferError while views of memory that it allocated exist: drop the arrays first.
        """
        if not self._handle:
            return
        exports = sum(region._exports for region in self._regions)
        if exports:
            raise BufferError(f"{exports} views of the engine's memory exist; drop the arrays first")
        for role in list(self._roles):
            role.close()
        for loop in list(self._loops):
            self._leave(loop)
        handle, self._handle = self._handle, 0
        _native.engine_close(handle)
        for region in self._regions:
            region._forget()
        self._regions.clear()
        _open_engines.discard(self)
        waiting, self._waiting = self._waiting, {}
        for waiter in waiting.values():
            if isinstance(waiter, asyncio.Future):
                _settle(waiter, Closed("the engine was closed", "Open another engine."))
        for waiter in self._message_waiters:
            _settle(waiter, Closed("the engine was closed", "Open another engine."))

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, kind: Any, *unused: object) -> None:
        try:
            self.close()
        except BufferError:
            if kind is None:  # otherwise what went wrong is worth more
                raise

    def __del__(self) -> None:
        if getattr(self, "_handle", 0):
            try:
                self.close()
            except (TransferError, BufferError, TypeError):
                pass

    def __repr__(self) -> str:
        return f"<Engine {self.name!r} {self.id:016x}{'' if self._handle else ', closed'}>"

    # Memory and peers

    def allocate(
        self, byte_count: int, *, remote_write: bool = True, nics: Sequence[int] = (), is_populated: bool = True
    ) -> Region:
        """Allocates and registers zeroed, page-aligned memory that peers on this host can map: a write is one copy.

        `nics` are positions in the engine's NICs; none is all. Without `is_populated` pages come into being when touched.
        """
        if not isinstance(byte_count, int):
            raise TypeError("byte_count is an int; register() takes memory of yours")
        return self._region(byte_count, remote_write, nics, is_populated)

    def register(self, memory: Any, *, remote_write: bool = True, nics: Sequence[int] = ()) -> Region:
        """Registers memory of yours: anything with the buffer protocol (bytearray, numpy) or DLPack (torch CPU tensors),
        contiguous. The region keeps it alive. With `remote_write` it must be writable.
        """
        if isinstance(memory, int):
            raise TypeError("register() takes memory; allocate() takes a number of bytes")
        return self._region(memory, remote_write, nics, True)

    def _region(self, what: Any, remote_write: bool, nics: Sequence[int], is_populated: bool) -> Region:
        bits = sum(1 << nic for nic in set(nics))
        region = Region(self, what, int(remote_write), bits, is_populated)
        self._regions.add(region)
        return region

    @property
    def address(self) -> bytes:
        """How peers reach this engine, for `connect`: send it by any channel."""
        return _native.engine_address(self._handle)

    def attach(self, descriptor: bytes, *, traffic: str = "normal") -> Remote:
        """Makes a peer's region (its `Region.descriptor`) ready to be written into: resolves, connects, maps.

        `traffic` says how urgent the writes to it are. While more urgent traffic is around, less urgent transfers of this engine
        keep little in flight, so that urgent ones do not wait behind them. Bulk writes are cut into requests of 1 MiB.
        """
        if traffic not in _TRAFFIC:
            raise ValueError(f"traffic is {traffic!r}, not one of {', '.join(_TRAFFIC)}")
        return Remote(self, _native.remote_attach(self._handle, descriptor, _TRAFFIC[traffic]))

    def connect(self, address: bytes) -> Peer:
        """Connects to an engine (its `Engine.address`), for messages, immediates and barriers."""
        return Peer(self, _native.peer_connect(self._handle, address))

    def group(self, members: Sequence[Union[Remote, Peer]]) -> Group:
        """Resolves members once, for scatters (remotes) and barriers."""
        return Group(self, members)

    def batch(self) -> Batch:
        """Collects operations that are then submitted in one call."""
        return Batch(self)

    # Counters, words, leases

    def count(self, immediate: int) -> int:
        """How often `immediate` has been counted and not been taken. Data that was counted is visible afterwards."""
        return _native.count(self._handle, immediate)

    def consume(self, immediate: int, count: int) -> bool:
        """Takes `count` away if the counter has got that far, and says whether."""
        return _native.consume(self._handle, immediate, count)

    def lease(self, count: int = 1) -> Lease:
        """Hands out immediates that nobody else uses and whose counters are 0."""
        return Lease(self, count)

    def watch(self, region: Region, offset: int, callback: Callable[[int, int], None]) -> Watcher:
        """Calls `callback(old, new)` when the aligned 64-bit word at `offset` of the region has changed.

        Called as `Transfer.add_done_callback` is. Changes that were not polled yet are joined.
        """
        tag = self._expect_event(lambda change: callback(*change))
        try:
            return Watcher(self, _native.watch(region._handle, offset, tag), tag)
        except BaseException:
            self._waiting.pop(tag, None)
            raise

    # Waiting

    def wait(self, transfers: Iterable[Transfer], timeout: Optional[float] = None) -> bool:
        """Blocks until all have ended, without the GIL. Raises the first failure; False when `timeout` has passed."""
        return _native.wait([transfer._handle for transfer in transfers], nanoseconds(timeout, -1))

    def poll(self, timeout: float = 0.0) -> int:
        """Runs callbacks that are due, in this thread. Waits for the first one for up to `timeout`. Returns how many."""
        return self._dispatch(_native.poll(self._handle, nanoseconds(timeout, 0)))

    def progress(self) -> bool:
        """Makes progress (manual engines only). Returns whether there was anything to do."""
        return _native.engine_progress(self._handle)

    def fileno(self) -> int:
        """A file descriptor that is readable while `poll` has something to do, for any event loop."""
        if self._file < 0:
            self._file = _native.engine_fd(self._handle)
        return self._file

    # Messages

    def receive(self) -> List[Tuple[int, bytes]]:
        """Messages that have come: the sender's `Engine.id` and the bytes. Does not wait; empty when there are none."""
        return _native.receive(self._handle)

    async def messages(self) -> AsyncIterator[Tuple[int, bytes]]:
        """Messages as they come, for event loops."""
        while True:
            seen = self._message_events
            batch = self.receive()
            for message in batch:
                yield message
            if batch or seen != self._message_events:
                continue
            loop = asyncio.get_running_loop()
            self._join(loop)
            future = loop.create_future()
            self._message_waiters.append(future)
            if seen != self._message_events:
                _settle(future, None)
            await future

    # Looking

    def statistics(self) -> Statistics:
        """What the engine has and has done since it was opened."""
        return Statistics(*_native.engine_statistics(self._handle))

    def write_trace(self, path: str) -> None:
        """Writes the flight recorder to a new file, for `te trace`."""
        _native.engine_write_trace(self._handle, path)

    def digest_pages(
        self, page_bytes: int, source: Region, source_pages: Any, target_pages: Any, *, source_stride: int = 0,
        target_stride: int = 0, source_offset: int = 0, target_offset: int = 0,
    ) -> Digest:
        """The digest of a paged write. The receiver gives its region and its pages on both sides."""
        return Digest(*_native.digest_paged(
            source._handle, source_offset, source_stride or page_bytes, 0, target_offset,
            target_stride or page_bytes, page_bytes, source_pages, target_pages, None, 0))

    # Events

    def _expect_event(self, waiter: Any) -> int:
        """The tag of an event that `waiter` is for; a future is of the running loop."""
        if isinstance(waiter, asyncio.Future):
            self._join(waiter.get_loop())
        tag = next(self._tags)
        self._waiting[tag] = waiter
        return tag

    def _notify(self, transfer: int, waiter: Any) -> None:
        tag = self._expect_event(waiter)
        try:
            _native.notify(transfer, tag)
        except BaseException:
            self._waiting.pop(tag, None)
            raise

    def _future(self, transfer: int) -> "asyncio.Future[None]":
        """Ends with the transfer."""
        future = asyncio.get_running_loop().create_future()
        self._notify(transfer, future)
        return future

    def _join(self, loop: asyncio.AbstractEventLoop) -> None:
        if loop not in self._loops:
            loop.add_reader(self.fileno(), self._on_readable)
            self._loops.add(loop)

    def _leave(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loops.discard(loop)
        if loop.is_closed():
            return
        if asyncio._get_running_loop() is loop or not loop.is_running():
            loop.remove_reader(self._file)
        else:
            loop.call_soon_threadsafe(loop.remove_reader, self._file)

    def _on_readable(self) -> None:
        if self._handle:
            self._dispatch(_native.poll(self._handle, 0))

    def _dispatch(self, events: List[Tuple[int, int, Any]]) -> int:
        failures = []
        for kind, tag, value in events:
            if kind == _MESSAGE:
                self._message_events += 1
                waiters, self._message_waiters = self._message_waiters, []
                for future in waiters:
                    _settle(future, None)
                continue
            waiter = self._waiting.get(tag) if kind == _WATCH else self._waiting.pop(tag, None)
            if waiter is None:
                continue
            if isinstance(waiter, asyncio.Future):
                _settle(waiter, value)
                continue
            try:
                waiter(value)
            except Exception as error:  # the others are still to be called
                failures.append(error)
        if failures:
            raise failures[0]
        return len(events)


def _settle(future: "asyncio.Future[Any]", value: Any) -> None:
    """Ends a future, in its own loop."""
    loop = future.get_loop()
    if asyncio._get_running_loop() is loop:
        _end(future, value)
    elif not loop.is_closed():
        loop.call_soon_threadsafe(_end, future, value)


def _end(future: "asyncio.Future[Any]", value: Any) -> None:
    if future.done():
        return
    if isinstance(value, Exception):
        future.set_exception(value)
    else:
        future.set_result(value)


_open_engines: "weakref.WeakSet[Engine]" = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for engine in list(_open_engines):
        try:
            engine.close()
        except (TransferError, BufferError):
            pass
