"""The connector's half in the worker: it has the cache, the engine and the roles. All transfers are native; here are calls that
do not wait, and events."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Set, Tuple

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorTransferResults
from vllm.logger import init_logger

from .. import kv
from ..engine import Engine
from ..errors import TransferError
from .layout import Cache
from .messages import Ask, Offer, Progress, Step, pack_input, unpack_input
from .processors import on_all_processors

if TYPE_CHECKING:
    from .connector import Options

__all__ = ["DecodeWorker", "PrefillWorker"]

logger = init_logger(f"vllm.{__name__}")  # so that vLLM's configuration holds for it

IDLE_WAIT = 0.001
"""Seconds that an empty step may wait for an event. vLLM steps for ever while it waits for caches; without the wait it would
take a core from whoever computes them."""


class DecodeWorker:
    """Asks prefillers for caches, and reports when they are there."""

    def __init__(self, cache: Cache, options: "Options") -> None:
        self._options = options
        with on_all_processors():
            self._engine = Engine(f"{options.name} decode", nics=options.nics, timeout=options.timeout)
            self._decoder = kv.Decoder(
                options.name, cache.layout, [cache.rank(self._engine, remote_write=True)], heartbeat=options.heartbeat,
                cancel_timeout=options.cancel_timeout, quarantine=options.quarantine, digests=options.digests)
        self._peers: Dict[bytes, kv.Peer] = {}
        self._requests: Dict[str, kv.Request] = {}
        self._waiting: Dict[kv.Request, Tuple[str, bytes, int, float]] = {}
        self._received: Set[str] = set()
        self._failed: Set[str] = set()

    def begin(self, step: Step) -> None:
        """Before the forward pass."""
        for request, ask in step.asks.items():
            try:
                self._ask(request, ask)
            except TransferError as error:
                logger.warning("Request %s is not loaded: %s", request, error)
                self._failed.add(request)
                self._received.add(request)
        for request in step.cancelled:
            asked = self._requests.get(request)
            if asked:
                asked.cancel()

    def _ask(self, request: str, ask: Ask) -> None:
        peer = self._peers.get(ask.prefiller)
        if peer is None:
            peer = self._peers[ask.prefiller] = self._decoder.connect(ask.prefiller)
        asked = self._decoder.ask(
            peer, cached=ask.cached, end=ask.end, pages=[ask.blocks], input=pack_input(ask.transfer, ask.digest),
            timeout=self._options.timeout)
        self._requests[request] = asked
        self._waiting[asked] = (request, ask.prefiller, ask.end - ask.cached, time.perf_counter())

    def end(self, step: Step, results: KVConnectorTransferResults) -> None:
        """After the forward pass: what has come."""
        for event in self._decoder.poll(IDLE_WAIT if step.is_idle and self._waiting and not self._received else 0):
            request, prefiller, tokens, begin = self._waiting[event.subject]
            if event.kind is kv.Kind.FAILED:
                code = event.reason.code if event.reason else None
                log = logger.info if code is kv.Code.CANCELLED else logger.warning
                log("Request %s was not loaded: %s", request, event.reason)
                self._failed.add(request)
                if code is kv.Code.PEER_LOST:
                    self._forget(prefiller)
                continue
            if event.kind is kv.Kind.READY:
                logger.info("Loaded %d tokens of request %s in %.1f ms", tokens, request,
                            (time.perf_counter() - begin) * 1000)
            # After a failure the blocks are vLLM's again only now, when nothing can be written into them any more.
            del self._waiting[event.subject], self._requests[request]
            self._received.add(request)
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
    """A job that a request of this instance computes."""

    def __init__(self, job: kv.Job) -> None:
        self.job = job
        self.is_accepted = False
        self.is_released = False
        self.is_finished = False
        """vLLM has said that the request has ended."""


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
        self._index = {name: index for index, name in enumerate(cache.layers)}
        self._layers = len(cache.layers)
        # Layers of all passes that were announced, before the present one and with it.
        self._before = self._after = 0
        self._offered: Dict[str, Tuple[kv.Job, float]] = {}
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
                offered[0].abort(reason)
        for request in step.aborted:
            pushed = self._pushed.get(request)
            if pushed:
                pushed.job.abort("the prefiller's request has ended")
        self._let_go(step.preempted)
        chunks = []
        for chunk in step.chunks:
            pushed = self._pushed.get(chunk.request)
            if pushed is None:
                offered = self._offered.pop(chunk.transfer, None)
                if offered is None:  # it has just been withdrawn
                    self._orphans.add(chunk.request)
                    continue
                pushed = self._pushed[chunk.request] = _Pushed(offered[0])
                self._requests[offered[0]] = chunk.request
                offered[0].accept([chunk.blocks])
            else:
                pushed.job.extend([chunk.blocks])
            chunks.append((pushed.job, chunk.begin, chunk.end))
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
                pushed.job.abort("preempted")
                left.add(request)
        deadline = time.monotonic() + self._options.cancel_timeout + 2
        while any(not self._pushed[request].is_released for request in left):
            if time.monotonic() > deadline:
                raise RuntimeError(f"the blocks of {sorted(left)} are still being read after {self._options.cancel_timeout} s")
            self._poll(0.01)
        self._orphans.difference_update(requests)
        for request in left:
            del self._requests[self._pushed.pop(request).job]

    def _poll(self, timeout: float) -> None:
        for event in self._prefiller.poll(timeout):
            if event.kind is kv.Kind.JOB:
                self._offer(event.job)
            elif event.kind is kv.Kind.STOP:
                logger.info("Request %s is not pushed any more: %s", self._requests.get(event.job), event.reason)
            elif event.job in self._requests:
                self._pushed[self._requests[event.job]].is_released = True

    def _offer(self, job: kv.Job) -> None:
        try:
            transfer, digest = unpack_input(job.input)
        except ValueError as error:
            return job.abort(str(error))
        if transfer in self._offered:
            return job.abort(f"transfer {transfer} has been asked for before")
        self._offered[transfer] = (job, time.monotonic() + job.timeout)
        self._progress.offers[transfer] = Offer(digest, job.end)

    def end(self, step: Step, finished: Set[str], results: KVConnectorTransferResults) -> None:
        """After the forward pass: whose blocks nobody reads any more."""
        self._poll(IDLE_WAIT if step.is_idle else 0)
        results.finished_sending |= finished & self._orphans
        self._orphans -= finished
        for request in finished & self._pushed.keys():
            self._pushed[request].is_finished = True
        for request, pushed in list(self._pushed.items()):
            if pushed.is_released and pushed.is_finished:
                del self._pushed[request], self._requests[pushed.job]
                results.finished_sending.add(request)
        now = time.monotonic()
        for transfer, (job, deadline) in list(self._offered.items()):
            if now > deadline:
                del self._offered[transfer]
                job.abort("no request for it has come to the prefiller")
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
