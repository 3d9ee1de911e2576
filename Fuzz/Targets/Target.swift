import TransferCore

/// A decoder that reads bytes of somebody else's, and what must hold whatever they are.
///
/// A target neither throws nor returns anything: what is wrong is a trap, or a finding of the address sanitizer.
struct Target: Sendable {
    let name: String
    /// Small inputs that reach into the decoder, from which the fuzzer starts.
    let seeds: @Sendable () -> [[UInt8]]
    let run: @Sendable (borrowing [UInt8]) -> Void

    static var all: [Target] {
        var targets = [descriptors, traces, digests, messages, files, rings, control]
        #if Libfabric
            targets.append(frames)
        #endif
        #if Verbs
            targets.append(datagrams)
        #endif
        #if HTTP
            targets.append(requests)
        #endif
        return targets
    }

    /// Stops with words when something that must hold does not.
    static func require(_ holds: Bool, _ words: @autoclosure () -> String) {
        if !holds { fatalError(words()) }
    }
}

/// Input as a source of decisions: zeros after its end.
struct Choices {
    private let bytes: [UInt8]
    private(set) var offset = 0

    init(_ bytes: [UInt8]) { self.bytes = bytes }

    var isEmpty: Bool { offset >= bytes.count }

    mutating func byte() -> UInt8 {
        defer { offset += 1 }
        return offset < bytes.count ? bytes[offset] : 0
    }

    mutating func integer<T: FixedWidthInteger>(_ type: T.Type = T.self) -> T {
        var value: T = 0
        for index in 0..<T.bitWidth / 8 { value |= T(truncatingIfNeeded: byte()) << T(8 * index) }
        return value
    }

    /// At most `count` bytes.
    mutating func take(_ count: Int) -> [UInt8] {
        let taken = Array(bytes[min(offset, bytes.count)..<min(offset + count, bytes.count)])
        offset += count
        return taken
    }
}

extension [UInt8] {
    /// The bytes with the CRC-32C that the binary forms end with: a fuzzer does not find it by trying.
    var sealed: [UInt8] {
        var sum = ~UInt32(0)
        for byte in self {
            sum ^= UInt32(byte)
            for _ in 0..<8 { sum = sum & 1 == 0 ? sum >> 1 : sum >> 1 ^ 0x82F6_3B78 }
        }
        return self + (0..<4).map { UInt8(truncatingIfNeeded: ~sum >> UInt32(8 * $0)) }
    }

    /// Little-endian bytes of some integers.
    mutating func append<T: FixedWidthInteger>(integer: T) {
        for index in 0..<T.bitWidth / 8 { append(UInt8(truncatingIfNeeded: integer >> T(8 * index))) }
    }
}
