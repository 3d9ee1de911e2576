"""Updates of a model's weights from trainer ranks to inference ranks: on all receivers or on none.

```python
import transfer_engine as te
from transfer_engine import weights

plan = weights.Plan("llama-3.1-8b", "fsdp=4,tp=2", "tp=2,fp8=1")    # plan.encode() to all processes, Plan.decode(bytes) there

# a trainer; that of rank 0 leads
endpoint = weights.Endpoint(te.Engine("trainer"), plan, leader=address)    # engine.address of who leads; nothing there
trainer = weights.Trainer(endpoint, rank)
for name in trainer.shards:
    trainer.shard(name).torch().copy_(parameters[name])             # or trainer.fill(name, whole parameter)
trainer.publish(1)

controller = weights.Controller(endpoint)                           # where it leads
controller.wait_complete()
controller.push(1)                                                  # returns when the version is served everywhere

# a receiver
receiver = weights.Receiver(weights.Endpoint(te.Engine("receiver"), plan, leader=address), rank)
receiver.wait(1)
with receiver.read() as served:
    qkv = served.tensor("model.layers.0.self_attn.qkv_proj.weight").torch()
```

Nothing happens by itself: whoever has an endpoint calls `poll` often, or waits, until it is closed. One thread at a time is in an
endpoint, another one gets `Busy`; `Receiver.version` and `Receiver.read` are for any thread at any time. Calls that wait release
the GIL. docs/weights.md has the protocol and what becomes of failures.
"""

from __future__ import annotations

import array
import dataclasses
import enum
import json
import math
import os
from typing import TYPE_CHECKING, Any, Dict, List, Mapping, Optional, Sequence, Tuple, Union

from . import _native
from .config import nanoseconds
from .engine import Engine
from .errors import BadHandle, TransferError
from .memory import bytes_of

if TYPE_CHECKING:
    import numpy
    import torch

__all__ = ["DataType", "Shard", "Target", "Tensor", "Plan", "Endpoint", "Trainer", "Receiver", "Reading", "Controller"]

_TIME, _COMPLETE, _OUTCOME, _ROLLBACK, _SERVED, _PUSHED = range(6)


class DataType(enum.IntEnum):
    """What elements are. `F8_E4M3` is e4m3fn."""

    BF16 = 0
    F16 = 1
    F32 = 2
    F8_E4M3 = 3
    U8 = 4
    I32 = 5
    I64 = 6

    @property
    def nbytes(self) -> int:
        """Bytes of an element."""
        return (2, 2, 4, 1, 1, 4, 8)[self]

    @property
    def numpy(self) -> str:
        """numpy's name; where numpy has no such type that of the bits."""
        return ("uint16", "float16", "float32", "uint8", "uint8", "int32", "int64")[self]

    @property
    def torch(self) -> str:
        """torch's name."""
        return ("bfloat16", "float16", "float32", "float8_e4m3fn", "uint8", "int32", "int64")[self]


@dataclasses.dataclass(frozen=True)
class Shard:
    """What a trainer rank holds of a parameter."""

    name: str
    dtype: DataType
    whole: Tuple[int, ...]
    """The shape of the whole parameter."""
    first: Tuple[int, ...]
    """Where in it the shard begins."""
    shape: Tuple[int, ...]
    offset: int
    """Its first byte in the trainer's memory."""
    nbytes: int

    @property
    def slices(self) -> Tuple[slice, ...]:
        """Cuts the shard out of the whole parameter: `parameter[shard.slices]`."""
        return tuple(slice(first, first + count) for first, count in zip(self.first, self.shape))


@dataclasses.dataclass(frozen=True)
class Target:
    """What a receiver gets."""

    name: str
    """As inference engines call it, for example "model.layers.0.self_attn.qkv_proj.weight"."""
    dtype: DataType
    shape: Tuple[int, ...]
    """Of this rank's part."""
    offset: int
    """Its first byte among the weights that are served."""
    nbytes: int
    scale_shape: Tuple[int, ...]
    """Of its scales, a float32 for each block of 128 rows and 128 columns; empty without."""
    scale_offset: int
    scale_nbytes: int


