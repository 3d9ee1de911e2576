import TransferCore

/// The first 64 bytes of every frame: who, which, and what has been received so far. Little-endian.
///
/// A frame is a header, perhaps a hello (the sender's address, until the receiver has answered once), then
/// records (`FrameRecord`), or in an acknowledgement the records that failed (`FrameFailure`).
struct FrameHeader: BitwiseCopyable {
    static let byteCount = 64
    /// A length and an address.
    static let helloBytes = 8 + Limits.addressBytes
    static let magic: UInt32 = 0x3146_4554  // "TEF1"

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

/// The 64 bits that come with a write whose delivery the receiver acknowledges in the header of its next frame.
///
/// The lower half is a `WireImmediate`. The upper half says whose write it is and which, so that a loss shows: writes to one
/// peer arrive in the order they were posted, or something is missing between them.
struct CountedWrite {
    var rawValue: UInt64

    private static let silent: UInt64 = 1 << 61
    private static let asking: UInt64 = 1 << 62
    private static let mark: UInt64 = 1 << 63
    /// No more may be on their way to one peer, so that a number is not mistaken for another.
    static let sequences: UInt32 = 1 << 10

    /// Without eighths nothing but the write itself is counted.
    ///
    /// - Parameters:
    ///   - place: The sender's place in the receiver's peer table.
    ///   - sequence: The write's number in the sender's epoch.
    ///   - asks: Whether the receiver is asked to acknowledge at once.
    init(_ immediate: UInt32, eighths: UInt32, place: UInt32, epoch: UInt32, sequence: UInt32, asks: Bool) {
        let wire = eighths > 0 ? UInt64(WireImmediate(immediate, eighths: eighths).rawValue) : Self.silent
        rawValue =
            wire | Self.mark | (asks ? Self.asking : 0) | UInt64(place & 0xFFF) << 32
            | UInt64(sequence % Self.sequences) << 44 | UInt64(epoch & 0x7F) << 54
    }

    init(rawValue: UInt64) { self.rawValue = rawValue }

    var isCounted: Bool { rawValue & Self.mark != 0 }
    var hasImmediate: Bool { rawValue & Self.silent == 0 }
    var asks: Bool { rawValue & Self.asking != 0 }
    var place: UInt32 { UInt32(truncatingIfNeeded: rawValue >> 32) & 0xFFF }
    var sequence: UInt32 { UInt32(truncatingIfNeeded: rawValue >> 44) % Self.sequences }
    /// How many epochs the write is ahead of `epoch`, of which it carries seven bits.
    func ahead(of epoch: UInt32) -> Int8 {
        Int8(truncatingIfNeeded: (UInt32(truncatingIfNeeded: rawValue >> 54) &- epoch) << 1) >> 1
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
