import TransferEngine
import WeightTransfer

func updates(
    _ trainer: WeightTrainer, _ controller: WeightController, _ receiver: WeightReceiver, _ endpoint: WeightEndpoint,
    now: () -> UInt64, serve: (UInt64, UnsafeRawBufferPointer) -> Void
) throws {
BLOCK
}
