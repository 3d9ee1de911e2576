import KVCacheTransfer
import TransferEngine

func decodes(
    layout: KVLayout, rank: (String) -> KVRank, prefiller: KVPrefiller,
    happened: AsyncStream<KVRequestEvent>.Continuation
) throws {
BLOCK
}
