"""Submitted operations, and their three views: look, wait, be told."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Callable, Generator, Optional

from . import _native
from .config import nanoseconds
from .errors import TimedOut, TransferError, Unproven

if TYPE_CHECKING:
    from .engine import Engine

__all__ = ["Transfer", "Watcher", "Lease"]


class Transfer:
    """An operation in flight, or a wait for a counter. Look at it, `wait` for it, `await` it, or give it a callback."""

    __slots__ = ("_handle", "engine")

    def __init__(self, engine: "Engine", handle: int) -> None:
        self._handle = handle
        self.engine = engine

    def done(self) -> bool:
        """Whether it has ended well: its source may be reused, and nothing of it can touch remote memory any more.

        Raises why it failed. The reasons of an engine's last 1024 failures are kept; older ones count as well.
        """
        return not _native.is_pending(self._handle)

    def wait(self, timeout: Optional[float] = None) -> None:
        """Blocks until it has ended, without the GIL; signals are handled. Raises why it failed.

        Its own deadline bounds the wait. With `timeout` (seconds), `TimedOut` is raised when that has passed, and the
        transfer goes on.
        """
        if not _native.wait(self._handle, nanoseconds(timeout, -1)):
            raise TimedOut(f"the transfer has not ended within {timeout} s", "Wait again, or cancel.")

    def __await__(self) -> Generator[Any, None, None]:
        if not _native.is_pending(self._handle):
            return
        yield from self.engine._future(self._handle)

    def add_done_callback(self, callback: Callable[["Transfer", Optional[TransferError]], None]) -> None:
        """Calls `callback(transfer, error)` once when it has ended, also when it has already; `error` is None for success.

        It is called by `Engine.poll`, in the thread that polls, or by the event loop of whoever awaits something of the engine.
        """
        self.engine._notify(self._handle, lambda error: callback(self, error))

    def cancel(self, timeout: Optional[float] = None) -> None:
        """Ends it now, with `Cancelled`, and waits until no byte of it can land any more.

        Raises `Unproven` when that cannot be proven within `timeout`. One that has ended is fine.
        """
        _native.cancel(self._handle, nanoseconds(timeout, -1))

    async def cancel_async(self, timeout: Optional[float] = None) -> None:
        """As `cancel`, for event loops."""
        if not self.engine._has_thread:
            self.cancel(timeout)
            return
        future = asyncio.get_running_loop().create_future()
        tag = self.engine._expect_event(future)
        try:
            _native.cancel_notify(self._handle, nanoseconds(timeout, -1), tag)
        except BaseException:
            self.engine._waiting.pop(tag, None)
            raise
        if not await future:
            raise Unproven("bytes of the transfer may still land", "Have the target's owner revoke the region.")

    def __repr__(self) -> str:
        return f"<Transfer {self._handle:#x}>"


class Watcher:
    """A watched word. Made by `Engine.watch`."""

    __slots__ = ("_handle", "_tag", "engine")

    def __init__(self, engine: "Engine", handle: int, tag: int) -> None:
        self._handle = handle
        self._tag = tag
        self.engine = engine

    def close(self) -> None:
        """Ends it: its callback is not called any more. Again is fine."""
        if self._handle and self.engine._handle:
            _native.unwatch(self._handle)
            self.engine._waiting.pop(self._tag, None)
        self._handle = 0

    def __enter__(self) -> "Watcher":
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()


class Lease:
    """Immediates that belong to one use. Made by `Engine.lease`; tell the peer their numbers."""

    __slots__ = ("engine", "first", "count", "epoch")

    def __init__(self, engine: "Engine", count: int) -> None:
        self.engine = engine
        self.first, self.count, self.epoch = _native.lease_begin(engine._handle, count)

    def __getitem__(self, number: int) -> int:
        if not 0 <= number < self.count:
            raise IndexError(f"a lease of {self.count} immediates has no number {number}")
        return self.first + number

    def __len__(self) -> int:
        return self.count

    def end(self, *, is_quiet: bool) -> None:
        """Ends the lease: what arrives later is counted nowhere.

        `is_quiet` says that nothing can arrive any more; otherwise its immediates are in quarantine until `reclaim`.
        """
        self._end(1 if is_quiet else 0)

    def reclaim(self) -> int:
        """Takes the lease out of quarantine. Returns how many arrivals came after its end."""
        return self._end(-1)

    def _end(self, how: int) -> int:
        return _native.lease_end(self.engine._handle, self.first, self.count, self.epoch, how)
