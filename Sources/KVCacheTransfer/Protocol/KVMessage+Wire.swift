internal import TransferEngine

extension KVMessage {
    /// The versions of the protocol that this library understands. Another one is refused by name.
    ///
    /// A message has the lowest version that knows it, so that a library of before understands whoever does not use what is new.
    /// 1 is the first; 2 has digests: hellos that ask for them, and `digests`; 3 has layouts of a part of an
    /// instance's ranks.
    public static let versions: ClosedRange<UInt8> = 1...3
    private static let magic: [UInt8] = [0x54, 0x45, 0x4B]  // "TEK"

    private enum Kind: UInt8 {
        case hello = 1
        case welcome, refuse, prefill, cancel, receipt, heartbeat, goodbye, digests
    }

    private var version: UInt8 {
        switch self {
        case .hello(let hello): hello.version
        case .welcome(let welcome): welcome.layout.part != nil ? 3 : 1
        case .digests: 2
        default: 1
        }
    }

    /// The binary form: little-endian, `TEK`, the version, the kind, the fields in the order of their declaration.
    public func encoded() -> [UInt8] {
        var writer = ByteWriter()
        for byte in Self.magic { writer.write(byte) }
        writer.write(version)
        var tail: [UInt8] = []
        switch self {
        case .hello(let hello): hello.write(to: &writer, kind: Kind.hello.rawValue)
        case .welcome(let welcome):
            writer.write(Kind.welcome.rawValue)
            writer.write(welcome.session)
            writer.write(text: welcome.name, limit: KVLimits.textBytes)
            welcome.layout.write(to: &writer)
        case .refuse(let session, let reason):
            writer.write(Kind.refuse.rawValue)
            writer.write(session)
            reason.write(to: &writer)
        case .prefill(let prefill):
            writer.write(Kind.prefill.rawValue)
            prefill.write(to: &writer)
            tail = prefill.input
        case .cancel(let session, let request):
            writer.write(Kind.cancel.rawValue)
            writer.write(session)
            writer.write(request)
        case .receipt(let receipt):
            writer.write(Kind.receipt.rawValue)
            writer.write(receipt.session)
            writer.write(receipt.request)
            writer.write(receipt.isQuiet)
            receipt.reason.write(to: &writer)
        case .heartbeat(let heartbeat):
            writer.write(Kind.heartbeat.rawValue)
            writer.write(heartbeat.session)
            writer.write(heartbeat.number)
            writer.write(heartbeat.isDraining)
        case .goodbye(let session):
            writer.write(Kind.goodbye.rawValue)
            writer.write(session)
        case .digests(let digests):
            writer.write(Kind.digests.rawValue)
            writer.write(digests.session)
            writer.write(digests.request)
            writer.write(digests.layer != nil)
            writer.write(UInt16(digests.layer ?? 0))
            writer.write(list: digests.ranks) { digest, writer in
                writer.write(digest.low)
                writer.write(digest.high)
            }
        }
        return tail.isEmpty ? writer.bytes : writer.bytes + tail
    }

    /// Reads the binary form.
    /// - Throws: `KVError.Code.malformedMessage` for anything that `encoded` does not make, `unsupportedVersion`.
    /// - Complexity: O(bytes); what it allocates is bounded by the bytes that there are.
    public init(decoding bytes: [UInt8]) throws(KVError) { try self.init(decoding: bytes, Self.versions) }

    /// As a library does that understands these versions.
    init(decoding bytes: [UInt8], _ versions: ClosedRange<UInt8>) throws(KVError) {
        do throws(TransferError) {
            var reader = ByteReader(bytes.span)
            for byte in Self.magic where try reader.read(UInt8.self) != byte {
                throw .notOurs
            }
            let version = try reader.read(UInt8.self)
            guard versions.contains(version) else {
                throw TransferError(
                    .unsupportedVersion,
                    "version: \(versions.upperBound) here, \(version) there; update the older side")
            }
            self = try KVMessage(from: &reader, bytes, version: version)
            // There is one form of each message.
            guard self.version == version else {
                throw TransferError(
                    .malformedDescriptor, "version \(version) of a message of \(self.version)")
            }
        } catch {
            throw KVError(
                error.code == .unsupportedVersion ? .unsupportedVersion : .malformedMessage, error.message)
        }
    }

