extension Trace {
    private static let magic: [UInt8] = [0x54, 0x45, 0x54]  // "TET"
    /// The version of the binary form that this library writes.
    public static let version: UInt8 = 1
    /// Events in one file at most.
    public static let maximumEvents = 1 << 20

    /// The binary form, for files (docs/wire-format.md). Only the last `maximumEvents` events are kept.
    /// - Complexity: O(number of events).
    public func encoded() -> [UInt8] {
        var writer = ByteWriter()
        for byte in Self.magic { writer.write(byte) }
        writer.write(Self.version)
        writer.write(engine.rawValue)
        writer.write(text: name, limit: Limits.nameBytes)
        writer.write(UInt8(min(nics.count, Limits.nicsPerDevice)))
        for nic in nics.prefix(Limits.nicsPerDevice) {
            writer.write(text: nic, limit: Int(UInt8.max))
        }
        for value in [
            clock.firstTicks, clock.firstNanoseconds, clock.lastTicks, clock.lastNanoseconds,
            clock.wallNanoseconds,
        ] { writer.write(value) }
        let kept = events.suffix(Self.maximumEvents)
        writer.write(lost &+ UInt64(events.count - kept.count))
        writer.write(UInt32(kept.count))
        for event in kept {
            for value in [event.time, event.word, event.first, event.second] { writer.write(value) }
        }
        writer.write(CRC32C.checksum(writer.bytes))
        return writer.bytes
    }

    /// Reads the binary form.
    /// - Throws: `malformedDescriptor` for damaged, truncated or overlong bytes, `unsupportedVersion` for another version.
    /// - Complexity: O(number of bytes).
    public init(decoding bytes: some Collection<UInt8>) throws(TransferError) {
        let body = try checked(
            [UInt8](bytes), magic: Self.magic, versions: Self.version...Self.version, kind: "trace")
        var reader = ByteReader(body.span)
        for _ in 0..<4 { _ = try reader.read(UInt8.self) }
        engine = EngineID(rawValue: try reader.read())
        name = try reader.readString(limit: Limits.nameBytes)
        let nicCount = Int(try reader.read(UInt8.self))
        guard nicCount <= Limits.nicsPerDevice else {
            throw TransferError(.malformedDescriptor, "a trace with \(nicCount) NICs")
        }
        nics = []
        for _ in 0..<nicCount { nics.append(try reader.readString(limit: Int(UInt8.max))) }
        clock = Clock(
            firstTicks: try reader.read(), firstNanoseconds: try reader.read(), lastTicks: try reader.read(),
            lastNanoseconds: try reader.read(), wallNanoseconds: try reader.read())
        lost = try reader.read()
        let count = Int(try reader.read(UInt32.self))
        guard reader.remaining == count * TraceEvent.byteCount else {
            throw TransferError(
                .malformedDescriptor, "a trace of \(count) events with \(reader.remaining) bytes of them")
        }
        events = []
        events.reserveCapacity(count)
        for number in 0..<count {
            let event = TraceEvent(
                time: try reader.read(), word: try reader.read(), first: try reader.read(),
                second: try reader.read())
            guard let event else {
                throw TransferError(.malformedDescriptor, "event \(number) of the trace is of no known kind")
            }
            events.append(event)
        }
    }
}
