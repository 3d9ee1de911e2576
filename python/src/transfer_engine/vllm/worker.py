"""The connector's half in the worker: it has the cache, the engine and the roles. All transfers are native; here are calls that
do not wait, and events."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Set

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorTransferResults
from vllm.logger import init_logger

from .. import kv
from ..engine import Engine
from ..errors import TransferError
from .layout import Cache
from .messages import Ask, Offer, Progress, Step, pack_input, senders, unpack_input
from .processors import on_all_processors

if TYPE_CHECKING:
    from .connector import Options

__all__ = ["DecodeWorker", "PrefillWorker"]

logger = init_logger(f"vllm.{__name__}")  # so that vLLM's configuration holds for it

IDLE_WAIT = 0.001
"""Seconds that an empty step may wait for an event. vLLM steps for ever while it waits for caches; without the wait it would
take a core from whoever computes them."""


class _Load:
    """A request whose cache comes, from each tensor rank of the prefiller that has some of this one's heads."""

    def __init__(self, request: str, tokens: int) -> None:
        self.request = request
        self.tokens = tokens
        self.begin = time.perf_counter()
        self.parts: Dict[kv.Request, bytes] = {}
        """What has not ended, and the address of whom it was asked."""
        self.has_failed = False

    def cancel(self) -> None:
        """Ends what has not; the blocks are vLLM's again when all has ended."""
        for part in self.parts:
            part.cancel()


class DecodeWorker:
    """Asks prefillers for caches, and reports when they are there."""

    def __init__(self, cache: Cache, options: "Options") -> None:
        self._options = options
        self._cache = cache
        with on_all_processors():
            self._engine = Engine(f"{options.name} decode", nics=options.nics, timeout=options.timeout)
            self._decoder = kv.Decoder(
                options.name, cache.layout, [cache.rank(self._engine, remote_write=True)], heartbeat=options.heartbeat,
                cancel_timeout=options.cancel_timeout, quarantine=options.quarantine, digests=options.digests)
        self._peers: Dict[bytes, kv.Peer] = {}
        self._loads: Dict[str, _Load] = {}
        self._waiting: Dict[kv.Request, _Load] = {}
        self._received: Set[str] = set()
        self._failed: Set[str] = set()

    def begin(self, step: Step) -> None:
        """Before the forward pass."""
        for request, ask in step.asks.items():
            load = self._loads[request] = _Load(request, ask.end - ask.cached)
            try:
                self._ask(load, ask)
            except TransferError as error:
                logger.warning("Request %s is not loaded: %s", request, error)
                load.has_failed = True
                load.cancel()
            if not load.parts:
                self._ended(load)
        for request in step.cancelled:
            if request in self._loads:
                self._loads[request].cancel()

    def _ask(self, load: _Load, ask: Ask) -> None:
        heads, ranks, others = self._cache.heads, self._cache.tensor_ranks, len(ask.prefillers)
        total = sum(len(senders(heads, ranks, rank, others)) for rank in range(ranks))
        for sender in senders(heads, ranks, self._cache.tensor_rank, others):
            address = ask.prefillers[sender]
            peer = self._peers.get(address)
            if peer is None:
                peer = self._peers[address] = self._decoder.connect(address)
            part = self._decoder.ask(
                peer, cached=ask.cached, end=ask.end, pages=[ask.blocks],
                input=pack_input(ask.transfer, ask.digest, total, others), timeout=self._options.timeout)
            load.parts[part] = address
            self._waiting[part] = load

    def _ended(self, load: _Load) -> None:
        del self._loads[load.request]
        self._received.add(load.request)
        if load.has_failed:
            self._failed.add(load.request)

    def end(self, step: Step, results: KVConnectorTransferResults) -> None:
        """After the forward pass: what has come."""
        for event in self._decoder.poll(IDLE_WAIT if step.is_idle and self._waiting and not self._received else 0):
            load = self._waiting[event.subject]
            if event.kind is kv.Kind.FAILED:
                code = event.reason.code if event.reason else None
                log = logger.info if code is kv.Code.CANCELLED else logger.warning
                log("Request %s was not loaded: %s", load.request, event.reason)
                if code is kv.Code.PEER_LOST:
                    self._forget(load.parts[event.subject])
                if not load.has_failed:
                    load.has_failed = True
                    load.cancel()
                continue
            # After a failure the blocks are vLLM's again only when nothing can be written into them any more.
            del self._waiting[event.subject], load.parts[event.subject]
            if not load.parts:
                if not load.has_failed:
                    logger.info("Loaded %d tokens of request %s in %.1f ms", load.tokens, load.request,
                                (time.perf_counter() - load.begin) * 1000)
                self._ended(load)
        results.finished_recving |= self._received
        results.failed_recving |= self._failed & self._received
        self._failed -= self._received
        self._received = set()

    def _forget(self, prefiller: bytes) -> None:
        """The next request connects anew: the prefiller may have come back at the same address."""
        peer = self._peers.pop(prefiller, None)
        if peer:
            peer.close()

    def close(self) -> None:
        self._decoder.close()
        self._engine.close()


class _Pushed:
    """The jobs that a request of this instance computes: one for each tensor rank of the decoder that has some of our heads."""

    def __init__(self, jobs: List[kv.Job]) -> None:
        self.jobs = jobs
        self.held = set(jobs)
        """Those that still read the request's blocks."""
        self.is_finished = False
        """vLLM has said that the request has ended."""

    def abort(self, reason: str) -> None:
        """Gives all of them up."""
        for job in self.jobs:
            job.abort(reason)


