"""Expert parallelism for vLLM on CPUs: tokens travel to the ranks of their experts, and their results back, over `transfer_engine.moe`.

vLLM has none of its own there (0.32: its only exchange for CPUs is not implemented). With this package installed, data parallel
ranks with `enable_expert_parallel=True` use this one; the option is

```
--additional-config '{"transfer_engine_moe": {"nics": ["shm", "tcp:eth0"], "deadline": 300}}'
```

It is vLLM's own way in for other implementations of a layer (`UnquantizedFusedMoEMethod.register_oot`); nothing is patched. A
rank's results are added by the rank that has the token, in FP32 and in the order of its list: tokens do not depend on the number
of ranks. Every rank has whole experts, placed linearly; tensor parallelism beside it, EPLB and quantized experts are refused or
left to vLLM. Runs eagerly (`enforce_eager`).
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any, Dict, List, Optional, Tuple

import torch
import vllm.model_executor.layers.fused_moe.modular_kernel as mk
from vllm.config import get_current_vllm_config
from vllm.distributed import get_ep_group
from vllm.logger import init_logger
from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod

from .. import moe
from ..engine import Engine
from .processors import on_all_processors

__all__ = ["Options", "PrepareAndFinalize", "TransferEngineMoEMethod"]

logger = init_logger(f"vllm.{__name__}")

_ELEMENTS = {torch.float32: moe.Element.FLOAT32, torch.bfloat16: moe.Element.BFLOAT16, torch.float16: moe.Element.FLOAT16}


@dataclasses.dataclass(frozen=True)
class Options:
    """What `additional_config["transfer_engine_moe"]` may say."""

    nics: Tuple[str, ...] = ("shm",)
    """As for `Engine`: ["shm", "tcp:eth0"] across hosts."""
    deadline: float = 300.0
    """Seconds that a rank may keep others waiting before it is left out, which ends the others' step with an error."""
    liveness: float = 30.0
    """Seconds of silence after which a rank counts as dead. Whoever computes on all processors is silent for a while."""
    memory_budget: int = 0
    """Bytes for the tokens of a step; 0 is room for balanced routing and half as much again. More takes several passes."""
    spins: Optional[int] = None
    """Turns of a wait before the processor is offered to others; by default few when there are more ranks than processors."""

    @classmethod
    def of(cls, config: Any) -> "Options":
        """From vLLM's `additional_config`. Raises ValueError for what it does not know."""
        given = dict(config.get("transfer_engine_moe", {})) if isinstance(config, dict) else {}
        unknown = given.keys() - {field.name for field in dataclasses.fields(cls)}
        if unknown:
            raise ValueError(f"transfer_engine_moe: {sorted(unknown)} are no options; see transfer_engine.vllm.moe.Options")
        if "nics" in given:
            given["nics"] = tuple(given["nics"])
        return cls(**given)


# Layers of one shape take turns on one exchange; all exchanges of a group stand on one engine.
_engines: Dict[Any, Engine] = {}
_exchanges: Dict[Tuple[Any, ...], moe.Exchange] = {}


def open_exchange(config: Any, maximum_tokens: int, options: Options) -> moe.Exchange:
    """The exchange for layers of this shape, over all ranks of the group of experts. All ranks call it in the same order."""
    group = get_ep_group()
    key = (group, config.num_experts, config.experts_per_token, config.hidden_dim, config.in_dtype, maximum_tokens, options)
    made = _exchanges.get(key)
    if made is None:
        element = _ELEMENTS[config.in_dtype]
        spins = options.spins
        if spins is None:
            spins = 1000 if group.world_size <= (os.cpu_count() or 1) else 1
        with on_all_processors():
            engine = _engines.get(group)
            if engine is None:
                engine = _engines[group] = Engine(
                    f"experts {group.rank_in_group}", nics=options.nics, liveness_interval=options.liveness / 3)
        made = _exchanges[key] = moe.Exchange(
            engine, rank=group.rank_in_group, ranks=group.world_size, experts=config.num_experts,
            top_k=config.experts_per_token, hidden=config.hidden_dim, maximum_tokens=maximum_tokens, dispatch=element,
            combine=element, micro_batches=1, spins=spins, memory_budget=options.memory_budget, deadline=options.deadline)
        made.connect(_gather(made.address, group))
        logger.info("Experts of %d ranks, %d here, %d tokens at most in a step", group.world_size,
                    config.num_local_experts, maximum_tokens)
    return made


def _gather(mine: bytes, group: Any) -> List[bytes]:
    """What every rank has, in their order."""
    box = torch.zeros(4096 + 4, dtype=torch.uint8)
    box[:4] = torch.frombuffer(bytearray(len(mine).to_bytes(4, "little")), dtype=torch.uint8)
    box[4:4 + len(mine)] = torch.frombuffer(bytearray(mine), dtype=torch.uint8)
    boxes = [torch.empty_like(box) for _ in range(group.world_size)]
    torch.distributed.all_gather(boxes, box, group=group.cpu_group)
    return [bytes(other[4:4 + int.from_bytes(bytes(other[:4].tolist()), "little")].tolist()) for other in boxes]


