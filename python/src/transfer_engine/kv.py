"""Pushes the KV cache of requests from the prefiller that computes it into the decoder's pages.

```python
from transfer_engine import kv

layout = kv.Layout("model@revision", "bf16", [kv.Group(layers=range(32), heads=8, key_bytes=256, value_bytes=256,
                                                       page_tokens=32)])

# decoder: owns its pages, and asks
decoder = kv.Decoder("decoder-0", layout, [kv.Rank(engine, [region], planes)])
prefiller = decoder.connect(address)                    # bytes from the prefiller's Engine.address
request = decoder.ask(prefiller, end=40, pages=[[9, 4]], input=b"prompt")
for event in decoder.poll(timeout=1): ...               # READY, or FAILED and later PAGES_FREE

# prefiller: writes each layer as soon as it has been computed
for event in prefiller.poll(timeout=1):
    if event.kind is kv.Kind.JOB:
        event.job.accept([[0, 1]])
        prefiller.forward([(event.job, 0, event.job.end)])
        for layer in range(32):
            finished += 1                               # the model has computed the layer
            prefiller.computed(finished)
```

Pages that are being written to, or read from, are not yours: after `FAILED` only `PAGES_FREE` gives them back, and on the
prefiller only `RELEASED`. docs/kv-protocol.md has the protocol.
"""

from __future__ import annotations

import array
import asyncio
import dataclasses
import enum
import struct
from typing import Any, AsyncIterator, Dict, Generic, Iterable, List, Optional, Sequence, Tuple, TypeVar, Union

from . import _native
from .config import nanoseconds
from .engine import Engine
from .memory import Region

__all__ = ["Group", "Layout", "Plane", "Rank", "Kind", "Code", "Reason", "Event", "Decoder", "Prefiller", "Peer",
           "PeerStatus", "Request", "Job", "Tail"]

Pages = Union[Sequence[int], Tuple[int, Any]]
"""Page numbers of a request in one group: a sequence or an array of integers, or a pair of the number of the request's first
page that is listed, and those."""


@dataclasses.dataclass(frozen=True)
class Group:
    """Layers that are cached alike, and what a page of them looks like."""

    layers: Sequence[int]
    """The model's layers, ascending."""
    heads: int
    """KV heads of all tensor ranks together. MLA: 1."""
    key_bytes: int
    """Of one head and token. Where keys and values alternate: both together, and no value_bytes."""
    page_tokens: int
    value_bytes: int = 0
    window: int = 0
    """Only so many of the last tokens are ever read again; 0 is all."""
    heads_first: bool = True
    """Whether the tokens of one head are contiguous in a page; otherwise the heads of one token are."""
    values_apart: bool = False
    """Whether values are in a plane of their own; otherwise they are behind the keys in a page."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """How an instance keeps the cache of a model. Both sides of a transfer have the same model, and may differ in ranks, page
    sizes and the order of heads and tokens."""

    model: str
    """Name and revision, or a fingerprint of what else must be equal; at most 255 bytes."""
    element_type: str
    groups: Sequence[Group]
    tensor_ranks: int = 1
    """Of each stage, in this role."""
    stage_ends: Sequence[int] = ()
    """The layer after the last one of each pipeline stage; none is one stage."""
    first_tensor_rank: int = 0
    """Where ranks are processes, each has a role with a part of them: which is the first. A decoder asks each prefiller that has
    some of its heads, into the same pages."""
    all_tensor_ranks: int = 0
    """Of each stage in all roles of the instance; 0 when all are here."""


@dataclasses.dataclass(frozen=True)
class Plane:
    """Equally long pages of one layer."""

    offset: int
    """Bytes of the region before page 0."""
    stride: int
    """Bytes from one page to the next."""
    page_count: int
    region: int = 0
    """Which of the rank's regions."""


@dataclasses.dataclass(frozen=True)
class Rank:
    """One rank of an instance: its engine, which has no other role, and where its pages lie."""

    engine: Engine
    regions: Sequence[Region]
    """Lent to the role until it is closed."""
    planes: Sequence[Plane]
    """Of each layer of the rank's stage in order: one, or two with `Group.values_apart`."""


@dataclasses.dataclass(frozen=True)
class Tail:
    """A place for the last hidden state or the logits in one of the decoder's regions."""

    offset: int
    byte_count: int
    rank: int = 0
    region: int = 0