    /// Who introduces himself, in a message of a version that this library does not know: what comes first in a hello is the
    /// same in all versions, so that a stranger can be told.
    static func stranger(_ bytes: [UInt8], _ versions: ClosedRange<UInt8> = Self.versions) -> (
        session: UInt64, address: EngineAddress
    )? {
        try? { () throws(TransferError) in
            var reader = ByteReader(bytes.span)
            for byte in magic where try reader.read(UInt8.self) != byte { throw .notOurs }
            let version = try reader.read(UInt8.self)
            guard version > versions.upperBound, try reader.read(UInt8.self) == Kind.hello.rawValue else {
                throw .notOurs
            }
            let session = try reader.read(UInt64.self)
            _ = try reader.readString(limit: KVLimits.textBytes)
            return (session, try EngineAddress(decoding: reader.readLong(limit: 4096)))
        }()
    }

    private init(from reader: inout ByteReader, _ bytes: [UInt8], version: UInt8) throws(TransferError) {
        switch Kind(rawValue: try reader.read()) {
        case .hello: self = .hello(try Hello(from: &reader, version))
        case .welcome:
            self = .welcome(
                Welcome(
                    session: try reader.read(), name: try reader.readString(limit: KVLimits.textBytes),
                    layout: try KVLayout(from: &reader, isPart: version >= 3)))
        case .refuse: self = .refuse(session: try reader.read(), reason: try KVError(from: &reader))
        case .prefill:
            var prefill = try Prefill(from: &reader)
            prefill.input = Array(bytes[(bytes.count - reader.remaining)...])
            self = .prefill(prefill)
            return
        case .cancel: self = .cancel(session: try reader.read(), request: try reader.read())
        case .receipt:
            self = .receipt(
                Receipt(
                    session: try reader.read(), request: try reader.read(), isQuiet: try reader.readFlag(),
                    reason: try KVError(from: &reader)))
        case .heartbeat:
            self = .heartbeat(
                Heartbeat(
                    session: try reader.read(), number: try reader.read(), isDraining: try reader.readFlag()))
        case .goodbye: self = .goodbye(session: try reader.read())
        case .digests:
            let (session, request) = (try reader.read(UInt64.self), try reader.read(UInt64.self))
            let (hasLayer, layer) = (try reader.readFlag(), Int(try reader.read(UInt16.self)))
            self = .digests(
                Digests(
                    session: session, request: request, layer: hasLayer ? layer : nil,
                    ranks: try reader.readList(limit: KVLimits.ranks) { (reader) throws(TransferError) in
                        Digest(low: try reader.read(), high: try reader.read())
                    }))
        case nil: throw TransferError(.malformedDescriptor, "a message of an unknown kind")
        }
        guard reader.remaining == 0 else {
            throw TransferError(.malformedDescriptor, "the message has bytes after its end")
        }
    }
}

extension KVMessage.Hello {
    fileprivate var version: UInt8 { layout.part != nil ? 3 : wantsDigests ? 2 : 1 }

    fileprivate func write(to writer: inout ByteWriter, kind: UInt8) {
        writer.write(kind)
        writer.write(session)
        writer.write(text: name, limit: KVLimits.textBytes)
        writer.write(long: address.encoded())
        layout.write(to: &writer)
        writer.write(list: ranks) { rank, writer in
            writer.write(list: rank.regions) { $1.write(long: $0.encoded()) }
            writer.write(list: rank.placement.layers) { planes, writer in
                writer.write(list: planes) { plane, writer in
                    writer.write(UInt16(plane.region))
                    for value in [plane.offset, plane.stride, plane.pageCount] { writer.write(UInt64(value)) }
                }
            }
        }
        if version > 1 { writer.write(wantsDigests) }
    }

