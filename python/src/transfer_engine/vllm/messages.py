"""What the two halves of the connector, in the scheduler and in the worker, tell each other with each step."""

from __future__ import annotations

import dataclasses
import hashlib
import struct
from array import array
from typing import Dict, List, Optional, Sequence, Set, Tuple

from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorHandshakeMetadata, KVConnectorMetadata, KVConnectorWorkerMetadata)

__all__ = ["Ask", "Chunk", "Step", "Offer", "Progress", "Handshake", "prompt_digest", "senders", "pack_input",
           "unpack_input"]


@dataclasses.dataclass
class Ask:
    """Decode: the cache of tokens `cached` to `end` goes into `blocks`."""

    transfer: str
    prefillers: List[bytes]
    """Addresses of the engines of the prefiller's tensor ranks."""
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
    total: int = 1
    """So many pairs of tensor ranks share heads: so often the transfer is asked for."""
    count: int = 1
    """So often it has been by now."""

    def plus(self, other: Optional["Offer"]) -> "Offer":
        """With what another worker, or an earlier step, has heard."""
        return dataclasses.replace(self, count=self.count + other.count) if other else self


@dataclasses.dataclass
class Progress(KVConnectorWorkerMetadata):
    """From the worker to the scheduler."""

    offers: Dict[str, Offer] = dataclasses.field(default_factory=dict)
    withdrawn: Set[str] = dataclasses.field(default_factory=set)
    """Transfers that were offered and will not be."""

    def aggregate(self, other: KVConnectorWorkerMetadata) -> "Progress":
        assert isinstance(other, Progress)
        offers = {transfer: offer.plus(self.offers.get(transfer)) for transfer, offer in other.offers.items()}
        return Progress({**self.offers, **offers}, self.withdrawn | other.withdrawn)


@dataclasses.dataclass
class Handshake(KVConnectorHandshakeMetadata):
    """From the worker to the scheduler, once."""

    address: bytes


def prompt_digest(tokens: Sequence[int]) -> bytes:
    """16 bytes by which both sides see that they speak of the same prompt."""
    return hashlib.blake2b(array("I", tokens).tobytes(), digest_size=16).digest()


def senders(heads: int, ranks: int, rank: int, others: int) -> List[int]:
    """Which of a prefiller's `others` tensor ranks tensor rank `rank` of a decoder's `ranks` asks: all that have some of its
    heads, of those that have the same ones another one for each decoder."""
    first = rank * heads // ranks
    mine = range(first, max(first + 1, (rank + 1) * heads // ranks))
    replicas = max(1, others // heads)
    groups = others // replicas
    return [group * replicas + rank % replicas for group in range(groups)
            if group * heads // groups < mine.stop and mine.start < (group + 1) * heads // groups]


_INPUT = struct.Struct("<4sHH16s")
_MAGIC = b"TEV2"


def pack_input(transfer: str, digest: bytes, total: int, ranks: int) -> bytes:
    """What a decoder sends along with each of the `total` requests of a transfer to the prefiller's `ranks` tensor ranks."""
    return _INPUT.pack(_MAGIC, total, ranks, digest) + transfer.encode()


def unpack_input(data: bytes, ranks: int) -> Tuple[str, bytes, int]:
    """Raises ValueError for what is none, and for one that counts on another number of ranks: parts of the cache would be
    missing."""
    if len(data) < _INPUT.size or data[:4] != _MAGIC:
        raise ValueError("the request is not one of this version of the vLLM connector")
    _, total, theirs, digest = _INPUT.unpack_from(data)
    if theirs != ranks:
        raise ValueError(f"the decoder was told of {theirs} tensor ranks of a prefiller that has {ranks}")
    return data[_INPUT.size:].decode(), digest, total