class Kind(enum.IntEnum):
    """What an event says."""

    LAYER = 1
    """Decoder: a layer of the request has arrived. Only for requests that are layerwise."""
    READY = 2
    """Decoder: all has arrived; the pages are yours. The last event of the request."""
    FAILED = 3
    """Decoder: it will not arrive. The pages may still be written to."""
    PAGES_FREE = 4
    """Decoder: nothing can be written into the pages any more. The last event of the request."""
    JOB = 5
    """Prefiller: a new job; accept or abort it."""
    STOP = 6
    """Prefiller: compute no more for the job."""
    RELEASED = 7
    """Prefiller: nothing reads the pages of the job any more."""


class Code(enum.IntEnum):
    """Why a request failed, a job has to stop, or a peer is lost."""

    INVALID_LAYOUT = 1
    INCOMPATIBLE = 2
    UNSUPPORTED_VERSION = 3
    MALFORMED_MESSAGE = 4
    REFUSED = 5
    PEER_LOST = 6
    DEADLINE = 7
    CANCELLED = 8
    ABORTED = 9
    TRANSFER_FAILED = 10
    NO_PAGES = 11
    DIGEST_MISMATCH = 12


@dataclasses.dataclass(frozen=True)
class Reason:
    """Why: a code for programs, a message for people."""

    code: Code
    message: str

    def __str__(self) -> str:
        return f"{self.code.name.lower()}: {self.message}"


@dataclasses.dataclass(frozen=True)
class PeerStatus:
    """What a prefiller tells of itself."""

    name: str
    load: int
    """Tokens that wait to be computed, as of its last heartbeat."""
    is_draining: bool
    lost: Optional[Reason]
    """Why it is lost; None when it is not."""


class Request:
    """What a decoder has asked for. Made by `Decoder.ask`."""

    __slots__ = ("_handle", "decoder", "_tag", "__weakref__")

    def __init__(self, decoder: "Decoder", tag: int) -> None:
        self.decoder = decoder
        self._tag = tag
        self._handle = 0

    def cancel(self) -> None:
        """Ends it before its time: FAILED, and PAGES_FREE after the prefiller's receipt. Fine for one that has ended."""
        _native.kv_cancel(self._handle)

    def __repr__(self) -> str:
        return f"<Request {self._handle:#x}>"


class Job:
    """A request as its prefiller sees it. Comes with an event of kind JOB."""

    __slots__ = ("_handle", "prefiller", "decoder", "cached", "end", "input", "timeout", "tail_bytes")

    def __init__(self, prefiller: "Prefiller", handle: int) -> None:
        self.prefiller = prefiller
        self._handle = handle
        has_tail, self.cached, self.end, tail, timeout, self.decoder, self.input = _native.kv_job_read(handle)
        self.timeout: float = timeout / 1e9
        """Seconds that the decoder waits, from the event on."""
        self.tail_bytes: Optional[int] = tail if has_tail else None

    def accept(self, pages: Sequence[Pages]) -> None:
        """Takes it on, with the pages for each group that the model computes into: as many as there are by now. Once."""
        self.prefiller._jobs[self._handle] = self
        _native.kv_accept(self._handle, _tables(pages), self._handle)

    def extend(self, pages: Sequence[Pages]) -> None:
        """Replaces the pages by more: those of before, and those that came since. Fine when it has ended."""
        _native.kv_accept(self._handle, _tables(pages))

    def abort(self, reason: str) -> None:
        """Gives it up, or does not take it on; its decoder is told why. Fine when it has ended."""
        _native.kv_abort(self._handle, reason)

    def write_tail(self, offset: int, *, rank: int = 0, region: int = 0) -> None:
        """Writes the tail from one of the prefiller's regions."""
        _native.kv_write_tail(self._handle, rank, region, offset)

    def __repr__(self) -> str:
        return f"<Job {self._handle:#x} of {self.decoder!r}, tokens {self.cached} to {self.end}>"


Subject = TypeVar("Subject", Request, Job)


@dataclasses.dataclass(frozen=True)
class Event(Generic[Subject]):
    """Something that happened to a request or to a job."""

    kind: Kind
    subject: Subject
    layer: int = 0
    """Of LAYER."""
    reason: Optional[Reason] = None
    """Of FAILED and STOP."""

    @property
    def job(self) -> Subject:
        """The job, on a prefiller."""
        return self.subject

    @property
    def request(self) -> Subject:
        """The request, on a decoder."""
        return self.subject


