import TransferCore

/// The first 64 bytes of every frame: who, which, and what has been received so far. Little-endian.
///
/// A frame is a header, perhaps a hello (the sender's address, until the receiver has answered once), then
/// records (`FrameRecord`), or in an acknowledgement the records that failed (`FrameFailure`).
struct FrameHeader: BitwiseCopyable {
    static let byteCount = 64
    /// A length and an address, then the address and the key of the sender's rings, for who has asked.
    static let helloBytes = 8 + Limits.addressBytes + 16
    static let magic: UInt32 = 0x3246_4554  // "TEF2"

    /// What a frame is besides its records.
    enum Flag {
        /// A hello follows the header.
        static let hello: UInt16 = 1
        /// No records: acknowledgement and failures. Such frames have no sequence number and no credit.
        static let ack: UInt16 = 2
        /// The receiver is asked to acknowledge at once.
        static let ping: UInt16 = 4
        /// A frame of the receiver's is missing: what it has on its way is lost.
        static let gap: UInt16 = 8
        /// The receiver is asked to acknowledge writes at once.
        static let ask: UInt16 = 16
        /// It left from the sender's reverse endpoint.
        static let reverse: UInt16 = 32
        /// The receiver is asked for its rings.
        static let wantsRing: UInt16 = 64
        /// They are in the hello.
        static let ring: UInt16 = 128
    }

    var magic = FrameHeader.magic
    var flags: UInt16
    /// Where the records begin.
    var start: UInt16
    /// The whole frame.
    var length: UInt32
    /// The sender's place in the receiver's peer table, `UInt32.max` until known.
    var to: UInt32
    /// The receiver's place in the sender's peer table.
    var from: UInt32
    /// Counts how often the sender started over with this receiver.
    var epoch: UInt32
    /// Number of the frame in its epoch.
    var sequence: UInt32
    /// The receiver's epoch that `ack` is about.
    var ackEpoch: UInt32
    /// Frames of that epoch that have been carried out.
    var ack: UInt32
    /// Acknowledgements with failures sent in `ackEpoch`: `ack` counts once as many have come. Completions of
    /// receives may overtake each other.
    var failures: UInt32
    var sender: UInt64
    /// The engine that is meant: an address may have been inherited by another process.
    var receiver: UInt64
    /// Counted writes that the sender has posted in its epoch before this frame.
    var writes: UInt32
    /// Counted writes of `ackEpoch` that have come.
    var writesAck: UInt32
}

/// The last 64 bits of a write whose delivery the receiver acknowledges in the header of its next frame.
///
/// They are part of the write itself, and go into the ring that the receiver keeps for the sender, at the write's number: once
/// they are there, so is the data, and the receiver has not been told by libfabric. An immediate of libfabric's would tell it,
/// but a connection that ends in the middle of such a write makes rxm (1.17 and later) follow a null pointer in the receiver.
///
/// The lower half is a `WireImmediate`. The highest bit arrives last.
struct CountedWrite {
    var rawValue: UInt64

    private static let silent: UInt64 = 1 << 61
    private static let asking: UInt64 = 1 << 62
    private static let mark: UInt64 = 1 << 63
    private static let epochs: UInt32 = 1 << 29 - 1
    /// No more may be on their way to one peer: so many places has a ring.
    static let sequences: UInt32 = 1 << 10
    static let ringBytes = Int(sequences) * MemoryLayout<UInt64>.size

    /// Without eighths nothing but the write itself is counted.
    ///
    /// - Parameters:
    ///   - epoch: The sender's.
    ///   - asks: Whether the receiver is asked to acknowledge at once.
    init(_ immediate: UInt32, eighths: UInt32, epoch: UInt32, asks: Bool) {
        let wire = eighths > 0 ? UInt64(WireImmediate(immediate, eighths: eighths).rawValue) : Self.silent
        rawValue = wire | Self.mark | (asks ? Self.asking : 0) | UInt64(epoch & Self.epochs) << 32
    }

    init(rawValue: UInt64) { self.rawValue = rawValue }

    /// Whether all of it is there.
    var isThere: Bool { rawValue & Self.mark != 0 }
    var hasImmediate: Bool { rawValue & Self.silent == 0 }
    var asks: Bool { rawValue & Self.asking != 0 }
    func isOf(epoch: UInt32) -> Bool {
        (UInt32(truncatingIfNeeded: rawValue >> 32) ^ epoch) & Self.epochs == 0
    }
}

/// Records of one frame that were not carried out.
struct FrameFailure: BitwiseCopyable {
    static let byteCount = 16
    /// The frame.
    var sequence: UInt32
    /// The first record in it, and how many.
    var first: UInt32
    var count: UInt32
    /// A `WorkStatus`.
    var status: UInt32
}
