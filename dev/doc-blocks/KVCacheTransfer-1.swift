import KVCacheTransfer
import TransferEngine

func prefills(
    layout: KVLayout, rank: (String) -> KVRank, jobs: AsyncStream<KVJob>, offer: AsyncStream<KVJob>.Continuation
) async throws {
    var finished: UInt64 = 0
BLOCK
}
