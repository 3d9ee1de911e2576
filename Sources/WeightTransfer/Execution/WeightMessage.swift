internal import TransferEngine

/// What members of an update tell each other. All messages may come twice and late: `term`, `version` and `attempt` say what they
/// are about, and whoever gets one that is no longer about anything ignores it.
struct WeightMessage: Hashable, Sendable {
    enum Kind: UInt8, Sendable {
        /// Member to controller: who I am, what I serve.
        case join
        /// Controller to trainer: the address of another trainer.
        case peer
        /// Controller to receiver: get the other slot ready. Answered by `opened`.
        case open
        case opened
        /// Controller to trainer: where a receiver's slot is.
        case target
        /// Controller to trainer: do your part of the plan. Answered by `trained`, and again whenever it is repeated.
        case start
        case trained
        /// Trainer to trainer: write a piece into my staging memory.
        case pull
        /// Controller to receiver: is everything there and right? Answered by `prepared` once it is.
        case verify
        case prepared
        /// Controller to receiver: serve this version. Answered by `committed`.
        case commit
        case committed
        /// Controller to receiver: do you still have this version? Answered by `committed`.
        case recall
        /// Controller to receiver: serve that version again. Answered by `committed`.
        case rollback
        /// Controller to everybody: this attempt is over.
        case abort
        /// Controller to trainers: this version is served everywhere.
        case finished
    }

    /// How a trainer or a receiver is doing.
    enum Status: UInt8, Sendable { case busy, done, failed }

    var kind: Kind
    var isTrainer = false
    var status = Status.busy
    /// The sender's rank, or the rank that the message is about.
    var rank: UInt32 = 0
    /// Controllers that follow each other have rising terms.
    var term: UInt32 = 0
    var version: UInt64 = 0
    var attempt: UInt32 = 0
    /// Two more numbers: immediates, offsets, versions.
    var first: UInt64 = 0
    var second: UInt64 = 0
    /// Ranks: lost trainers, or receivers.
    var ranks: [UInt32] = []
    var others: [UInt32] = []
    /// Tasks that arrived damaged, `TaskName.wordCount` words each.
    var tasks: [UInt32] = []
    /// An address, a descriptor or a text.
    var bytes: [UInt8] = []

    private static let mark: UInt16 = 0x5754

    init(_ kind: Kind) { self.kind = kind }

    func encoded() -> [UInt8] {
        var writer = ByteWriter()
        writer.write(Self.mark)
        writer.write(UInt8(2))
        for value in [kind.rawValue, isTrainer ? 1 : 0, status.rawValue] { writer.write(value) }
        for value in [rank, term, attempt] { writer.write(value) }
        for value in [version, first, second] { writer.write(value) }
        for list in [ranks, others, tasks] {
            writer.write(UInt16(list.count))
            for value in list { writer.write(value) }
        }
        writer.write(UInt16(bytes.count))
        for byte in bytes { writer.write(byte) }
        return writer.bytes
    }

    /// Nil for anything that is not a whole message of this version.
    init?(decoding bytes: [UInt8]) {
        var reader = ByteReader(bytes.span)
        do throws(TransferError) {
            guard try reader.read(UInt16.self) == Self.mark, try reader.read(UInt8.self) == 2,
                let kind = Kind(rawValue: try reader.read())
            else { return nil }
            self.kind = kind
            isTrainer = try reader.read(UInt8.self) == 1
            guard let status = Status(rawValue: try reader.read()) else { return nil }
            self.status = status
            rank = try reader.read()
            term = try reader.read()
            attempt = try reader.read()
            version = try reader.read()
            first = try reader.read()
            second = try reader.read()
            ranks = try Self.list(&reader)
            others = try Self.list(&reader)
            tasks = try Self.list(&reader)
            let count = Int(try reader.read(UInt16.self))
            guard count == reader.remaining else { return nil }
            for _ in 0..<count { self.bytes.append(try reader.read()) }
        } catch { return nil }
    }

    private static func list(_ reader: inout ByteReader) throws(TransferError) -> [UInt32] {
        let count = Int(try reader.read(UInt16.self))
        var result: [UInt32] = []
        for _ in 0..<count { result.append(try reader.read()) }
        return result
    }
}
