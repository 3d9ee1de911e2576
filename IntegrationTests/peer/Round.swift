internal import TransferEngine

/// What one round moves; both sides derive it from the round's number.
///
/// The first half of the region goes in writes of odd lengths, the second half as pages in random order, and some
/// immediates go without data. All of them carry the immediate of the round.
struct Round {
    let number: Int
    let byteCount: Int
    let immediate: Immediate
    /// Where the writes go, without gaps.
    private(set) var writes: [Range<Int>] = []
    /// The pages, counted from the start of the region.
    private(set) var pages: [UInt32]

    static let pageBytes = 4096
    static let signals = 3
    /// Rides with the very last write of a session, so that whoever looks at the wire knows it.
    static let lastImmediate = Immediate.max

    init(_ number: Int, byteCount: Int, session: Int) {
        self.number = number
        self.byteCount = byteCount
        immediate = Immediate(truncatingIfNeeded: session << 20 | number)
        var random = SplitMix(state: UInt64(number))
        let firstPage = byteCount / 2 / Self.pageBytes
        let sizes = [1, 7, 64, 255, 4095, 4096, 4097, 65536, 262_145]
        var offset = 0
        while offset < firstPage * Self.pageBytes {
            let size = min(
                sizes[Int.random(in: sizes.indices, using: &random)], firstPage * Self.pageBytes - offset)
            writes.append(offset..<offset + size)
            offset += size
        }
        pages = (firstPage..<byteCount / Self.pageBytes).map(UInt32.init).shuffled(using: &random)
    }

    /// How often the receiver must count the immediate.
    var count: Int { writes.count + pages.count + Self.signals }

    /// Writes what the round moves into memory.
    func fill(_ memory: UnsafeMutableRawBufferPointer) {
        var random = SplitMix(state: ~UInt64(number))
        for offset in stride(from: 0, to: byteCount, by: 8) {
            memory.storeBytes(of: random.next(), toByteOffset: offset, as: UInt64.self)
        }
    }

    /// Whether memory holds what the round moves.
    func matches(_ memory: UnsafeMutableRawBufferPointer) -> Bool {
        var random = SplitMix(state: ~UInt64(number))
        return stride(from: 0, to: byteCount, by: 8).allSatisfy {
            memory.load(fromByteOffset: $0, as: UInt64.self) == random.next()
        }
    }
}

/// Numbers that are the same in every process.
private struct SplitMix: RandomNumberGenerator {
    var state: UInt64

    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var mixed = state
        mixed = (mixed ^ (mixed >> 30)) &* 0xBF58_476D_1CE4_E5B9
        mixed = (mixed ^ (mixed >> 27)) &* 0x94D0_49BB_1331_11EB
        return mixed ^ (mixed >> 31)
    }
}
