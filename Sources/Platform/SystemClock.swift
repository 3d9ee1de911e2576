internal import CPlatform
public import TransferCore

/// The machine's monotonic clock.
public struct SystemClock: TransferClock {
    public init() {}
    public var nowNanoseconds: UInt64 { te_monotonic_nanoseconds() }
}