class _Offered:
    """What decoders' ranks have asked for, and nothing computes yet."""

    def __init__(self, deadline: float) -> None:
        self.jobs: Dict[str, kv.Job] = {}
        """By the name of the rank."""
        self.deadline = deadline

    def abort(self, reason: str) -> None:
        """Takes none of them on."""
        for job in self.jobs.values():
            job.abort(reason)


class PrefillWorker:
    """Offers what decoders ask for to the scheduler, and pushes each layer of the requests that compute it."""

    def __init__(self, cache: Cache, options: "Options") -> None:
        self._options = options
        with on_all_processors():
            self._engine = Engine(f"{options.name} prefill", nics=options.nics, timeout=options.timeout)
            self._prefiller = kv.Prefiller(
                options.name, cache.layout, [cache.rank(self._engine, remote_write=False)], heartbeat=options.heartbeat,
                cancel_timeout=options.cancel_timeout)
        self.address = self._prefiller.address
        self._ranks = cache.tensor_ranks
        self._index = {name: index for index, name in enumerate(cache.layers)}
        self._layers = len(cache.layers)
        # Layers of all passes that were announced, before the present one and with it.
        self._before = self._after = 0
        self._offered: Dict[str, _Offered] = {}
        self._pushed: Dict[str, _Pushed] = {}
        self._requests: Dict[kv.Job, str] = {}
        # Requests whose scheduler waits for a word that nothing reads their blocks, and which are no jobs.
        self._orphans: Set[str] = set()
        self._progress = Progress()

    def begin(self, step: Step) -> None:
        """Before the forward pass: announces what it computes for whom."""
        for transfer, reason in step.refused.items():
            offered = self._offered.pop(transfer, None)
            if offered:
                offered.abort(reason)
        for request in step.aborted:
            pushed = self._pushed.get(request)
            if pushed:
                pushed.abort("the prefiller's request has ended")
        self._let_go(step.preempted)
        chunks = []
        for chunk in step.chunks:
            pushed = self._pushed.get(chunk.request)
            if pushed is None:
                offered = self._offered.pop(chunk.transfer, None)
                if offered is None:  # it has just been withdrawn, or other tensor ranks push it
                    self._orphans.add(chunk.request)
                    continue
                pushed = self._pushed[chunk.request] = _Pushed(list(offered.jobs.values()))
                for job in pushed.jobs:
                    self._requests[job] = chunk.request
                    job.accept([chunk.blocks])
            else:
                for job in pushed.jobs:
                    job.extend([chunk.blocks])
            chunks += [(job, chunk.begin, chunk.end) for job in pushed.jobs]
        self._before = self._after
        if chunks:
            self._after += self._layers
            self._prefiller.forward(chunks)

    def computed(self, layer: str) -> None:
        """A layer of the pass is done."""
        if self._after > self._before:
            self._prefiller.computed(self._before + self._index[layer] + 1)

    def end_of_pass(self) -> None:
        """All layers are done, whether or not somebody has said so of each."""
        if self._after > self._before:
            self._prefiller.computed(self._after)
            self._before = self._after

    def _let_go(self, requests: List[str]) -> None:
        """Gives requests up, and waits until nothing reads their blocks: others compute into them in this step."""
        left = set()
        for request in requests:
            pushed = self._pushed.get(request)
            if pushed:
                pushed.abort("preempted")
                left.add(request)
        deadline = time.monotonic() + self._options.cancel_timeout + 2
        while any(self._pushed[request].held for request in left):
            if time.monotonic() > deadline:
                raise RuntimeError(f"the blocks of {sorted(left)} are still being read after {self._options.cancel_timeout} s")
            self._poll(0.01)
        self._orphans.difference_update(requests)
        for request in left:
            self._forget(request)

    def _forget(self, request: str) -> None:
        for job in self._pushed.pop(request).jobs:
            del self._requests[job]

    def _poll(self, timeout: float) -> None:
        for event in self._prefiller.poll(timeout):
            if event.kind is kv.Kind.JOB:
                self._offer(event.job)
            elif event.kind is kv.Kind.STOP:
                logger.info("Request %s is not pushed any more: %s", self._requests.get(event.job), event.reason)
            elif event.job in self._requests:
                self._pushed[self._requests[event.job]].held.discard(event.job)

    def _offer(self, job: kv.Job) -> None:
        try:
            transfer, digest, total = unpack_input(job.input, self._ranks)
        except ValueError as error:
            return job.abort(str(error))
        offered = self._offered.setdefault(transfer, _Offered(time.monotonic() + job.timeout))
        if job.decoder in offered.jobs:
            return job.abort(f"transfer {transfer} has been asked for before")
        offered.jobs[job.decoder] = job
        self._progress.offers[transfer] = Offer(digest, job.end, total).plus(self._progress.offers.get(transfer))

    def end(self, step: Step, finished: Set[str], results: KVConnectorTransferResults) -> None:
        """After the forward pass: whose blocks nobody reads any more."""
        self._poll(IDLE_WAIT if step.is_idle else 0)
        results.finished_sending |= finished & self._orphans
        self._orphans -= finished
        for request in finished & self._pushed.keys():
            self._pushed[request].is_finished = True
        for request, pushed in list(self._pushed.items()):
            if pushed.is_finished and not pushed.held:
                self._forget(request)
                results.finished_sending.add(request)
        now = time.monotonic()
        for transfer, offered in list(self._offered.items()):
            if now > offered.deadline:
                del self._offered[transfer]
                offered.abort("no request for it has come to the prefiller")
                self._progress.withdrawn.add(transfer)

    def progress(self) -> Optional[Progress]:
        """News for the scheduler."""
        if not self._progress.offers and not self._progress.withdrawn:
            return None
        progress, self._progress = self._progress, Progress()
        return progress

    def close(self) -> None:
        self._prefiller.close()
        self._engine.close()
