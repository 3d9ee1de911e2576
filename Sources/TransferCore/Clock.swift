/// Time, handed to everything that needs it, so that the same code runs on threads and in a simulator.
///
/// Protocol logic never reads a clock by itself. Implementations must be callable from any thread.
public protocol TransferClock: Sendable {
    /// Nanoseconds since some fixed moment; never goes back.
    var nowNanoseconds: UInt64 { get }
}

/// A seeded generator (SplitMix64; Steele, Lea and Flood 2014): the only source of randomness in protocol logic.
public struct SeededGenerator: RandomNumberGenerator, Sendable {
    private var state: UInt64

    /// The same seed gives the same numbers on every machine.
    public init(seed: UInt64) { state = seed }

    public mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var z = state
        z = (z ^ z >> 30) &* 0xBF58_476D_1CE4_E5B9
        z = (z ^ z >> 27) &* 0x94D0_49BB_1331_11EB
        return z ^ z >> 31
    }
}