class Tensor:
    """A view of a shard or of what is served: the same memory, no copy."""

    def __init__(self, memory: "_native.Lent", name: str, dtype: DataType, shape: Tuple[int, ...], offset: int) -> None:
        self._memory = memory
        self.name = name
        self.dtype = dtype
        self.shape = shape
        self._offset = offset
        self.nbytes = math.prod(shape) * dtype.nbytes

    def memoryview(self) -> memoryview:
        """Its bytes."""
        return memoryview(self._memory)[self._offset:self._offset + self.nbytes]

    def numpy(self, dtype: Any = None) -> "numpy.ndarray":
        """As a numpy array; BF16 and FP8 as the integers of their bits, unless `dtype` names a type for them."""
        import numpy

        return numpy.frombuffer(self.memoryview(), dtype=self.dtype.numpy if dtype is None else dtype).reshape(self.shape)

    def torch(self) -> "torch.Tensor":
        """As a torch tensor. One of what is served must not be written to."""
        import torch

        whole = torch.from_dlpack(self._memory)
        return whole[self._offset:self._offset + self.nbytes].view(getattr(torch, self.dtype.torch)).reshape(self.shape)

    def __repr__(self) -> str:
        return f"<Tensor {self.name!r} {self.dtype.name} {list(self.shape)}>"


class Plan:
    """Who sends what to whom. All processes of an update have the same. It does not change; any thread."""

    def __init__(
        self, model: Union[str, "os.PathLike[str]", Mapping[str, Any]], trainers: str, inference: str, *,
        full_tensor: bool = False, watermark: int = 0, task_bytes: int = 0,
    ) -> None:
        """Makes one; as `te weights plan` does.

        - model: a published one ("llama-3.1-8b"), a safetensors file or a directory of those, a .json description or what is in
          one: `{"name": ..., "attention": {"heads": ..., "key_value_heads": ..., "head_size": ...}, "tensors": [{"name": ...,
          "shape": [...], "dtype": "BF16"}, ...]}`.
        - trainers: "fsdp=4,tp=2": fsdp, replicas, tp, pp, ep, node (ranks of a host).
        - inference: "tp=2,fp8=1": tp, ep, dp; fp8=1 quantises, unfused=1 keeps projections apart.
        - full_tensor: all ranks gather whole parameters, as in the paper. For predictions; it cannot be done.
        - watermark: most bytes of temporary memory on a trainer rank; 0 is 2 GiB.
        - task_bytes: larger pieces of work are divided; 0 is 32 MiB.

        Raises `InvalidArgument` where something does not fit.
        """
        self._handle = 0
        text = json.dumps(dict(model)) if isinstance(model, Mapping) else os.fspath(model)
        self._open(_native.weights_plan_make(int(full_tensor), text, trainers, inference, watermark, task_bytes))

    @classmethod
    def decode(cls, plan: Any) -> "Plan":
        """Reads what `encode` or `te weights plan --output` wrote."""
        self = cls.__new__(cls)
        self._handle = 0
        self._open(_native.weights_plan_decode(plan))
        return self

    def _open(self, handle: int) -> None:
        self._handle = handle
        self.trainers, self.receivers = _native.weights_plan_ranks(handle)

    def encode(self) -> bytes:
        """The plan as bytes, the same ones for equal plans."""
        return _native.weights_plan_encode(self._handle)

    def lint(self) -> List[str]:
        """Proves that the plan does what it must, or names counter-examples."""
        return _native.weights_plan_lint(self._handle).splitlines()

    @property
    def summary(self) -> Dict[str, Any]:
        """Figures of the plan."""
        figures: Dict[str, Any] = json.loads(_native.weights_plan_summary(self._handle))
        return figures

    def shards(self, rank: int) -> Dict[str, Shard]:
        """What a trainer rank holds, by the names of parameters."""
        return {shard[0]: Shard(shard[0], DataType(shard[1]), *shard[2:])
                for shard in _native.weights_plan_shards(self._handle, rank)}

    def targets(self, rank: int) -> Dict[str, Target]:
        """What a receiver gets, by its names."""
        return {target[0]: Target(target[0], DataType(target[1]), *target[2:])
                for target in _native.weights_plan_targets(self._handle, rank)}

    def close(self) -> None:
        """Forgets it; endpoints keep what they need. Again is fine."""
        handle, self._handle = self._handle, 0
        if handle:
            _native.weights_plan_release(handle)

    def __enter__(self) -> "Plan":
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_handle", 0):
            self.close()

    def __reduce__(self) -> Any:
        raise TypeError("plans are not pickled; send what encode() returns")

    def __repr__(self) -> str:
        return f"<Plan from {self.trainers} trainers to {self.receivers} receivers{'' if self._handle else ', closed'}>"


