"""What an engine is opened with."""

from __future__ import annotations

import dataclasses
from typing import Optional, Tuple, Union

__all__ = ["SharedMemory", "Libfabric", "Verbs", "NIC"]


@dataclasses.dataclass(frozen=True)
class SharedMemory:
    """Peers on the same host."""

    caller_memory: str = "automatic"
    """How memory is written that cannot be mapped: "automatic", "process_write" or "bounce"."""
    megabits_per_second: int = 0
    """The speed that this NIC claims; 0 is the default."""

    def _native(self) -> tuple:
        kinds = {"automatic": 0, "process_write": 1, "bounce": 2}
        if self.caller_memory not in kinds:
            raise ValueError(f"caller_memory is {self.caller_memory!r}; one of {sorted(kinds)}")
        return (0, None, None, self.megabits_per_second, kinds[self.caller_memory], 0, 0, -1, 0, None, 0, 0)


@dataclasses.dataclass(frozen=True)
class Libfabric:
    """A NIC driven through libfabric, which is loaded when one is opened."""

    provider: str = "tcp"
    """libfabric's name: "tcp", "efa", "verbs;ofi_rxm". Peers must use the same."""
    device: Optional[str] = None
    """An interface, a device or an address; None takes the first."""
    megabits_per_second: int = 0
    """Overrides the speed that the NIC reports."""
    framing: bool = True
    """Whether small writes of software providers travel together."""

    def _native(self) -> tuple:
        return (1, self.provider, self.device, self.megabits_per_second, 0, 0 if self.framing else 1, 0, -1, 0, None, 0, 0)


@dataclasses.dataclass(frozen=True)
class Verbs:
    """A port of an RDMA NIC driven through libibverbs, which is loaded when one is opened."""

    device: Optional[str] = None
    """For example "mlx5_0"; None takes the first with an active port."""
    port: int = 0
    """From 1; 0 takes the first active one."""
    gid_index: int = -1
    """Place in the port's table; -1 applies the rule."""
    subnet: Optional[str] = None
    """Only GIDs in it, for example "10.1.0.0/16"."""
    mtu: int = 0
    """The largest path MTU in bytes; 0 takes what the port has."""
    service_level: int = 0
    traffic_class: int = 0
    megabits_per_second: int = 0
    """Overrides the speed that the port reports."""

    def _native(self) -> tuple:
        return (2, None, self.device, self.megabits_per_second, 0, 0, self.port, self.gid_index, self.mtu, self.subnet,
                self.service_level, self.traffic_class)


NIC = Union[SharedMemory, Libfabric, Verbs, str]
"""A NIC, or in short: "shm", "tcp", "tcp:eth0", "efa", "verbs", "verbs:mlx5_0"."""


def parse_nic(nic: NIC) -> Union[SharedMemory, Libfabric, Verbs]:
    """What a short name stands for."""
    if not isinstance(nic, str):
        return nic
    kind, _, device = nic.partition(":")
    if kind == "shm" and not device:
        return SharedMemory()
    if kind == "verbs":
        return Verbs(device=device or None)
    if kind and kind != "shm":
        return Libfabric(provider=kind, device=device or None)
    raise ValueError(f'no NIC {nic!r}; for example "shm", "tcp", "tcp:eth0", "efa", "verbs:mlx5_0"')


def nanoseconds(seconds: Optional[float], default: int) -> int:
    """Nanoseconds of a timeout in seconds; `default` for None."""
    if seconds is None:
        return default
    if not 0 <= seconds <= 1e9:
        raise ValueError(f"a timeout of {seconds} seconds")
    return int(seconds * 1e9)


PROGRESS = {"adaptive": 0, "busy": 1, "manual": 2, "event_loop": 3}


@dataclasses.dataclass(frozen=True)
class Statistics:
    """What an engine has and has done since it was opened."""

    pending_transfers: int
    """Transfers and counter waits that have not ended."""
    submitted: int
    """Operations accepted."""
    refused: int
    """Operations refused."""
    bytes: int
    """Payload of accepted operations."""
    pages: int
    """Of accepted paged writes."""
    events: int
    waiting_events: int
    messages: int
    """Received."""
    waiting_messages: int
    regions: int
    remotes: int
    peers: int
    groups: int
    watchers: int


@dataclasses.dataclass(frozen=True)
class Digest:
    """128 bits that depend on every byte of a transfer and on where it goes, not on the order of arrival."""

    low: int
    high: int

    def __add__(self, other: "Digest") -> "Digest":
        mask = 2**64 - 1
        return Digest((self.low + other.low) & mask, (self.high + other.high) & mask)


Slice = Tuple[int, int, int]
"""One target of a scatter: source offset, bytes, target offset."""
