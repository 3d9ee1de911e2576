"""The connector that vLLM loads: `kv_connector_module_path="transfer_engine.vllm.connector"`."""

from __future__ import annotations

import dataclasses
import os
import socket
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Set, Tuple

from vllm.distributed import get_tensor_model_parallel_rank, get_tensor_model_parallel_world_size
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1, KVConnectorHandshakeMetadata, KVConnectorMetadata, KVConnectorRole, KVConnectorTransferResults)
from vllm.v1.request import RequestStatus

from .layout import Cache
from .messages import Handshake, Progress, Step
from .scheduler import DecodeScheduler, PrefillScheduler
from .worker import DecodeWorker, PrefillWorker

if TYPE_CHECKING:
    import torch
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig

__all__ = ["TransferEngineConnector", "Options"]


@dataclasses.dataclass
class Options:
    """What `kv_connector_extra_config` may have. Times are in seconds."""

    name: str = ""
    """Appears in errors; must differ between instances. By default host and process."""
    nics: Tuple[str, ...] = ("shm",)
    """As for `transfer_engine.Engine`: ["shm", "tcp:eth0"] reaches peers on this host and on others."""
    timeout: float = 120.0
    """From a decoder's question to the last byte, the prefiller's queue included."""
    patience: float = 10.0
    """How long a prefiller waits for the decoder of a request before it computes it for nobody."""
    heartbeat: float = 1.0
    """After the silence of three a peer is lost."""
    cancel_timeout: float = 5.0
    quarantine: float = 5.0
    digests: bool = False
    """Whether a decoder compares what arrives with digests of what was sent. Both sides read everything once more."""
    revision: str = ""
    """Of the weights: instances with different ones refuse each other."""
    check_prompts: bool = True
    """Whether a prefiller compares its prompt with the decoder's."""

    @classmethod
    def of(cls, extra: Dict[str, Any]) -> "Options":
        """Raises ValueError for an option that there is not."""
        unknown = extra.keys() - {field.name for field in dataclasses.fields(cls)}
        if unknown:
            raise ValueError(f"kv_connector_extra_config has {sorted(unknown)}, which are no options of this connector")
        options = cls(**extra)
        options.nics = tuple(options.nics)
        options.name = options.name or f"{socket.gethostname()}-{os.getpid()}"
        return options


class TransferEngineConnector(KVConnectorBase_V1):
    """Prefill in one instance, decode in another: the cache is pushed layer by layer into the decoder's blocks."""

    def __init__(self, vllm_config: "VllmConfig", role: KVConnectorRole, kv_cache_config: "KVCacheConfig") -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        parallel = vllm_config.parallel_config
        if parallel.pipeline_parallel_size > 1 or parallel.decode_context_parallel_size > 1:
            raise ValueError("TransferEngineConnector: no pipeline and no context parallelism")
        if len(kv_cache_config.kv_cache_groups) != 1:
            raise ValueError("TransferEngineConnector: only models with one group of cached layers")
        config = self._kv_transfer_config
        self._options = Options.of(config.kv_connector_extra_config or {})
        block = vllm_config.cache_config.block_size
        self._decodes: Optional[DecodeScheduler] = None
        self._prefills: Optional[PrefillScheduler] = None
        self._decoder: Optional[DecodeWorker] = None
        self._prefiller: Optional[PrefillWorker] = None
        if role is KVConnectorRole.SCHEDULER:
            if config.is_kv_consumer:
                self._decodes = DecodeScheduler(block)
            if config.is_kv_producer:
                self._prefills = PrefillScheduler(block, self._options.patience, self._options.check_prompts)

    # Scheduler

    def set_xfer_handshake_metadata(self, metadata: Dict[int, KVConnectorHandshakeMetadata]) -> None:
        if self._prefills:
            self._prefills.addresses = [one.address for _, one in sorted(metadata.items()) if isinstance(one, Handshake)]

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> Tuple[Optional[int], bool]:
        if self._prefills and not self._prefills.may_begin(request):
            return None, False
        return self._decodes.matched_tokens(request, num_computed_tokens) if self._decodes else (0, False)

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        if self._decodes:
            self._decodes.allocated(request, blocks.get_block_ids()[0], num_external_tokens)
        if self._prefills:
            self._prefills.allocated(request)

    def build_connector_meta(self, scheduler_output: Any) -> KVConnectorMetadata:
        step = Step(is_idle=scheduler_output.total_num_scheduled_tokens == 0)
        if self._decodes:
            self._decodes.build(step)
        if self._prefills:
            self._prefills.build(step, scheduler_output)
        return step

    def update_connector_output(self, connector_output: Any) -> None:
        progress = connector_output.kv_connector_worker_meta
        if self._prefills and isinstance(progress, Progress):
            self._prefills.heard(progress)

    def request_finished(self, request: Any, block_ids: List[int]) -> Tuple[bool, Optional[Dict[str, Any]]]:
        if self._decodes:
            self._decodes.finished(request)
        if self._prefills:
            return self._prefills.finished(request, request.status == RequestStatus.FINISHED_ABORTED)
        return False, None

    # Worker

    def register_kv_caches(self, kv_caches: "Dict[str, torch.Tensor]") -> None:
        ranks, rank = get_tensor_model_parallel_world_size(), get_tensor_model_parallel_rank()
        if ranks > 1:
            self._options.name += f" rank {rank}"
        cache = Cache(self._vllm_config, kv_caches, self._kv_cache_config.num_blocks, self._options.revision, ranks, rank)
        if self._kv_transfer_config.is_kv_consumer:
            self._decoder = DecodeWorker(cache, self._options)
        if self._kv_transfer_config.is_kv_producer:
            self._prefiller = PrefillWorker(cache, self._options)

    def get_handshake_metadata(self) -> Optional[KVConnectorHandshakeMetadata]:
        return Handshake(self._prefiller.address if self._prefiller else b"")

    def handle_preemptions(self, kv_connector_metadata: KVConnectorMetadata) -> None:
        """The first call of each step, before anything is computed."""
        assert isinstance(kv_connector_metadata, Step)
        if self._decoder:
            self._decoder.begin(kv_connector_metadata)
        if self._prefiller:
            self._prefiller.begin(kv_connector_metadata)

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """Nothing: loads have begun with the step."""

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Nothing: a request is scheduled only when all of its cache is there."""

    def save_kv_layer(self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any) -> None:
        if self._prefiller:
            self._prefiller.computed(layer_name)

    def wait_for_save(self) -> None:
        if self._prefiller:
            self._prefiller.end_of_pass()

    def get_transfer_results(self, finished_req_ids: Set[str]) -> KVConnectorTransferResults:
        step = self._get_connector_metadata()
        assert isinstance(step, Step)
        results = KVConnectorTransferResults()
        if self._decoder:
            self._decoder.end(step, results)
        if self._prefiller:
            self._prefiller.end(step, finished_req_ids, results)
        return results

    def build_connector_worker_meta(self) -> Optional[Progress]:
        return self._prefiller.progress() if self._prefiller else None

    def shutdown(self) -> None:
        for half in (self._decoder, self._prefiller):
            if half:
                half.close()
        self._decoder = self._prefiller = None
