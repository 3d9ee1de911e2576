import ExpertParallel
import TransferEngine

func exchanges(
    _ engine: TransferEngine, rank: Int, _ addresses: [[UInt8]], _ tokens: TokenBatch,
    _ sums: UnsafeMutableRawPointer, _ runExperts: (ReceivedTokens) -> Void
) throws {
BLOCK
    _ = result
}