class _Role(Generic[Subject]):
    """What decoders and prefillers have in common."""

    _is_decoder = False

    def __init__(
        self, name: str, layout: Layout, ranks: Sequence[Rank], *, heartbeat: float = 1.0, heartbeats: int = 3,
        cancel_timeout: float = 5.0, quarantine: float = 5.0, digests: bool = False,
    ) -> None:
        """Opens it on its ranks.

        - name: appears in errors, and tells a decoder that has come back.
        - heartbeat, heartbeats: how often a peer is told that we live (seconds), and the silence of how many is its end.
        - cancel_timeout: how long a receipt may take before pages go into quarantine.
        - quarantine: how long they stay there while other requests go on.
        - digests: a decoder compares what arrives with digests of what was sent, before a request is ready; if it is not the
          same it fails. Both sides read everything once more. A prefiller digests for the decoders that want it.
        """
        self._handle = 0
        groups = tuple(
            (group.heads, group.key_bytes, group.value_bytes, group.window, group.page_tokens,
             int(not group.heads_first), int(not group.values_apart), array.array("I", group.layers).tobytes())
            for group in layout.groups)
        self._handle = _native.kv_open(
            self._is_decoder, name, heartbeats, nanoseconds(heartbeat, 0), nanoseconds(cancel_timeout, 0),
            nanoseconds(quarantine, 0), digests, layout.model, layout.element_type, layout.tensor_ranks,
            layout.first_tensor_rank, layout.all_tensor_ranks, array.array("I", layout.stage_ends).tobytes(), groups, tuple(_rank(rank) for rank in ranks))
        self.name = name
        self._ranks = tuple(ranks)
        self._file = -1
        for rank in ranks:
            rank.engine._roles.add(self)

    def close(self) -> None:
        """Ends it and what it has under way: afterwards nobody writes into its regions or reads from them. Again is fine."""
        handle, self._handle = self._handle, 0
        if handle:
            _native.kv_close(handle)
        for rank in getattr(self, "_ranks", ()):
            rank.engine._roles.discard(self)

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_handle", 0):
            self.close()

    def fileno(self) -> int:
        """A file descriptor that is readable while `poll` has something to return, for any event loop."""
        if self._file < 0:
            self._file = _native.kv_fd(self._handle)
        return self._file

    def poll(self, timeout: float = 0.0) -> List[Event[Subject]]:
        """Takes events; waits for the first one for up to `timeout` seconds, without the GIL."""
        taken = _native.kv_poll(self._handle, nanoseconds(timeout, 0))
        events = (self._event(*event) for event in taken)
        return [event for event in events if event is not None]

    async def events(self) -> AsyncIterator[Event[Subject]]:
        """Events as they come, for event loops."""
        loop = asyncio.get_running_loop()
        ready = asyncio.Event()
        loop.add_reader(self.fileno(), ready.set)
        try:
            while True:
                ready.clear()
                for event in self.poll():
                    yield event
                await ready.wait()
        finally:
            loop.remove_reader(self._file)

    def _event(self, kind: int, code: int, tag: int, handle: int, layer: int, text: str) -> Optional[Event[Subject]]:
        raise NotImplementedError


class Peer:
    """A prefiller that a decoder works with. Made by `Decoder.connect`."""

    __slots__ = ("_handle", "decoder")

    def __init__(self, decoder: "Decoder", handle: int) -> None:
        self.decoder = decoder
        self._handle = handle

    def status(self) -> PeerStatus:
        """What it has told of itself, and whether it is lost."""
        name, load, is_draining, code, text = _native.kv_peer_status(self._handle)
        return PeerStatus(name, load, is_draining, _reason(code, text))

    def close(self) -> None:
        """Ends the work with it: what it has of ours is cancelled. Again is fine."""
        handle, self._handle = self._handle, 0
        if handle and self.decoder._handle:
            _native.kv_disconnect(handle)


