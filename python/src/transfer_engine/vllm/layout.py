"""From vLLM's cache tensors to regions, planes and a layout."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, Dict, List, Tuple

import torch
import vllm
from vllm.model_executor.models.utils import extract_layer_index

from .. import kv
from ..engine import Engine
from ..memory import Region

if TYPE_CHECKING:
    from vllm.config import VllmConfig

__all__ = ["Cache"]


class Cache:
    """The cache tensors of a worker: where the blocks of each layer lie, and what must be equal on both sides.

    What is transferred of a block is all that belongs to a head, so that what is inside of that - the order of tokens, keys
    packed for the attention kernel - need not be known, only be equal; the fingerprint sees to that.
    """

    def __init__(self, config: "VllmConfig", tensors: Dict[str, torch.Tensor], block_count: int, revision: str, ranks: int,
                 rank: int) -> None:
        if not tensors:
            raise ValueError("the model has no cache")
        self.layers: List[str] = sorted(tensors, key=extract_layer_index)
        first = tensors[self.layers[0]]
        kinds = {(tuple(tensor.shape), tensor.dtype) for tensor in tensors.values()}
        if len(kinds) > 1:
            raise ValueError(f"the layers are cached in different ways, {kinds}: only models whose layers are alike")
        if first.device.type != "cpu":
            raise ValueError(f"the cache is on {first.device}: only host memory")
        self.block_tokens: int = config.cache_config.block_size
        self.block_count = block_count
        self.block_bytes = _block_bytes(first, block_count)
        self.tensor_ranks, self.tensor_rank = ranks, rank
        self.heads, here = _heads(config, first, ranks)
        head_bytes, rest = divmod(self.block_bytes, here * self.block_tokens)
        if rest:
            raise ValueError(f"a block of {self.block_bytes} bytes for {here} heads and {self.block_tokens} tokens")
        self._tensors = [tensors[name] for name in self.layers]
        name = _fingerprint(config, first, self.heads, revision)
        group = kv.Group(range(len(self.layers)), self.heads, head_bytes, self.block_tokens)
        self.layout = kv.Layout(name, str(first.dtype), [group], first_tensor_rank=rank, all_tensor_ranks=ranks)

    def rank(self, engine: Engine, *, remote_write: bool) -> kv.Rank:
        """Registers the memory of the tensors, each storage once."""
        regions: List[Region] = []
        known: Dict[int, Tuple[int, int]] = {}
        planes = []
        for tensor in self._tensors:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in known:
                known[storage.data_ptr()] = (len(regions), storage.data_ptr())
                whole = torch.empty(0, dtype=torch.uint8).set_(storage)
                regions.append(engine.register(whole, remote_write=remote_write))
            index, base = known[storage.data_ptr()]
            planes.append(kv.Plane(tensor.data_ptr() - base, self.block_bytes, self.block_count, index))
        return kv.Rank(engine, regions, planes)


def _block_bytes(tensor: torch.Tensor, block_count: int) -> int:
    if tensor.shape[0] != block_count or not tensor.is_contiguous():
        raise ValueError(
            f"the cache of a layer has shape {tuple(tensor.shape)} and strides {tensor.stride()} for {block_count} blocks: "
            "only layouts in which a block is one contiguous range")
    return tensor.stride(0) * tensor.element_size()


def _heads(config: "VllmConfig", tensor: torch.Tensor, ranks: int) -> Tuple[int, int]:
    """KV heads of all tensor ranks and of this one. Where heads are not the outermost part of a block, it is one for all."""
    model = config.model_config
    if model.use_mla:
        return 1, 1
    total = model.get_total_num_kv_heads()
    here = max(1, total // ranks)
    if tensor.dim() > 2 and tensor.shape[1] == here:
        return total, here
    if ranks > 1:
        raise ValueError(f"a cache of shape {tuple(tensor.shape)}, with {here} KV heads that are not the outermost part of a "
                         "block, and tensor parallelism")
    return 1, 1


def _fingerprint(config: "VllmConfig", tensor: torch.Tensor, heads: int, revision: str) -> str:
    """What must be equal on both sides, besides the weights, of which `revision` speaks."""
    model = config.model_config.hf_config.to_dict()
    for field in ("_name_or_path", "transformers_version", "architectures_version"):
        model.pop(field, None)
    content: List[Any] = [vllm.__version__, model, str(config.cache_config.cache_dtype), str(tensor.dtype),
                          heads, list(tensor.shape[1 if heads == 1 else 2:]), config.cache_config.block_size, revision]
    digest = hashlib.blake2b(json.dumps(content, sort_keys=True, default=str).encode(), digest_size=8).hexdigest()
    kind = model.get("model_type", "model")
    return f"{kind}@{digest}" + (f" {revision}" if revision else "")