class Endpoint:
    """One process of updates: its engine, whose messages it takes, and its roles: `Trainer`, `Receiver`, `Controller`."""

    def __init__(self, engine: Engine, plan: Plan, *, leader: Optional[bytes] = None) -> None:
        """Opens it.

        - plan: one that `lint` has nothing against.
        - leader: `Engine.address` of who leads; None where this process does, or `follow` comes later.
        """
        self._handle = 0
        self._handle = _native.weights_open(engine._handle, plan._handle)
        self.engine = engine
        self._plan = plan
        self._shards: Optional[_native.Lent] = None
        engine._roles.add(self)
        if leader is not None:
            try:
                self.follow(leader)
            except BaseException:
                self.close()
                raise

    def follow(self, address: bytes) -> None:
        """Who leads from now on: `Engine.address` of its engine."""
        _native.weights_follow(self._handle, address)

    def poll(self) -> bool:
        """Does what is to be done now. Whether anything was."""
        return _native.weights_poll(self._handle)

    def run(self, seconds: float) -> None:
        """Does what is to be done for so long."""
        self._wait(_TIME, 0, seconds)

    def _wait(self, what: int, version: int, timeout: Optional[float]) -> None:
        _native.weights_wait(self._handle, what, version, nanoseconds(timeout, -1))

    def close(self) -> None:
        """Ends its roles: nobody writes into their memory any more, which is gone. Again is fine.

        Raises BufferError while arrays or tensors over shards exist, `Busy` while some over what is served do: drop those first.
        """
        if not self._handle:
            return
        if self._shards is not None:
            self._shards._close()
        try:
            _native.weights_close(self._handle)
        except TransferError:
            if self._shards is not None:
                self._shards = _native.weights_memory(self._handle)
            raise
        self._handle = 0
        self.engine._roles.discard(self)

    def __enter__(self) -> "Endpoint":
        return self

    def __exit__(self, kind: Any, *unused: object) -> None:
        try:
            self.close()
        except (BufferError, TransferError):
            if kind is None:  # otherwise what went wrong is worth more
                raise

    def __del__(self) -> None:
        if getattr(self, "_handle", 0):
            try:
                self.close()
            except (BufferError, TransferError, TypeError):
                pass

    def __repr__(self) -> str:
        return f"<Endpoint of {self.engine.name!r}{'' if self._handle else ', closed'}>"


