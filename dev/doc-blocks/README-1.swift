import TransferEngine

func pushes(_ sender: TransferEngine, _ receiver: TransferEngine, from source: MemoryRegion) async throws {
BLOCK
}
