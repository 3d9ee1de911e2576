"""Dispatches the tokens of mixtures of experts to the ranks of their experts, and combines the results.

```python
from transfer_engine import moe

exchange = moe.Exchange(engine, rank=rank, ranks=4, experts=64, top_k=8, hidden=7168, maximum_tokens=128)
exchange.connect(addresses)                             # exchange.address of every rank, by any channel

exchange.dispatch_send(tokens, experts, weights)        # [n, hidden], [n, top_k] of int32, [n, top_k] of float32
for received in exchange.passes():                      # one, where memory suffices
    x = torch.frombuffer(received.tokens, dtype=torch.bfloat16).reshape(-1, 7168)
    y = torch.frombuffer(received.outputs, dtype=torch.bfloat16).reshape(-1, 7168)
    for expert, (first, count) in enumerate(received.experts):
        y[first:first + count] = run(expert, x[first:first + count])
exchange.combine_receive(sums)                          # [n, hidden]
```

Sums are the same to the bit from run to run. A rank that is lost, or keeps others waiting too long, is left out: `combine_receive`
says how many entries are missing, `Exchange.missing` whose. One thread at a time uses an exchange; calls that wait release the
GIL. docs/moe.md has the algorithm and its figures.
"""

from __future__ import annotations

import array
import dataclasses
import enum
from typing import Any, Dict, Iterator, Optional, Sequence, Tuple

from . import _native
from .config import nanoseconds
from .engine import Engine
from .errors import TransferError
from .memory import Region, bytes_of

Rows = _native.Lent

__all__ = ["Rows", "Element", "Reduction", "Received", "Result", "Exchange"]


class Element(enum.IntEnum):
    """What values are. `FLOAT8` is e4m3fn, and not for results."""

    FLOAT32 = 0
    BFLOAT16 = 1
    FLOAT16 = 2
    FLOAT8 = 3

    @property
    def nbytes(self) -> int:
        """Bytes of a value."""
        return (4, 2, 2, 1)[self]


class Reduction(enum.IntEnum):
    """Where a token's results are added."""

    RECEIVER = 0
    """By its own rank; the sum is the same for any number of ranks."""
    SENDER = 1
    """By the experts' ranks, so that one float32 row travels for each token and rank."""


@dataclasses.dataclass(frozen=True)
class Received:
    """What one pass brought: memory of the exchange's, valid until the next `combine_send`. It has the buffer protocol:
    `numpy.frombuffer(received.tokens, dtype)`, `torch.frombuffer(received.tokens, dtype=dtype)`."""

    is_last: bool
    """Whether this is the last pass of the step."""
    row_count: int
    """Rows of tokens and outputs, padding included."""
    tokens: "Rows"
    """`hidden` values of the dispatch element each; padding is 0."""
    scales: Optional["Rows"]
    """Of each row one float32 for each block; None without `scale_block`."""
    outputs: "Rows"
    """Where results go: `hidden` values of the combine element each."""
    experts: Tuple[Tuple[int, int], ...]
    """For each expert of this rank its first row, and how many it has."""


@dataclasses.dataclass(frozen=True)
class Result:
    """What a step came to."""

    missing_ranks: int
    """How many ranks are left out."""
    dropped_entries: int
    """Entries of the tokens' lists whose experts did not contribute."""