class Decoder(_Role[Request]):
    """Asks prefillers to write the cache of requests into its pages, and knows when it is there, or when the pages may be used
    again. All methods may be called from any thread, and none but `poll` and `close` waits."""

    _is_decoder = True

    def __init__(self, name: str, layout: Layout, ranks: Sequence[Rank], **options: Any) -> None:
        self._requests: Dict[int, Request] = {}
        self._next = 1
        super().__init__(name, layout, ranks, **options)

    __init__.__doc__ = _Role.__init__.__doc__

    def connect(self, address: bytes) -> Peer:
        """Begins to work with a prefiller; requests may be made at once. One that was lost is reached again by connecting
        anew."""
        return Peer(self, _native.kv_connect(self._handle, address))

    def ask(
        self, prefiller: Peer, *, end: int, pages: Sequence[Pages], cached: int = 0, input: bytes = b"",
        tail: Optional[Tail] = None, timeout: float = 30.0, layerwise: bool = False,
    ) -> Request:
        """Asks for the cache of tokens `cached` to `end`.

        - pages: for each group the pages to be written; nobody else's until the request has ended.
        - input: what the prefiller's application needs.
        - tail: where the last hidden state or the logits go.
        - layerwise: whether each layer is an event.
        """
        tag, self._next = self._next, self._next + 1
        request = Request(self, tag)
        self._requests[tag] = request
        try:
            request._handle = _native.kv_ask(
                self._handle, int(layerwise), tag, prefiller._handle, cached, end, _tables(pages),
                tail and (tail.rank, tail.region, tail.offset, tail.byte_count), input, nanoseconds(timeout, 0))
        except BaseException:
            del self._requests[tag]
            raise
        return request

    def _event(self, kind: int, code: int, tag: int, handle: int, layer: int, text: str) -> Optional[Event[Request]]:
        last = kind in (Kind.READY, Kind.PAGES_FREE)
        request = self._requests.pop(tag, None) if last else self._requests.get(tag)
        return Event(Kind(kind), request, layer, _reason(code, text)) if request else None


class Prefiller(_Role[Job]):
    """Takes requests of any decoders, and writes each layer's pages as soon as the model has computed them. Decoders reach it
    at the `Engine.address` of rank 0. All methods may be called from any thread, and none but `poll` and `close` waits."""

    def __init__(self, name: str, layout: Layout, ranks: Sequence[Rank], **options: Any) -> None:
        self._jobs: Dict[int, Job] = {}
        super().__init__(name, layout, ranks, **options)

    __init__.__doc__ = _Role.__init__.__doc__

    @property
    def address(self) -> bytes:
        """How decoders reach it, for `Decoder.connect`."""
        return self._ranks[0].engine.address

    def forward(self, chunks: Iterable[Tuple[Job, int, int]] = (), *, stage: int = 0) -> None:
        """Announces a forward pass before it begins, with the tokens (job, begin, end) that it computes: every pass, also one
        that computes nothing for a job. The chunks of a job follow each other from its first token on."""
        _native.kv_forward(self._handle, stage, [(job._handle, begin, end) for job, begin, end in chunks])

    def computed(self, layers: int, *, stage: int = 0) -> None:
        """Says how many layers the stage has finished in all, since the prefiller was opened."""
        _native.kv_computed(self._handle, stage, layers)

    def watch(self, region: Region, offset: int, *, rank: int = 0) -> None:
        """Looks at a 64-bit word that the model increments with each finished layer, instead of `computed`. The region is one
        that was not lent to the prefiller."""
        _native.kv_watch(self._handle, rank, region._handle, offset)

    def drain(self) -> None:
        """Takes no new jobs from now on; decoders learn of it with the next heartbeat."""
        _native.kv_drain(self._handle)

    def load(self) -> Tuple[int, int]:
        """Jobs that have not ended, and the tokens that they have left."""
        return _native.kv_load(self._handle)

    def _event(self, kind: int, code: int, tag: int, handle: int, layer: int, text: str) -> Optional[Event[Job]]:
        if kind == Kind.JOB:
            return Event(Kind.JOB, Job(self, handle))
        job = self._jobs.pop(tag, None) if kind == Kind.RELEASED else self._jobs.get(tag)
        return Event(Kind(kind), job, 0, _reason(code, text)) if job else None


def _reason(code: int, text: str) -> Optional[Reason]:
    return Reason(Code(code), text) if code else None


def _rank(rank: Rank) -> Tuple[int, bytes, bytes]:
    planes = b"".join(
        struct.pack("=IIQQQ", plane.region, 0, plane.offset, plane.stride, plane.page_count) for plane in rank.planes)
    regions = array.array("Q", [region._handle for region in rank.regions]).tobytes()
    return rank.engine._handle, regions, planes


def _tables(pages: Sequence[Pages]) -> Tuple[Tuple[int, Any], ...]:
    return tuple(
        table if isinstance(table, tuple) and len(table) == 2 and not isinstance(table[1], int) else (0, table)
        for table in pages)

