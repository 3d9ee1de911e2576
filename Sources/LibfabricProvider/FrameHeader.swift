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
        /// Writes wait for this frame's acknowledgement: it is sent at once.
        static let confirm: UInt16 = 16
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
}

/// The 64 bits that come with a write whose delivery the receiver's acknowledgement of a later frame confirms.
///
/// The lower half is a `WireImmediate`. The upper half says whose write it is, so that the receiver counts the writes of each
/// sender: a frame whose sender has posted more than that comes after a loss.
struct CountedWrite {
    var rawValue: UInt64

    private static let mark: UInt64 = 1 << 46
    private static let silent: UInt64 = 1 << 47

    /// `place` is the sender's in the receiver's peer table; without eighths nothing but the write itself is counted.
    init(_ immediate: UInt32, eighths: UInt32, place: UInt32, epoch: UInt32) {
        let wire = eighths > 0 ? UInt64(WireImmediate(immediate, eighths: eighths).rawValue) : Self.silent
        rawValue = wire | Self.mark | UInt64(place & 0x3FFF) << 32 | UInt64(epoch & 0xFFFF) << 48
    }

    init(rawValue: UInt64) { self.rawValue = rawValue }

    var isCounted: Bool { rawValue & Self.mark != 0 }
    var hasImmediate: Bool { rawValue & Self.silent == 0 }
    var place: UInt32 { UInt32(truncatingIfNeeded: rawValue >> 32) & 0x3FFF }
    var epoch: UInt16 { UInt16(truncatingIfNeeded: rawValue >> 48) }
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