class PrepareAndFinalize(mk.FusedMoEPrepareAndFinalizeModular):
    """Dispatch before the experts, combine after them. Experts see rows of one expert each with a weight of 1: weights are
    applied where a token's results are added."""

    def __init__(self, exchange: Any, layer: Any, ranks: int) -> None:
        super().__init__()
        self._exchange, self._layer, self._ranks = exchange, layer, ranks
        self._experts: Any = None
        self._received: Any = None

    def post_init_setup(self, fused_experts: Any) -> None:
        self._experts = fused_experts

    @property
    def activation_format(self) -> mk.FusedMoEActivationFormat:
        return mk.FusedMoEActivationFormat.Standard

    def topk_indices_dtype(self) -> Optional[torch.dtype]:
        return torch.int32

    def max_num_tokens_per_rank(self) -> Optional[int]:
        return None

    def num_dispatchers(self) -> int:
        return self._ranks

    def output_is_reduced(self) -> bool:
        return True

    def prepare(
        self, a1: torch.Tensor, topk_weights: torch.Tensor, topk_ids: torch.Tensor, num_experts: int,
        expert_map: Optional[torch.Tensor], apply_router_weight_on_input: bool, quant_config: Any,
        defer_input_quant: bool = False,
    ) -> mk.PrepareResultType:
        if apply_router_weight_on_input:
            a1 = a1 * topk_weights.to(a1.dtype)
            topk_weights = torch.ones_like(topk_weights)
        self._exchange.dispatch_send(a1.contiguous(), topk_ids.contiguous(), topk_weights.contiguous())
        tokens, ids, ones = self._receive(a1)
        return tokens, None, None, ids, ones

    def _receive(self, like: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The rows of a pass, and which of this rank's experts each of them is for. CPU kernels know only local numbers."""
        received = self._received = self._exchange.dispatch_receive()
        tokens = _rows(received.tokens, like)
        counts = torch.tensor([count for _, count in received.experts])
        ids = torch.repeat_interleave(torch.arange(len(received.experts), dtype=torch.int32), counts).view(-1, 1)
        return tokens, ids, torch.ones(ids.shape, dtype=torch.float32)

    def finalize(
        self, output: torch.Tensor, fused_expert_output: torch.Tensor, topk_weights: torch.Tensor, topk_ids: torch.Tensor,
        apply_router_weight_on_input: bool, weight_and_reduce_impl: mk.TopKWeightAndReduce,
    ) -> None:
        _rows(self._received.outputs, output).copy_(fused_expert_output.view(-1, output.shape[-1]))
        self._exchange.combine_send()
        while not self._received.is_last:
            self._further_pass(output)
        result = self._exchange.combine_receive(output)
        if result.missing_ranks:
            why = "; ".join(f"rank {rank}: {self._exchange.failure(rank)}" for rank in self._exchange.missing)
            raise RuntimeError(f"{result.dropped_entries} results are missing, start all ranks anew: {why}")

    def _further_pass(self, like: torch.Tensor) -> None:
        """More rows than the memory holds at once: the experts once more, without vLLM's kernel around them."""
        tokens, ids, ones = self._receive(like)
        if len(tokens):
            layer, nothing = self._layer, like.new_empty(0)
            self._experts.apply(
                output=_rows(self._received.outputs, like), hidden_states=tokens, w1=layer.w13_weight, w2=layer.w2_weight,
                topk_weights=ones, topk_ids=ids, activation=layer.activation, global_num_experts=layer.global_num_experts,
                expert_map=layer.expert_map, a1q_scale=None, a2_scale=self._experts.a2_scale, workspace13=nothing,
                workspace2=nothing, expert_tokens_meta=None, apply_router_weight_on_input=False)
        self._exchange.combine_send()


def _rows(memory: Any, like: torch.Tensor) -> torch.Tensor:
    """Memory of the exchange as rows like those of a tensor."""
    width = like.shape[-1]
    return torch.frombuffer(memory, dtype=like.dtype).view(-1, width) if memory.nbytes else like.new_empty((0, width))


class TransferEngineMoEMethod(UnquantizedFusedMoEMethod):
    """A layer of experts whose tokens this library exchanges, where vLLM would exchange any."""

    def _init_moe_kernel(self, layer: Any) -> None:
        parallel = self.moe.moe_parallel_config
        if not parallel.use_all2all_kernels:
            return super()._init_moe_kernel(layer)
        self._check(layer, parallel)
        config = get_current_vllm_config()
        exchange = open_exchange(
            self.moe, config.scheduler_config.max_num_batched_tokens, Options.of(config.additional_config))
        self.moe_quant_config = self.get_fused_moe_quant_config(layer)
        self.moe_kernel = mk.FusedMoEKernel(
            PrepareAndFinalize(exchange, layer, parallel.ep_size),
            self.experts_cls(moe_config=self.moe, quant_config=self.moe_quant_config))

    def _check(self, layer: Any, parallel: Any) -> None:
        """Raises ValueError for what this cannot do, rather than compute something else."""
        if parallel.ep_size != parallel.dp_size:
            raise ValueError("transfer_engine.vllm.moe: data parallel ranks only, no tensor parallelism beside them")
        if self.moe.in_dtype not in _ELEMENTS:
            raise ValueError(f"transfer_engine.vllm.moe: tokens of {self.moe.in_dtype}; {list(_ELEMENTS)} can be exchanged")
        local = layer.expert_map[layer.expert_map >= 0]
        first = int((layer.expert_map >= 0).nonzero()[0])
        base, more = divmod(self.moe.num_experts, parallel.ep_size)
        if (len(local) != base + (parallel.ep_rank < more) or first != parallel.ep_rank * base + min(parallel.ep_rank, more)
                or not torch.equal(local, torch.arange(len(local), dtype=local.dtype))):
            raise ValueError("transfer_engine.vllm.moe: experts have to be placed linearly (expert_placement_strategy)")
