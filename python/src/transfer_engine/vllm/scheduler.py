"""The connector's half in the scheduler: which requests load or push what. No transfers, no clock but the one it is given."""

from __future__ import annotations

import base64
import dataclasses
import time
from typing import Any, Callable, Dict, List, Optional, Tuple

from vllm.logger import init_logger

from .messages import Ask, Chunk, Offer, Progress, Step, prompt_digest

__all__ = ["DecodeScheduler", "PrefillScheduler"]

ENDED_TRANSFERS = 4096
"""So many transfers are remembered whose requests have ended before a decoder asked for them."""

logger = init_logger(f"vllm.{__name__}")  # so that vLLM's configuration holds for it


def params_of(request: Any) -> Dict[str, Any]:
    """What the router said about a request."""
    return request.kv_transfer_params or {}


def addresses_of(prefiller: Any) -> Optional[List[bytes]]:
    """The engines of a prefiller's tensor ranks, as it has told the router; None for what no prefiller says."""
    try:
        addresses = [base64.b64decode(one, validate=True) for one in prefiller.split(",")]
    except (AttributeError, ValueError):
        return None
    return addresses if all(addresses) else None


class DecodeScheduler:
    """Requests with `do_remote_prefill` wait for a cache that a prefiller pushes into their blocks."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._asks: Dict[str, Ask] = {}
        self._cancelled: List[str] = []

    def matched_tokens(self, request: Any, computed: int) -> Tuple[int, bool]:
        """Tokens beyond `computed` that will be loaded, and whether between steps."""
        params = params_of(request)
        if not params.get("do_remote_prefill"):
            return 0, False
        if addresses_of(params.get("prefiller")) is None or "transfer_id" not in params:
            # Parameters come from clients: what they say must not end the engine.
            logger.warning("Request %s names no prefiller and no transfer; it is computed here", request.request_id)
            params["do_remote_prefill"] = False
            return 0, False
        missing = request.num_prompt_tokens - computed
        return (missing, True) if missing > 0 else (0, False)

    def allocated(self, request: Any, blocks: List[int], external: int) -> None:
        """Blocks exist: asks for their cache, once. Whatever comes of it, the request is computed here afterwards."""
        params = params_of(request)
        if not params.get("do_remote_prefill") or external == 0:
            return
        params["do_remote_prefill"] = False
        tokens = request.num_prompt_tokens
        end = -(-tokens // self._block_size) * self._block_size
        self._asks[request.request_id] = Ask(
            str(params["transfer_id"]), addresses_of(params["prefiller"]) or [],
            prompt_digest(request.prompt_token_ids), tokens - external, end, blocks[:end // self._block_size])

    def finished(self, request: Any) -> None:
        """The worker knows whether there is anything to cancel."""
        if params_of(request).get("transfer_id"):
            self._cancelled.append(request.request_id)

    def build(self, step: Step) -> None:
        """Fills in what has come since the last step."""
        step.asks, self._asks = self._asks, {}
        step.cancelled, self._cancelled = self._cancelled, []


@dataclasses.dataclass
class _Pushed:
    """A request whose cache is pushed."""

    transfer: str
    tokens: int
    blocks: List[int] = dataclasses.field(default_factory=list)
    end: int = 0
    """Tokens that have been announced."""


class PrefillScheduler:
    """Requests with `do_remote_decode` begin when their decoder has offered pages, so that each layer goes as soon as it is
    computed. One without an offer begins after `patience` seconds, and is not pushed."""

    def __init__(self, block_size: int, patience: float, checks_prompts: bool,
                 clock: Callable[[], float] = time.monotonic) -> None:
        self.addresses: List[bytes] = []
        self._block_size = block_size
        self._patience = patience
        self._checks_prompts = checks_prompts
        self._clock = clock
        self._offers: Dict[str, Offer] = {}
        self._since: Dict[str, float] = {}
        self._settled: set = set()
        self._pushed: Dict[str, _Pushed] = {}
        self._aborted: List[str] = []
        self._refused: Dict[str, str] = {}
        # Transfers whose requests have ended before a decoder asked, the oldest first: it need not wait until it gives up.
        self._ended: Dict[str, None] = {}

    def may_begin(self, request: Any) -> bool:
        """Whether a request need not wait any more for its decoder."""
        transfer = self._transfer(request)
        if transfer is None or request.request_id in self._settled or self._is_offered(transfer):
            return True
        since = self._since.setdefault(request.request_id, self._clock())
        return self._clock() - since >= self._patience

    def allocated(self, request: Any) -> None:
        """The request begins: with the offer that there is, or without."""
        transfer = self._transfer(request)
        if transfer is None or request.request_id in self._settled:
            return
        self._settled.add(request.request_id)
        self._since.pop(request.request_id, None)
        is_offered = self._is_offered(transfer)
        offer = self._offers.pop(transfer, None)
        if offer is None or not is_offered:
            if offer is not None:
                self._refused[transfer] = "the request has begun before all of the decoder's ranks had asked"
            logger.warning("No decoder has asked for transfer %s; its cache stays here", transfer)
            return
        tokens = request.num_prompt_tokens
        if self._checks_prompts and offer.digest != prompt_digest(request.prompt_token_ids):
            self._refused[transfer] = "the decoder's prompt is another one than the prefiller's"
        elif offer.end != -(-tokens // self._block_size) * self._block_size:
            self._refused[transfer] = f"the decoder wants {offer.end} tokens of a prompt of {tokens}"
        else:
            self._pushed[request.request_id] = _Pushed(transfer, tokens)

    def _is_offered(self, transfer: str) -> bool:
        offer = self._offers.get(transfer)
        return offer is not None and offer.count >= offer.total

    def _transfer(self, request: Any) -> Optional[str]:
        params = params_of(request)
        transfer = params.get("transfer_id")
        return str(transfer) if params.get("do_remote_decode") and transfer is not None else None

    def build(self, step: Step, output: Any) -> None:
        """Fills in what this step computes of the requests that are pushed."""
        for request in output.preempted_req_ids or ():
            if self._pushed.pop(request, None):
                step.preempted.append(request)
        for new in output.scheduled_new_reqs:
            self._chunk(step, output, new.req_id, new.block_ids, new.num_computed_tokens, True)
        cached = output.scheduled_cached_reqs
        for index, request in enumerate(cached.req_ids):
            self._chunk(step, output, request, cached.new_block_ids[index], cached.num_computed_tokens[index],
                        request in cached.resumed_req_ids)
        step.aborted, self._aborted = self._aborted, []
        step.refused, self._refused = self._refused, {}

    def _chunk(self, step: Step, output: Any, request: str, blocks: Optional[Tuple[List[int], ...]], computed: int,
               is_first: bool) -> None:
        pushed = self._pushed.get(request)
        if pushed is None or pushed.end >= pushed.tokens:
            return
        if is_first:
            pushed.blocks = []
        if blocks:
            pushed.blocks += blocks[0]
        begin, end = pushed.end, min(computed + output.num_scheduled_tokens[request], pushed.tokens)
        pushed.end = end
        if end == pushed.tokens:  # whole blocks are pushed; nobody reads what is behind the last token
            end = -(-end // self._block_size) * self._block_size
        step.chunks.append(Chunk(request, pushed.transfer, begin, end, list(pushed.blocks)))

    def finished(self, request: Any, is_aborted: bool) -> Tuple[bool, Optional[Dict[str, Any]]]:
        """Whether the blocks must stay until the worker says so; and what the router is told."""
        identity = request.request_id
        self._since.pop(identity, None)
        self._settled.discard(identity)
        transfer = self._transfer(request)
        pushed = self._pushed.pop(identity, None)
        # One that has been announced is with the worker, which reports it when nothing reads its blocks any more.
        holds = pushed is not None and pushed.end > 0
        if pushed is not None and (is_aborted or pushed.end < pushed.tokens):
            if holds:
                self._aborted.append(identity)
            else:
                self._refused[pushed.transfer] = "the prefiller's request has ended"
        elif transfer is not None and pushed is None:
            if self._offers.pop(transfer, None) is not None:
                self._refused[transfer] = "the prefiller's request has ended"
            self._ended[transfer] = None  # for what asks later, and for a decoder's other ranks
            if len(self._ended) > ENDED_TRANSFERS:
                del self._ended[next(iter(self._ended))]
        if not params_of(request).get("do_remote_decode"):
            return holds, None
        return holds, {"prefiller": ",".join(base64.b64encode(one).decode() for one in self.addresses)}

    def heard(self, progress: Progress) -> None:
        """News of the worker."""
        for transfer, offer in progress.offers.items():
            if transfer in self._ended:
                self._refused[transfer] = "the prefiller's request has ended"
            else:
                self._offers[transfer] = offer.plus(self._offers.get(transfer))
        for transfer in progress.withdrawn:
            self._offers.pop(transfer, None)
