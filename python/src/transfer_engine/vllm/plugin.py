"""What vLLM loads at its start, in each of its processes: names, and nothing that costs."""


def register() -> None:
    """The entry point `transfer_engine` of `vllm.general_plugins`. May be called any number of times."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
    from vllm.model_executor.custom_op import op_registry_oot
    from vllm.platforms import current_platform

    if "transfer_engine" not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(
            "transfer_engine", "transfer_engine.vllm.weights", "TransferEngineWeights")
    # On GPUs vLLM has exchanges of its own, and ours has no kernels for them.
    if current_platform.is_cpu() and "UnquantizedFusedMoEMethod" not in op_registry_oot:
        from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod

        from .moe import TransferEngineMoEMethod

        UnquantizedFusedMoEMethod.register_oot(TransferEngineMoEMethod)
