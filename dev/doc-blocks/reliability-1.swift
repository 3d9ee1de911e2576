import TransferEngine

func digests(
    _ sender: TransferEngine, _ receiver: TransferEngine, _ source: MemoryRegion, _ region: MemoryRegion,
    _ from: Pages, _ to: Pages, _ peer: Peer, _ bytes: [UInt8]
) throws {
BLOCK
}
