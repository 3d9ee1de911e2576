/// What travels through a software transport's queue: a message, or a write that the receiving engine carries out.
///
/// Small writes over sockets and writes into memory that the sender may not touch are framed this way. A record is 48
/// bytes, little-endian, followed by `length` bytes and padding to 8 (docs/wire-format.md).
public struct FrameRecord: BitwiseCopyable {
    /// What the bytes are.
    public enum Kind {
        /// Fills the end of a queue.
        public static let padding: UInt32 = 0
        /// A two-sided message.
        public static let message: UInt32 = 1
        /// A write that the receiving engine carries out.
        public static let write: UInt32 = 2
    }

    /// One of `Kind`.
    public var kind: UInt32
    /// Bytes that follow.
    public var length: UInt32
    /// The region that is written into.
    public var index: UInt32
    /// Its generation.
    public var generation: UInt32
    /// The number that only holders of its descriptor know.
    public var secret: UInt64
    /// First byte within the region.
    public var offset: UInt64
    /// The immediate of a write.
    public var immediate: UInt32
    /// How much to count, in eighths.
    public var eighths: UInt32
    /// The engine that sends.
    public var sender: UInt64

    /// Bytes of a record.
    public static let byteCount = 48

    /// Bytes that a record with `length` bytes of data takes in a queue.
    @inlinable public static func stride(length: Int) -> Int { byteCount + (length + 7) & ~7 }

    @inlinable public init(messageOf length: Int, from sender: UInt64) {
        kind = Kind.message
        self.length = UInt32(length)
        index = 0
        generation = 0
        secret = 0
        offset = 0
        immediate = 0
        eighths = 0
        self.sender = sender
    }

    @inlinable public init(_ request: borrowing WorkRequest, from sender: UInt64) {
        kind = Kind.write
        length = UInt32(request.length)
        unsafe index = request.target.pointee.index
        unsafe generation = request.target.pointee.generation
        unsafe secret = request.target.pointee.secret
        offset = request.targetOffset
        immediate = request.immediate
        eighths = request.eighths
        self.sender = sender
    }

    @inlinable public init(padding length: Int) {
        self.init(messageOf: length, from: 0)
        kind = Kind.padding
    }

    /// Carries out a write on the receiving side: checks it against the page, copies, counts.
    public func apply(_ bytes: UnsafeRawBufferPointer, to page: TargetPage) -> WorkStatus {
        switch unsafe page.admit(
            index: index, generation: generation, secret: secret, offset: offset, length: UInt64(length))
        {
        case .failure(let status): return status
        case .success(let target):
            if let source = bytes.baseAddress, unsafe !bytes.isEmpty {
                unsafe target.copyMemory(from: source, byteCount: bytes.count)
            }
            if eighths > 0 { page.add(eighths: eighths, to: immediate) }
            return .success
        }
    }
}
