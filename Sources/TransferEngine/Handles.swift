public import TransferCore

/// Registered local memory. A plain value; `TransferEngine.deregister` ends the registration.
public struct MemoryRegion: Hashable, Sendable {
    /// The address of the first byte; not 0.
    let address: UInt
    /// Bytes.
    public let byteCount: Int
    let index: UInt32
    let generation: UInt32

    /// First byte. Who may touch the memory is the caller's affair.
    public var baseAddress: UnsafeMutableRawPointer {
        unsafe UnsafeMutableRawPointer(bitPattern: address).unsafelyUnwrapped
    }

    /// The whole region as bytes. Peers may be writing into it: read what a counter has announced.
    public var bytes: UnsafeMutableRawBufferPointer {
        unsafe UnsafeMutableRawBufferPointer(start: baseAddress, count: byteCount)
    }
}

/// A peer's region, attached: ready to be written into. A plain value; `TransferEngine.detach` ends it.
public struct RemoteMemory: Hashable, Sendable {
    /// Bytes.
    public let byteCount: Int
    /// The engine that owns the memory.
    public let engine: EngineID
    let index: UInt32
    let generation: UInt32
}

/// An engine that was connected to: the target of messages, immediates and barriers.
public struct Peer: Hashable, Sendable {
    /// The name that the engine gave itself.
    public let name: String
    package let landing: RemoteMemory

    /// The engine's identity.
    public var engine: EngineID { landing.engine }
}

/// Peers resolved once, for barriers, immediates and scatters to all of them.
public struct PeerGroup: Sendable {
    /// Where a scatter writes, in the order of its slices.
    public let members: [RemoteMemory]

    /// Makes a group of at most `Limits.targets` regions.
    public init(_ members: [RemoteMemory]) throws(TransferError) {
        guard members.count <= Limits.targets else {
            throw TransferError(
                .limitReached, "a group of \(members.count) members; at most \(Limits.targets)")
        }
        self.members = members
    }

    /// Makes a group of engines.
    public init(_ peers: [Peer]) throws(TransferError) { try self.init(peers.map(\.landing)) }
}

/// A submitted operation: look at it, wait for it or await it through the engine. A plain value.
public struct Transfer: Hashable, Sendable {
    /// Its place in the engine's table, below `Limits.transfers`; `.max` when it was complete at once.
    package let index: UInt32
    /// Which use of that place it is.
    package let generation: UInt32

    /// Any two numbers are a transfer: one that has never been has ended.
    package init(index: UInt32, generation: UInt32) {
        self.index = index
        self.generation = generation
    }

    /// A transfer that was complete when it was submitted.
    static let complete = Transfer(index: .max, generation: 0)
}

/// Pages of a region: page `i` begins at `offset + indices[i] * stride`.
@safe public struct Pages {
    /// Page numbers; they may repeat.
    public var indices: UnsafeBufferPointer<UInt32>
    /// Bytes from one page to the next.
    public var stride: Int
    /// Bytes before page 0.
    public var offset: Int

    /// The indices are read while the transfer is being submitted, not later.
    public init(_ indices: UnsafeBufferPointer<UInt32>, stride: Int, offset: Int = 0) {
        unsafe self.indices = indices
        self.stride = stride
        self.offset = offset
    }

    /// How many pages.
    var count: Int { unsafe indices.count }

    /// The largest page number; 0 without pages.
    var largest: UInt32 {
        var largest: UInt32 = 0
        for position in 0..<count { largest = max(largest, unsafe indices[position]) }
        return largest
    }
}

/// One target of a scatter.
public struct ScatterSlice: Hashable, Sendable {
    /// Where the bytes begin in the source region.
    public var sourceOffset: Int
    /// How many.
    public var byteCount: Int
    /// Where they go in the target region.
    public var targetOffset: Int

    public init(sourceOffset: Int, byteCount: Int, targetOffset: Int) {
        self.sourceOffset = sourceOffset
        self.byteCount = byteCount
        self.targetOffset = targetOffset
    }
}

/// Called once at the end of a transfer or a counter wait, on the thread that makes progress. It may submit further
/// operations; it must not wait.
public typealias TransferCallback = @Sendable (Result<Void, TransferError>) -> Void