class Exchange:
    """One rank of an exchange of tokens between experts. All ranks have the same shape, but for `rank` and `spins`."""

    def __init__(
        self, engine: Engine, *, rank: int, ranks: int, experts: int, top_k: int, hidden: int, maximum_tokens: int,
        dispatch: Element = Element.BFLOAT16, combine: Element = Element.BFLOAT16, scale_block: int = 0,
        reduction: Reduction = Reduction.RECEIVER, replicas: int = 1, padding: int = 1, micro_batches: int = 2,
        private_rows: int = 0, spins: int = 1000, memory_budget: int = 0, deadline: float = 30.0,
        nodes: int = 0,
    ) -> None:
        """Allocates the memory of this rank.

        - experts: in all; the first `experts % ranks` ranks have one more than the others.
        - top_k: experts in the list of a token; entries may be -1.
        - scale_block: values of a token that share a float32 scale, which travels along; 0 is no scales.
        - replicas: neighbouring ranks that hold the same tokens.
        - padding: the rows of each expert begin at a multiple of this.
        - micro_batches: steps in flight at a time.
        - memory_budget: bytes of a micro-batch; 0 is room for balanced routing and half as much again.
        - deadline: seconds that a rank which lives may keep others waiting.
        - nodes: of equally many neighbouring ranks: a token travels once to each, and is forwarded inside. With
          `Reduction.SENDER` only; 0 is one exchange of all ranks.
        """
        self._handle = 0
        self._handle = _native.moe_open(
            engine._handle, rank, ranks, experts, top_k, hidden, maximum_tokens, int(dispatch), int(combine), scale_block,
            int(reduction), replicas, padding, micro_batches, private_rows, spins, memory_budget, nanoseconds(deadline, 0), nodes)
        self.rank, self.ranks, self.hidden, self.top_k = rank, ranks, hidden, top_k
        self._token_bytes, self._result_bytes = hidden * dispatch.nbytes, hidden * combine.nbytes
        self._blocks = -(-hidden // scale_block) if scale_block else 0
        # What a step reads until it has ended, and how many tokens it has.
        self._steps: Dict[int, Tuple[int, Any]] = {}
        self._received: Dict[int, Received] = {}
        self._engine = engine
        engine._roles.add(self)

    @property
    def address(self) -> bytes:
        """What the other ranks need, for `connect`."""
        return _native.moe_address(self._handle)

    def connect(self, addresses: Sequence[bytes]) -> None:
        """Meets the others: the addresses of all ranks in their order; that of this one is not looked at."""
        _native.moe_connect(self._handle, tuple(bytes(address) for address in addresses))

    def dispatch_send(
        self, tokens: Any, experts: Any, weights: Any, *, scales: Any = None, count: Optional[int] = None, batch: int = 0,
        region: Optional[Region] = None,
    ) -> None:
        """Begins a step of a micro-batch. What is given is not changed by anybody until `combine_receive` has returned.

        - tokens: rows of `hidden` values behind each other; anything with the buffer protocol, or a torch tensor.
        - experts: `top_k` of each token, int32; -1 is none.
        - weights: `top_k` of each token, float32.
        - scales: float32, as many for each token as it has blocks.
        - count: tokens; by default as many as `tokens` has.
        - region: in which `tokens` lie, if they do: on one host they are then copied once.
        """
        held = tuple(None if part is None else bytes_of(part) for part in (tokens, scales, experts, weights))
        if count is None:
            view: Any = held[0]
            count = memoryview(view).nbytes // self._token_bytes
        _native.moe_dispatch_send(
            self._handle, batch, count, held[0], self._token_bytes, region._handle if region is not None else 0, held[1],
            self._blocks, held[2], held[3], self.top_k)
        self._steps[batch] = (count, (tokens, scales, experts, weights))

    def dispatch_receive(self, batch: int = 0) -> Received:
        """Waits for the tokens of a pass."""
        is_last, rows, tokens, scales, outputs, counts, offsets = _native.moe_dispatch_receive(
            self._handle, batch, self._token_bytes, self._result_bytes, self._blocks)
        experts = tuple(zip(array.array("I", offsets), array.array("I", counts)))
        received = Received(is_last, rows, tokens, scales, outputs, experts)
        self._received[batch] = received
        return received

    def combine_send(self, batch: int = 0) -> None:
        """Sends the results of a pass, which lie in `Received.outputs`."""
        _native.moe_combine_send(self._handle, batch)

    def passes(self, batch: int = 0) -> Iterator[Received]:
        """The passes of a step: after each of them its results are sent."""
        while True:
            received = self.dispatch_receive(batch)
            yield received
            self.combine_send(batch)
            if received.is_last:
                return

    def combine_receive(self, sums: Any, batch: int = 0) -> Result:
        """Waits for the results of this rank's tokens, and adds them: a row of `hidden` values of the combine element for each
        token; zero for a token without experts. `sums` is writable memory, or a torch tensor."""
        count = self._steps[batch][0] if batch in self._steps else 0
        result = Result(*_native.moe_combine_receive(self._handle, batch, bytes_of(sums), count * self._result_bytes))
        self._steps.pop(batch, None)
        return result

    @property
    def missing(self) -> Tuple[int, ...]:
        """The ranks that are left out."""
        return tuple(array.array("I", _native.moe_missing(self._handle)))

    def failure(self, rank: int) -> Optional[TransferError]:
        """Why a rank is left out; None for one that is not."""
        if rank not in self.missing:
            return None
        try:
            _native.moe_failure(self._handle, rank)
        except TransferError as error:
            return error
        return None

    def close(self) -> None:
        """Ends it: nobody writes into its memory any more. Again is fine.

        Raises BufferError, and ends nothing, while numpy arrays or memoryviews over received tokens exist. Of torch's tensors
        nobody knows: they must not be used any more.
        """
        if not self._handle:
            return
        for received in self._received.values():
            for view in (received.tokens, received.scales, received.outputs):
                if view is not None:
                    view._close()
        self._received.clear()
        handle, self._handle = self._handle, 0
        _native.moe_close(handle)
        self._engine._roles.discard(self)

    def __enter__(self) -> "Exchange":
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()
