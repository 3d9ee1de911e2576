"""What the two halves of the connector, in the scheduler and in the worker, tell each other with each step."""

from __future__ import annotations

import dataclasses
import hashlib
import struct
from array import array
from typing import Dict, List, Sequence, Set, Tuple

from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorHandshakeMetadata, KVConnectorMetadata, KVConnectorWorkerMetadata)

__all__ = ["Ask", "Chunk", "Step", "Offer", "Progress", "Handshake", "prompt_digest", "pack_input", "unpack_input"]


@dataclasses.dataclass
class Ask:
    """Decode: the cache of tokens `cached` to `end` goes into `blocks`."""

    transfer: str
    prefiller: bytes
    """Address of its engine."""
    digest: bytes
    cached: int
    end: int
    blocks: List[int]


@dataclasses.dataclass
class Chunk:
    """Prefill: a request computes its tokens up to `end` in this step, into `blocks`, all that it has by now."""

    request: str
    transfer: str
    begin: int
    end: int
    blocks: List[int]


@dataclasses.dataclass
class Step(KVConnectorMetadata):
    """From the scheduler to the worker, with each step."""

    is_idle: bool = True
    """Nothing is computed in this step."""
    asks: Dict[str, Ask] = dataclasses.field(default_factory=dict)
    cancelled: List[str] = dataclasses.field(default_factory=list)
    """Decode: requests that have ended, and wait for their cache no more."""
    chunks: List[Chunk] = dataclasses.field(default_factory=list)
    preempted: List[str] = dataclasses.field(default_factory=list)
    """Prefill: requests whose blocks somebody else computes into in this step."""
    aborted: List[str] = dataclasses.field(default_factory=list)
    """Prefill: requests that will compute no more."""
    refused: Dict[str, str] = dataclasses.field(default_factory=dict)
    """Prefill: transfers that nobody will compute, and why."""


@dataclasses.dataclass
class Offer:
    """Prefill: a decoder has pages for the prompt with this digest."""

    digest: bytes
    end: int


@dataclasses.dataclass
class Progress(KVConnectorWorkerMetadata):
    """From the worker to the scheduler."""

    offers: Dict[str, Offer] = dataclasses.field(default_factory=dict)
    withdrawn: Set[str] = dataclasses.field(default_factory=set)
    """Transfers that were offered and will not be."""

    def aggregate(self, other: KVConnectorWorkerMetadata) -> "Progress":
        assert isinstance(other, Progress)
        return Progress({**self.offers, **other.offers}, self.withdrawn | other.withdrawn)


@dataclasses.dataclass
class Handshake(KVConnectorHandshakeMetadata):
    """From the worker to the scheduler, once."""

    address: bytes


def prompt_digest(tokens: Sequence[int]) -> bytes:
    """16 bytes by which both sides see that they speak of the same prompt."""
    return hashlib.blake2b(array("I", tokens).tobytes(), digest_size=16).digest()


_INPUT = struct.Struct("<4s16s")
_MAGIC = b"TEV1"


def pack_input(transfer: str, digest: bytes) -> bytes:
    """What a decoder sends along with a request."""
    return _INPUT.pack(_MAGIC, digest) + transfer.encode()


def unpack_input(data: bytes) -> Tuple[str, bytes]:
    """Raises ValueError for what is none."""
    if len(data) < _INPUT.size or data[:4] != _MAGIC:
        raise ValueError("the request is not one of this version of the vLLM connector")
    return data[_INPUT.size:].decode(), data[4:_INPUT.size]