class Trainer:
    """A trainer rank: holds shards, and does its part of the plan when the controller says so."""

    def __init__(self, endpoint: Endpoint, rank: int) -> None:
        """Allocates the memory of its shards. One for each endpoint."""
        _native.weights_train(endpoint._handle, rank)
        self.endpoint = endpoint
        self.rank = rank
        endpoint._shards = _native.weights_memory(endpoint._handle)
        self.shards = endpoint._plan.shards(rank)
        """What this rank holds, by the names of parameters."""

    def shard(self, name: str) -> Tensor:
        """A view of a shard, to be filled before `publish`."""
        shard, memory = self.shards[name], self.endpoint._shards
        assert memory is not None  # since there is a trainer
        return Tensor(memory, name, shard.dtype, shard.shape, shard.offset)

    def fill(self, name: str, whole: Any) -> None:
        """Copies this rank's shard out of a whole parameter: contiguous, anything with the buffer protocol, or a torch tensor."""
        _native.weights_fill(self.endpoint._handle, name, bytes_of(whole))

    def publish(self, version: int) -> None:
        """The shards are those of a version, and stay as they are until it is served everywhere, or `withdraw`."""
        _native.weights_publish(self.endpoint._handle, version)

    def withdraw(self) -> None:
        """The shards are about to change: nothing of them is sent until the next `publish`.

        Raises `BackPressure` while something is under way.
        """
        _native.weights_withdraw(self.endpoint._handle)

    def wait(self, version: int, timeout: Optional[float] = None) -> None:
        """Until the controller has said that a version is served everywhere. Raises `TimedOut` after `timeout` seconds."""
        self.endpoint._wait(_PUSHED, version, timeout)

    @property
    def is_sending(self) -> bool:
        """Whether something of an update is under way."""
        return bool(_native.weights_status(self.endpoint._handle)[0])

    @property
    def sent_bytes(self) -> int:
        """Bytes written to receivers since the beginning."""
        return _native.weights_status(self.endpoint._handle)[1]

    @property
    def pushed_version(self) -> int:
        """What is served everywhere, as the controller has said; 0 before the first."""
        return _native.weights_status(self.endpoint._handle)[2]


class Reading:
    """Weights that are lent. They stay as they are until the block has ended and the last array over them is gone."""

    def __init__(self, version: int, memory: "_native.Lent", targets: Dict[str, Target]) -> None:
        self.version = version
        """Which version they are."""
        self._memory: Optional[_native.Lent] = memory
        self.targets = targets
        """What there is, by its names."""

    def tensor(self, name: str) -> Tensor:
        """A view of a tensor."""
        target = self.targets[name]
        return Tensor(self._lent, name, target.dtype, target.shape, target.offset)

    def scales(self, name: str) -> Optional[Tensor]:
        """A view of the scales of a tensor, float32 for each block of 128 rows and 128 columns; None without."""
        target = self.targets[name]
        if not target.scale_nbytes:
            return None
        return Tensor(self._lent, name, DataType.F32, target.scale_shape, target.scale_offset)

    @property
    def memory(self) -> "_native.Lent":
        """All of it; has the buffer protocol."""
        return self._lent

    @property
    def _lent(self) -> "_native.Lent":
        if self._memory is None:
            raise BadHandle("the reading has ended", "Begin another one.")
        return self._memory

    def close(self) -> None:
        """Ends it, but for arrays that exist. Again is fine."""
        self._memory = None

    def __enter__(self) -> "Reading":
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()


class Receiver:
    """An inference rank: memory for two versions, one of which is served."""

    def __init__(self, endpoint: Endpoint, rank: int) -> None:
        """Allocates its memory. One for each endpoint."""
        _native.weights_serve(endpoint._handle, rank)
        self.endpoint = endpoint
        self.rank = rank
        self.targets = endpoint._plan.targets(rank)
        """What this rank gets, by its names."""

    @property
    def version(self) -> int:
        """The version that is served; 0 before the first. Any thread."""
        return _native.weights_version(self.endpoint._handle)

    def read(self) -> Reading:
        """Lends what is served. It does not change while it is lent, and no update overwrites it: the one after next waits. Any
        thread. Raises `LookupError` before the first version.
        """
        lent = _native.weights_read(self.endpoint._handle)
        if lent is None:
            raise LookupError("no version is served yet; wait for one")
        return Reading(lent[0], lent[1], self.targets)

    def wait(self, version: int, timeout: Optional[float] = None) -> None:
        """Until this version is served here. Raises `TimedOut` after `timeout` seconds."""
        self.endpoint._wait(_SERVED, version, timeout)


