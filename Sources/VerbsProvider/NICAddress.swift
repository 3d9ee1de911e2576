internal import TransferCore

/// Where a domain is reached: 40 bytes, little-endian, in descriptors and in handshakes.
///
/// The epoch is random for each domain, so that a restarted engine that was given the same queue pair number is not
/// taken for the one before it.
struct NICAddress: Hashable {
    var isEthernet = true
    /// As in `ibv_mtu`: 1 is 256 bytes, 5 is 4096.
    var mtu: UInt8 = 1
    var lid: UInt16 = 0
    /// The queue pair for handshakes, and its key.
    var datagramQP: UInt32 = 0
    var datagramKey: UInt32 = 0
    var epoch: UInt64 = 0
    /// The GID's 16 bytes.
    var gid: (UInt64, UInt64) = (0, 0)

    static let byteCount = 40
    private static let version: UInt8 = 1

    static func == (left: NICAddress, right: NICAddress) -> Bool {
        left.isSamePlace(as: right) && left.epoch == right.epoch && left.datagramKey == right.datagramKey
    }

    func hash(into hasher: inout Hasher) {
        hasher.combine(epoch)
        hasher.combine(datagramQP)
    }

    /// Whether it is the same queue pair of the same NIC, perhaps of another process.
    func isSamePlace(as other: NICAddress) -> Bool {
        isEthernet == other.isEthernet && lid == other.lid && datagramQP == other.datagramQP
            && gid.0 == other.gid.0 && gid.1 == other.gid.1
    }

    /// As people write it: the GID, or on InfiniBand the LID.
    var text: String {
        guard isEthernet else { return "lid \(lid)" }
        let bytes = [gid.0, gid.1].flatMap { half in
            (0..<8).map { UInt8(truncatingIfNeeded: half >> UInt64(8 * $0)) }
        }
        return VerbsGID(index: 0, bytes: bytes, kind: .roceV2).text
    }

    init() {}

    /// Reads an address; nil when it is none.
    init?(_ bytes: RawSpan) {
        guard bytes.byteCount == Self.byteCount, bytes.integer(at: 0, as: UInt8.self) == Self.version else {
            return nil
        }
        isEthernet = bytes.integer(at: 1, as: UInt8.self) == 1
        mtu = bytes.integer(at: 2, as: UInt8.self)
        lid = bytes.integer(at: 4, as: UInt16.self)
        datagramQP = bytes.integer(at: 8, as: UInt32.self)
        datagramKey = bytes.integer(at: 12, as: UInt32.self)
        epoch = bytes.integer(at: 16, as: UInt64.self)
        gid = (bytes.integer(at: 24, as: UInt64.self), bytes.integer(at: 32, as: UInt64.self))
        guard (1...5).contains(mtu), datagramQP < 1 << 24, bytes.integer(at: 1, as: UInt8.self) < 2 else {
            return nil
        }
    }

    func write(to bytes: inout MutableRawSpan, at offset: Int) {
        bytes.store(Self.version, at: offset)
        bytes.store(isEthernet ? 1 : 0 as UInt8, at: offset + 1)
        bytes.store(mtu, at: offset + 2)
        bytes.store(0 as UInt8, at: offset + 3)
        bytes.store(lid, at: offset + 4)
        bytes.store(0 as UInt16, at: offset + 6)
        bytes.store(datagramQP, at: offset + 8)
        bytes.store(datagramKey, at: offset + 12)
        bytes.store(epoch, at: offset + 16)
        bytes.store(gid.0, at: offset + 24)
        bytes.store(gid.1, at: offset + 32)
    }

    var encoded: [UInt8] {
        var bytes = [UInt8](repeating: 0, count: Self.byteCount)
        var span = bytes.mutableSpan
        var raw = unsafe span.mutableBytes
        write(to: &raw, at: 0)
        return bytes
    }
}

/// What two domains tell each other to connect: one datagram of 128 bytes, little-endian (docs/verbs.md).
struct Hello {
    enum Kind: UInt8 {
        /// Here are my queue pairs; `echo` says which of yours they are bound to.
        case hello = 1
        /// The queue pairs of `attempt` are gone.
        case goodbye = 2
        /// You wrote to somebody who is not here.
        case refusal = 3
    }

