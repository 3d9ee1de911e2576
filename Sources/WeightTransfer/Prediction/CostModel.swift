/// What things cost, for predictions. Rates are bytes for each second, times are seconds.
///
/// The defaults reproduce the published breakdown of one rank (arXiv 2510.27656, table 5) for Kimi-K2 from 256 to 128
/// GPUs; docs/weights.md
/// says which of them are given, which follow, and which are fitted.
public struct CostModel: Hashable, Sendable {
    /// A NIC: 400 Gbit/s of which 0.92 arrive.
    public var nicRate = 400e9 / 8 * 0.92
    /// GPUs of a host among each other.
    public var nodeRate = 450e9
    /// From host memory, where shards lie when they are offloaded, to the GPU. Fitted: 184 ms for the shards of a rank.
    public var loadRate = 64e9
    /// Starting a copy.
    public var loadSeconds = 10e-6
    /// Starting a collective.
    public var gatherSeconds = 20e-6
    /// Putting projections together, by bytes of the result. Fitted: 18 ms.
    public var fuseRate = 1.3e12
    /// BF16 to FP8, by bytes of BF16. Fitted: 88 ms.
    public var quantiseRate = 385e9
    /// Starting a kernel.
    public var kernelSeconds = 4e-6
    /// Submitting a write, with its scales. Given: 23 us.
    public var submitSeconds = 23e-6
    /// Ranks differ: each one's host needs 1 to 1 + skew times as long for loading and for starting things. Fitted: 42 ms of
    /// writes that nothing hides. Waiting hardly depends on it: it comes from who gathers what.
    public var skew = 0.82
    /// What decides which ranks are slow.
    public var seed: UInt64 = 1

    public init() {}
}