class Controller:
    """Leads updates: one process of all, as a rule that of trainer 0; the others follow the address of its engine."""

    def __init__(
        self, endpoint: Endpoint, *, term: int = 1, attempts: int = 8, sendings: int = 3, repeat_interval: float = 0.05,
        phase_timeout: float = 60.0, update_timeout: float = 600.0,
    ) -> None:
        """Leads from now on.

        - term: higher than that of anybody who led before, up to 65535.
        - attempts: at one version.
        - sendings: how often what arrives damaged is sent before the update fails.
        - repeat_interval: seconds after which unanswered messages are repeated.
        - phase_timeout: a phase that takes longer begins another attempt.
        - update_timeout: all attempts together.
        """
        _native.weights_lead(
            endpoint._handle, term, attempts, sendings, nanoseconds(repeat_interval, 0), nanoseconds(phase_timeout, 0),
            nanoseconds(update_timeout, 0))
        self.endpoint = endpoint

    def wait_complete(self, timeout: Optional[float] = None) -> None:
        """Until all ranks of the plan have joined. Raises `TimedOut` after `timeout` seconds."""
        self.endpoint._wait(_COMPLETE, 0, timeout)

    def update(self, version: int) -> None:
        """Begins an update of all receivers that are there to a version that all trainers have published or will publish."""
        _native.weights_update(self.endpoint._handle, version)

    def outcome(self, version: int) -> Optional[Tuple[int, ...]]:
        """How an update went: None while it is under way; once the version is decided, receivers that are left out because they
        were lost after that. They get it when they are back.

        Raises why nobody serves the version: `PeerLost`, `DigestMismatch`, `Stalled`, `Cancelled`.
        """
        return _ranks(_native.weights_outcome(self.endpoint._handle, version))

    def wait(self, version: int, timeout: Optional[float] = None) -> Tuple[int, ...]:
        """Until an update has an outcome, and what it is. Raises `TimedOut` after `timeout` seconds."""
        self.endpoint._wait(_OUTCOME, version, timeout)
        return self.outcome(version) or ()

    def push(self, version: int, timeout: Optional[float] = None) -> Tuple[int, ...]:
        """Begins an update, and waits for its outcome."""
        self.update(version)
        return self.wait(version, timeout)

    def rollback(self, version: int, timeout: Optional[float] = None) -> Tuple[int, ...]:
        """Lets all receivers serve the version before, if all of them still have it; otherwise none does. Waits for the outcome.

        Raises `InvalidArgument` when one no longer has it.
        """
        _native.weights_rollback(self.endpoint._handle, version)
        self.endpoint._wait(_ROLLBACK, 0, timeout)
        return _ranks(_native.weights_rollback_outcome(self.endpoint._handle)) or ()

    def cancel(self) -> None:
        """Ends the update that is under way: nobody serves it."""
        _native.weights_cancel(self.endpoint._handle)

    @property
    def is_updating(self) -> bool:
        """Whether an update or a rollback is under way."""
        return bool(_native.weights_status(self.endpoint._handle)[5])

    @property
    def is_complete(self) -> bool:
        """Whether all ranks of the plan are there."""
        return bool(_native.weights_status(self.endpoint._handle)[6])

    @property
    def receiver_count(self) -> int:
        """Receivers that are there."""
        return _native.weights_status(self.endpoint._handle)[7]

    @property
    def current_version(self) -> int:
        """What is decided; 0 before the first."""
        return _native.weights_status(self.endpoint._handle)[8]

    @property
    def state(self) -> str:
        """What is under way and who has not answered, for people who wait."""
        return _native.weights_describe(self.endpoint._handle).split("\n", 1)[0]

    @property
    def log(self) -> Sequence[str]:
        """Attempts that were given up, and why."""
        return _native.weights_describe(self.endpoint._handle).split("\n")[1:]


def _ranks(packed: Optional[bytes]) -> Optional[Tuple[int, ...]]:
    return None if packed is None else tuple(array.array("I", packed))
