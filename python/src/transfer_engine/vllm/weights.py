"""New weights for a running vLLM: `WeightTransferConfig(backend="transfer_engine")`.

```python
trainer = weights.Trainer()
llm.init_weight_transfer_engine({"init_info": trainer.init_info})
llm.start_weight_update()
trainer.update(model.named_parameters(), lambda info: llm.update_weights({"update_info": info}))
llm.finish_weight_update(weight_version="7")
llm.reset_prefix_cache()              # what was cached was computed with the old weights
```

The trainer writes chunks of tensors into a region of each worker, which knows that a chunk is there by counting, as always.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any, Callable, Dict, Iterable, Iterator, List, Tuple

import torch
from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.logger import init_logger

from ..engine import Engine
from ..memory import Region, Remote

__all__ = ["Trainer", "TransferEngineWeights", "InitInfo", "UpdateInfo"]

logger = init_logger(f"vllm.{__name__}")

_MAGIC = b"TEW1"
_ALIGNMENT = 64
_IMMEDIATE = 0x0EF0


@dataclasses.dataclass
class InitInfo(WeightTransferInitInfo):
    """How the trainer is reached. Made by `Trainer.init_info`."""

    address: str = ""
    """Of its engine, in hexadecimal digits."""
    chunk_bytes: int = 0
    nics: List[str] = dataclasses.field(default_factory=lambda: ["shm"])
    timeout: float = 60.0


@dataclasses.dataclass
class UpdateInfo(WeightTransferUpdateInfo):
    """One chunk: what is in it, and where."""

    names: List[str] = dataclasses.field(default_factory=list)
    dtypes: List[str] = dataclasses.field(default_factory=list)
    shapes: List[List[int]] = dataclasses.field(default_factory=list)
    offsets: List[int] = dataclasses.field(default_factory=list)


class TransferEngineWeights(WeightTransferEngine[InitInfo, UpdateInfo]):
    """The worker's side."""

    init_info_cls = InitInfo
    update_info_cls = UpdateInfo

    def init_transfer_engine(self, init_info: InitInfo) -> None:
        """Opens an engine and tells the trainer where it may write."""
        self.shutdown()
        self._info = init_info
        self._engine = Engine("weights", nics=init_info.nics, timeout=init_info.timeout)
        self._region = self._engine.allocate(init_info.chunk_bytes, is_populated=False)
        self._trainer = self._engine.connect(bytes.fromhex(init_info.address))
        self._engine.send(self._trainer, _MAGIC + self._region.descriptor).wait()

    def start_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        with torch.device(self.device):
            initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: Dict[str, Any]) -> None:
        """As the base class does it, without waiting for an accelerator that there may not be."""
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: UpdateInfo) -> None:
        """Waits for a chunk, and loads it."""
        begin = time.perf_counter()
        self._engine.expect(_IMMEDIATE, senders=[self._trainer]).wait()
        arrived = time.perf_counter()
        self.model.load_weights(self._tensors(update_info))
        logger.info("%d tensors arrived in %.1f ms and were loaded in %.1f ms", len(update_info.names),
                    (arrived - begin) * 1e3, (time.perf_counter() - arrived) * 1e3)

    def _tensors(self, info: UpdateInfo) -> Iterator[Tuple[str, torch.Tensor]]:
        for name, dtype, shape, offset in zip(info.names, info.dtypes, info.shapes, info.offsets):
            kind = getattr(torch, dtype)
            view = self._region.torch(kind, shape, offset)
            # Some loaders keep what they get, and the region is written again. On GPUs this is the copy to the device.
            yield name, view.clone() if self.device.type == "cpu" else view.to(self.device)

    def finish_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        with torch.device(self.device):
            finalize_layerwise_reload(self.model, self.model_config)
        if self.device.type == "cpu":
            self._pack_experts()

    def _pack_experts(self) -> None:
        """CPU kernels keep experts' weights in a form of their own, which a reload does not renew."""
        for module in self.model.modules():
            kernel = getattr(getattr(module, "quant_method", None), "moe_kernel", None)
            if kernel is not None and hasattr(module, "w13_weight"):
                kernel.fused_experts.process_weights_after_loading(module)

    def shutdown(self) -> None:
        engine = getattr(self, "_engine", None)
        if engine is not None:
            del self._region, self._trainer, self._engine
            engine.close()


