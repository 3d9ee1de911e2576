internal import TransferEngine

/// What a rank tells the others once: how to reach its engine, where to write, and which immediates to use.
struct ExpertAddress {
    static let magic: UInt32 = 0x3150_4554  // "TEP1"
    var fingerprint: UInt64
    var rank: Int
    var firstImmediate: UInt32
    var engine: EngineAddress
    var region: RemoteRegion

    func encoded() -> [UInt8] {
        var writer = ByteWriter()
        writer.write(Self.magic)
        writer.write(fingerprint)
        writer.write(UInt32(rank))
        writer.write(firstImmediate)
        for part in [engine.encoded(), region.encoded()] {
            writer.write(UInt32(part.count))
            for byte in part { writer.write(byte) }
        }
        return writer.bytes
    }

    init(
        fingerprint: UInt64, rank: Int, firstImmediate: UInt32, engine: EngineAddress, region: RemoteRegion
    ) {
        self.fingerprint = fingerprint
        self.rank = rank
        self.firstImmediate = firstImmediate
        self.engine = engine
        self.region = region
    }

    init(decoding bytes: [UInt8]) throws(TransferError) {
        var reader = ByteReader(bytes.span)
        guard try reader.read(UInt32.self) == Self.magic else {
            throw TransferError(.malformedDescriptor, "these bytes are not the address of an ExpertExchange")
        }
        fingerprint = try reader.read()
        rank = Int(try reader.read(UInt32.self))
        firstImmediate = try reader.read()
        guard firstImmediate < 1 << 30 else {
            throw TransferError(.malformedDescriptor, "an address with an immediate of more than 30 bits")
        }
        engine = try EngineAddress(decoding: Self.part(&reader))
        region = try RemoteRegion(decoding: Self.part(&reader))
    }

    static func part(_ reader: inout ByteReader) throws(TransferError) -> [UInt8] {
        let count = Int(try reader.read(UInt32.self))
        guard count <= reader.remaining else {
            throw TransferError(.malformedDescriptor, "the address of an ExpertExchange ends too early")
        }
        var bytes: [UInt8] = []
        bytes.reserveCapacity(count)
        for _ in 0..<count { bytes.append(try reader.read(UInt8.self)) }
        return bytes
    }
}

/// What a rank of a `NodeExchange` tells the others once: its addresses on both levels.
struct NodeAddress {
    static let magic: UInt32 = 0x314E_4554  // "TEN1"
    var fingerprint: UInt64
    var rank: Int
    var between: [UInt8]
    var inside: [UInt8]

    func encoded() -> [UInt8] {
        var writer = ByteWriter()
        writer.write(Self.magic)
        writer.write(fingerprint)
        writer.write(UInt32(rank))
        for part in [between, inside] {
            writer.write(UInt32(part.count))
            for byte in part { writer.write(byte) }
        }
        return writer.bytes
    }

    init(fingerprint: UInt64, rank: Int, between: [UInt8], inside: [UInt8]) {
        self.fingerprint = fingerprint
        self.rank = rank
        self.between = between
        self.inside = inside
    }

    init(decoding bytes: [UInt8]) throws(TransferError) {
        var reader = ByteReader(bytes.span)
        guard try reader.read(UInt32.self) == Self.magic else {
            throw TransferError(.malformedDescriptor, "these bytes are not the address of a NodeExchange")
        }
        fingerprint = try reader.read()
        rank = Int(try reader.read(UInt32.self))
        between = try ExpertAddress.part(&reader)
        inside = try ExpertAddress.part(&reader)
    }
}

extension ExpertConfiguration {
    /// Equal for all ranks that can work together.
    var fingerprint: UInt64 {
        var values: [Int] = [
            1, ranks, experts, topK, hidden, maximumTokens, Int(dispatchElement.rawValue), scaleBlock ?? 0,
            Int(combineElement.rawValue), Int(reduction.rawValue), replicas, padding, microBatches,
            privateRows ?? 0, memoryBudget ?? 0,
        ]
        switch level {
        case .alone: break
        case .between(let cargoBytes): values += [1, cargoBytes]
        case .inside(let nodes): values += [2, nodes]
        }
        return values.reduce(0xCBF2_9CE4_8422_2325) {
            ($0 ^ UInt64(truncatingIfNeeded: $1)) &* 0x100_0000_01B3
        }
    }
}