    var kind = Kind.hello
    /// Whether the sender has not heard yet that both sides are ready.
    var wantsAnswer = false
    var sourceEngine: UInt64 = 0
    var targetEngine: UInt64 = 0
    var targetEpoch: UInt64 = 0
    /// Numbers the sender's queue pairs; later ones have higher numbers.
    var attempt: UInt32 = 0
    /// The receiver's attempt that the sender's queue pairs can receive from; 0 when there is none.
    var echo: UInt32 = 0
    var writeQP: UInt32 = 0
    var writePSN: UInt32 = 0
    var messageQP: UInt32 = 0
    var messagePSN: UInt32 = 0
    /// Where the sender takes back credits: a 64-bit word.
    var creditAddress: UInt64 = 0
    var creditKey: UInt32 = 0
    /// Immediates and messages that the receiver may have unpolled at the sender.
    var immediateWindow: UInt32 = 0
    var messageWindow: UInt32 = 0
    /// The sender's address, which has its epoch.
    var source = NICAddress()

    static let byteCount = 128
    private static let magic: UInt32 = 0x4245_5654
    static let version: UInt8 = 1

    init() {}

    /// Reads a datagram; nil when it is not one of ours, or of another version, or cannot be.
    init?(_ bytes: RawSpan) {
        guard bytes.byteCount == Self.byteCount, bytes.integer(at: 0, as: UInt32.self) == Self.magic,
            bytes.integer(at: 4, as: UInt8.self) == Self.version,
            let kind = Kind(rawValue: bytes.integer(at: 5, as: UInt8.self)),
            let source = NICAddress(bytes.extracting(88..<128))
        else { return nil }
        self.kind = kind
        self.source = source
        wantsAnswer = bytes.integer(at: 6, as: UInt8.self) & 1 != 0
        sourceEngine = bytes.integer(at: 8, as: UInt64.self)
        targetEngine = bytes.integer(at: 16, as: UInt64.self)
        targetEpoch = bytes.integer(at: 24, as: UInt64.self)
        attempt = bytes.integer(at: 32, as: UInt32.self)
        echo = bytes.integer(at: 36, as: UInt32.self)
        writeQP = bytes.integer(at: 40, as: UInt32.self)
        writePSN = bytes.integer(at: 44, as: UInt32.self)
        messageQP = bytes.integer(at: 48, as: UInt32.self)
        messagePSN = bytes.integer(at: 52, as: UInt32.self)
        creditAddress = bytes.integer(at: 56, as: UInt64.self)
        creditKey = bytes.integer(at: 64, as: UInt32.self)
        immediateWindow = bytes.integer(at: 68, as: UInt32.self)
        messageWindow = bytes.integer(at: 72, as: UInt32.self)
        guard (writeQP | writePSN | messageQP | messagePSN) >> 24 == 0 else { return nil }
        if kind == .hello {
            guard attempt > 0, writeQP > 0, messageQP > 0, immediateWindow > 0, messageWindow > 0,
                creditAddress & 7 == 0
            else { return nil }
        }
    }

    func write(to bytes: inout MutableRawSpan) {
        precondition(bytes.byteCount == Self.byteCount)
        for word in 0..<Self.byteCount / 8 { bytes.store(0 as UInt64, at: word * 8) }
        bytes.store(Self.magic, at: 0)
        bytes.store(Self.version, at: 4)
        bytes.store(kind.rawValue, at: 5)
        bytes.store(wantsAnswer ? 1 : 0 as UInt8, at: 6)
        bytes.store(sourceEngine, at: 8)
        bytes.store(targetEngine, at: 16)
        bytes.store(targetEpoch, at: 24)
        bytes.store(attempt, at: 32)
        bytes.store(echo, at: 36)
        bytes.store(writeQP, at: 40)
        bytes.store(writePSN, at: 44)
        bytes.store(messageQP, at: 48)
        bytes.store(messagePSN, at: 52)
        bytes.store(creditAddress, at: 56)
        bytes.store(creditKey, at: 64)
        bytes.store(immediateWindow, at: 68)
        bytes.store(messageWindow, at: 72)
        source.write(to: &bytes, at: 88)
    }
}

extension RawSpan {
    /// A little-endian integer; traps outside the span.
    func integer<T: FixedWidthInteger & BitwiseCopyable>(at offset: Int, as type: T.Type) -> T {
        precondition(offset >= 0 && offset <= byteCount - MemoryLayout<T>.size)
        // SAFETY: in bounds by the check above, and every bit pattern is an integer.
        return T(littleEndian: unsafe unsafeLoadUnaligned(fromByteOffset: offset, as: T.self))
    }
}

extension MutableRawSpan {
    /// Stores a little-endian integer; traps outside the span.
    mutating func store<T: FixedWidthInteger & BitwiseCopyable>(_ value: T, at offset: Int) {
        storeBytes(of: value.littleEndian, toByteOffset: offset, as: T.self)
    }
}