class Trainer:
    """The trainer's side: one process that has all weights, or gathers them tensor by tensor."""

    def __init__(self, *, nics: Tuple[str, ...] = ("shm",), chunk_bytes: int = 64 << 20, timeout: float = 60.0) -> None:
        """`chunk_bytes` bounds a chunk, and must hold the largest tensor; each worker keeps so much."""
        self._engine = Engine("trainer", nics=nics, timeout=timeout)
        self._chunk_bytes = chunk_bytes
        self._timeout = timeout
        self._region: Region = self._engine.allocate(chunk_bytes, remote_write=False, is_populated=False)
        self._workers: Dict[int, Remote] = {}
        self.init_info: Dict[str, Any] = dict(
            address=self._engine.address.hex(), chunk_bytes=chunk_bytes, nics=list(nics), timeout=timeout)
        """For `init_weight_transfer_engine`. Workers that are initialized anew take the place of those of before."""

    def update(
        self, weights: Iterable[Tuple[str, torch.Tensor]], call: Callable[[Dict[str, Any]], Any], *, workers: int = 1
    ) -> int:
        """Sends weights to all workers, and has each chunk loaded: `call` is given what `update_weights` takes as its
        `update_info`, and returns when it has been loaded. Returns the bytes of all tensors.
        """
        self._meet(workers)
        total = 0
        for chunk in self._chunks(weights):
            info, used = self._pack(chunk)
            total += used
            writes = [self._engine.write(self._region, worker, used, immediate=_IMMEDIATE, timeout=self._timeout)
                      for worker in self._workers.values()]
            call(dataclasses.asdict(info))  # loaded everywhere when it returns: the regions may be written again
            self._engine.wait(writes)
        return total

    def _meet(self, count: int) -> None:
        deadline = time.monotonic() + self._timeout
        while True:
            for sender, data in self._engine.receive():
                if data.startswith(_MAGIC):
                    self._workers[sender] = self._engine.attach(data[len(_MAGIC):])
            while len(self._workers) > count:  # the oldest ones are of engines that were initialized anew
                self._workers.pop(next(iter(self._workers)))
            if len(self._workers) == count:
                return
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"{len(self._workers)} of {count} workers have said hello; call init_weight_transfer_engine first")
            self._engine.poll(0.05)

    def _chunks(self, weights: Iterable[Tuple[str, torch.Tensor]]) -> Iterator[List[Tuple[str, torch.Tensor]]]:
        chunk: List[Tuple[str, torch.Tensor]] = []
        used = 0
        for name, tensor in weights:
            size = _padded(tensor)
            if size > self._chunk_bytes:
                raise ValueError(f"{name} has {size} bytes, more than a chunk of {self._chunk_bytes}; raise chunk_bytes")
            if used + size > self._chunk_bytes:
                yield chunk
                chunk, used = [], 0
            chunk.append((name, tensor))
            used += size
        if chunk:
            yield chunk

    def _pack(self, chunk: List[Tuple[str, torch.Tensor]]) -> Tuple[UpdateInfo, int]:
        info = UpdateInfo()
        offset = 0
        for name, tensor in chunk:
            view = self._region.torch(tensor.dtype, tensor.shape, offset)
            view.copy_(tensor.detach())
            info.names.append(name)
            info.dtypes.append(str(tensor.dtype).removeprefix("torch."))
            info.shapes.append(list(tensor.shape))
            info.offsets.append(offset)
            offset += _padded(tensor)
        return info, offset

    def close(self) -> None:
        """Ends it. Again is fine."""
        self._engine.close()

    def __enter__(self) -> "Trainer":
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()


def _padded(tensor: torch.Tensor) -> int:
    return -(-tensor.numel() * tensor.element_size() // _ALIGNMENT) * _ALIGNMENT
