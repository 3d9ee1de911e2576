"""Exceptions, one class for each code of the C interface."""

from __future__ import annotations

__all__ = [
    "TransferError", "InvalidArgument", "OutOfRange", "MalformedDescriptor", "UnsupportedVersion", "AccessDenied",
    "StaleRegion", "BackPressure", "LimitReached", "Unreachable", "PeerLost", "ProviderFailed", "Stalled", "Cancelled",
    "Unavailable", "Closed", "DigestMismatch", "Unauthenticated", "Forged", "Replayed",
    "Expired", "BadHandle", "Busy", "TimedOut", "Unproven", "WrongThread",
]


class TransferError(Exception):
    """What went wrong, for whom, and what to do about it."""

    code: int = 0
    """The number in transfer_engine.h, for example -12 for TE_ESTALLED."""

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy
        """What to do about errors of this kind."""

    def __str__(self) -> str:
        return f"{self.message} ({self.remedy})" if self.remedy else self.message


class InvalidArgument(TransferError, ValueError):
    """An argument that can never work."""

    code = -1


class OutOfRange(TransferError, ValueError):
    """Bytes outside of the source or the target region."""

    code = -2


class MalformedDescriptor(TransferError, ValueError):
    """A descriptor that was truncated, altered or is not one."""

    code = -3


class UnsupportedVersion(TransferError):
    """A descriptor written by another version."""

    code = -4


class AccessDenied(TransferError, PermissionError):
    """The region does not allow this use, or its key is wrong."""

    code = -5


class StaleRegion(TransferError):
    """The region was deregistered or revoked by its owner."""

    code = -6


class BackPressure(TransferError, BlockingIOError):
    """A queue is full: poll events or wait for transfers, and submit again."""

    code = -7


class LimitReached(TransferError):
    """A limit of the library or of the system was reached."""

    code = -8


class Unreachable(TransferError, ConnectionError):
    """No NIC of this engine can reach the peer."""

    code = -9


class PeerLost(TransferError, ConnectionError):
    """The peer went away."""

    code = -10


class ProviderFailed(TransferError):
    """The fabric reported an error."""

    code = -11


class Stalled(TransferError, TimeoutError):
    """The deadline of a transfer passed; the message is a report of how far it got."""

    code = -12


class Cancelled(TransferError):
    """The transfer was cancelled by `Transfer.cancel`. Not `asyncio.CancelledError`."""

    code = -13


class Unavailable(TransferError):
    """A NIC or a library is not present on this machine."""

    code = -14


class Closed(TransferError):
    """The engine was closed meanwhile."""

    code = -15


class DigestMismatch(TransferError):
    """Data is not what the sender digested."""

    code = -16


class Unauthenticated(TransferError):
    """Something that is not signed, and this engine has a cluster key."""

    code = -22


class Forged(TransferError):
    """Not what its owner signed, or signed with another cluster key."""

    code = -23


class Replayed(TransferError):
    """A message that has been taken before."""

    code = -24


class Expired(TransferError):
    """The descriptor's time is over."""

    code = -25


class BadHandle(TransferError, ValueError):
    """An object that was closed, or belongs to another engine."""

    code = -17


class Busy(TransferError):
    """In use by transfers that have not ended."""

    code = -18


class TimedOut(TransferError, TimeoutError):
    """The time of this wait passed; what it waited for goes on."""

    code = -19


class Unproven(TransferError):
    """Bytes of a cancelled transfer may still land: have the target's owner revoke the region."""

    code = -20


class WrongThread(TransferError, RuntimeError):
    """A second thread in an engine with manual progress, or a child process after fork."""

    code = -21


_BY_CODE = {kind.code: kind for kind in TransferError.__subclasses__()}


def _make(code: int, message: str, remedy: str) -> TransferError:
    """The exception of a code; called by the extension module."""
    error = _BY_CODE.get(code, TransferError)(message, remedy)
    if type(error) is TransferError:
        error.code = code
    return error