    fileprivate init(from reader: inout ByteReader, _ version: UInt8) throws(TransferError) {
        session = try reader.read()
        name = try reader.readString(limit: KVLimits.textBytes)
        address = try EngineAddress(decoding: reader.readLong(limit: 4096))
        layout = try KVLayout(from: &reader, isPart: version >= 3)
        ranks = try reader.readList(limit: KVLimits.ranks) { (reader) throws(TransferError) in
            let regions = try reader.readList(limit: KVLimits.regions) { (reader) throws(TransferError) in
                try RemoteRegion(decoding: reader.readLong(limit: 4096))
            }
            let layers = try reader.readList(limit: KVLimits.layers) { (reader) throws(TransferError) in
                try reader.readList(limit: 2) { (reader) throws(TransferError) in
                    KVPlacement.Plane(
                        region: Int(try reader.read(UInt16.self)), offset: try reader.readCount(),
                        stride: try reader.readCount(), pageCount: try reader.readCount())
                }
            }
            return KVMessage.RankTarget(placement: KVPlacement(layers: layers), regions: regions)
        }
        if version > 1 { wantsDigests = try reader.readFlag() }
    }
}

extension KVMessage.Prefill {
    fileprivate func write(to writer: inout ByteWriter) {
        for value in [session, request, oldest, UInt64(span.cached), UInt64(span.end)] { writer.write(value) }
        writer.write(isLayerwise)
        writer.write(list: immediates) { $1.write($0) }
        writer.write(list: tables) { $0.write(to: &$1) }
        writer.write(tail != nil)
        if let tail {
            writer.write(UInt16(tail.rank))
            writer.write(UInt16(tail.region))
            writer.write(UInt64(tail.offset))
            writer.write(UInt64(tail.byteCount))
        }
        writer.write(timeoutMilliseconds)
    }

    fileprivate init(from reader: inout ByteReader) throws(TransferError) {
        session = try reader.read()
        request = try reader.read()
        oldest = try reader.read()
        span = TokenSpan(cached: try reader.readCount(), end: try reader.readCount())
        guard span.cached <= span.end, span.end <= KVLimits.tokens else {
            throw TransferError(.malformedDescriptor, "tokens \(span.cached) to \(span.end)")
        }
        isLayerwise = try reader.readFlag()
        immediates = try reader.readList(limit: KVLimits.ranks) { (reader) throws(TransferError) in
            try reader.read(UInt32.self)
        }
        tables = try reader.readList(limit: KVLimits.groups) { (reader) throws(TransferError) in
            try PageTable(from: &reader)
        }
        if try reader.readFlag() {
            tail = KVMessage.Tail(
                rank: Int(try reader.read(UInt16.self)), region: Int(try reader.read(UInt16.self)),
                offset: try reader.readCount(), byteCount: try reader.readCount())
        }
        timeoutMilliseconds = try reader.read()
        input = []
    }
}

extension PageTable {
    /// Pages that follow each other are one run.
    fileprivate func write(to writer: inout ByteWriter) {
        writer.write(UInt32(first))
        var runs: [(page: UInt32, count: UInt32)] = []
        for page in pages {
            if let last = runs.last, last.page &+ last.count == page {
                runs[runs.count - 1].count += 1
            } else {
                runs.append((page, 1))
            }
        }
        writer.write(UInt32(runs.count))
        for run in runs {
            writer.write(run.page)
            writer.write(run.count)
        }
    }

    fileprivate init(from reader: inout ByteReader) throws(TransferError) {
        first = Int(try reader.read(UInt32.self))
        pages = []
        for _ in 0..<(try reader.read(UInt32.self)) {
            let (page, count) = (try reader.read(UInt32.self), try reader.read(UInt32.self))
            guard Int(count) <= KVLimits.pages - pages.count,
                !page.addingReportingOverflow(count).overflow
            else {
                throw TransferError(.malformedDescriptor, "more than \(KVLimits.pages) pages")
            }
            pages.append(contentsOf: page..<page + count)
        }
    }
}

extension TransferError {
    fileprivate static let notOurs = TransferError(.malformedDescriptor, "no message of this protocol")
}

extension KVError {
    fileprivate func write(to writer: inout ByteWriter) {
        writer.write(code.rawValue)
        writer.write(text: message, limit: KVLimits.textBytes)
    }

    fileprivate init(from reader: inout ByteReader) throws(TransferError) {
        // A newer peer may know more kinds.
        code = Code(rawValue: try reader.read()) ?? .aborted
        message = try reader.readString(limit: KVLimits.textBytes)
    }
}
