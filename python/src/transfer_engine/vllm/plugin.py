"""What vLLM loads at its start, in each of its processes: names, and nothing that costs."""


def register() -> None:
    """The entry point `transfer_engine` of `vllm.general_plugins`. May be called any number of times."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    if "transfer_engine" not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(
            "transfer_engine", "transfer_engine.vllm.weights", "TransferEngineWeights")
