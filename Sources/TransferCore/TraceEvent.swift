/// Something that happened in an engine: one entry of its flight recorder, 32 bytes.
///
/// What `first` and `second` mean depends on `kind`; `description` says it in words.
public struct TraceEvent: Hashable, Sendable {
    /// What happened. The raw values are part of the file format.
    public enum Kind: UInt8, Sendable, CaseIterable {
        /// A transfer began. `first`: bytes of the write, of one page or of the message in the lower 47 bits, and above
        /// them one more than the number of the attachment, where there is one only. `second`: pages or targets in the upper
        /// half, the immediate in the lower.
        case started = 1
        /// A NIC took requests of a transfer. `first`: how many in the lower half, how many it was offered in the upper.
        /// `second`: requests of the transfer now in flight.
        case posted
        /// A NIC took fewer requests than it was offered, for now. As `posted`.
        case pushedBack
        /// A NIC has completed requests of a transfer. `first`: how many. `second`: those still in flight.
        case completed
        /// A transfer ended. `first`: requests completed. `second`: the provider's error number. The status `again` means that
        /// it was ended early, by its deadline or its owner: completions may still follow.
        case ended
        /// A deadline passed. `first`: requests completed. `second`: those in flight.
        case stalled
        /// A wait for a counter began. `first`: counts expected. `second`: counts there, in the upper half, and the
        /// immediate in the lower.
        case waitBegan
        /// A remote region was attached. `first`: the engine that owns it. `second`: the number of the attachment.
        case attached
        /// A remote region was detached. `second`: the number of the attachment.
        case detached
        /// A NIC reported that a peer is gone. `first`: the provider's error number.
        case peerLost
        /// A region was registered. `first`: bytes. `second`: the region's number.
        case registered
        /// A region was deregistered. `first`: bytes. `second`: the region's number.
        case deregistered
        /// A message came. `first`: bytes in the lower half, the sender's number of it in the upper. `second`: the engine
        /// that sent it.
        case messageIn
        /// A message was handed to a NIC. `first`: bytes in the lower half, its number in the upper.
        case messageOut
        /// Short writes that were complete when they were submitted. `first`: how many since the event before. `second`: their
        /// bytes.
        case wroteAtOnce
    }

    /// What a transfer does.
    public enum Operation: UInt8, Sendable, CaseIterable {
        case write, pagedWrite, scatter, message, counterWait, barrier
    }

    /// When, in the unit of the trace's clock; `Trace.nanoseconds(of:)` converts.
    public var time: UInt64
    /// The second of the four words: transfer, kind, NIC, operation or status.
    var word: UInt64
    /// See `kind`.
    public var first: UInt64
    /// See `kind`.
    public var second: UInt64

    /// Bytes of an event, in memory and in a file.
    public static let byteCount = 32
    /// The number of the transfer's place in events that belong to none.
    static let noPlace: UInt64 = 0xFFFF
    static let noNIC: UInt64 = 0xF
    /// The bits of the second word that name the transfer.
    package static let transferMask: UInt64 = 0xFFFF_FFFF_0000_FFFF

    /// An event from the four words that a recorder keeps; nil when they are none.
    package init?(time: UInt64, word: UInt64, first: UInt64, second: UInt64) {
        guard let kind = Kind(rawValue: UInt8(truncatingIfNeeded: word >> 16)) else { return nil }
        let detail = UInt8(truncatingIfNeeded: word >> 28) & 0xF
        let isSound =
            switch kind {
            case .started, .waitBegan: Operation(rawValue: detail) != nil
            default: WorkStatus(rawValue: detail) != nil
            }
        guard isSound else { return nil }
        self.time = time
        self.word = word
        self.first = first
        self.second = second
    }

    /// The second word of an event.
    /// - Parameters:
    ///   - context: The transfer: its place in the lower half, its generation in the upper.
    ///   - kind: What happened.
    ///   - nic: Which NIC, 0 to 7, or 15 for none.
    ///   - detail: The raw value of an operation or a status.
    @inlinable @inline(__always) package static func word(
        _ context: UInt64, _ kind: Kind, nic: Int, detail: UInt8
    ) -> UInt64 {
        context | UInt64(kind.rawValue) << 16 | UInt64(truncatingIfNeeded: nic & 0xF) << 24
            | UInt64(detail & 0xF) << 28
    }

    /// What happened.
    public var kind: Kind { Kind(rawValue: UInt8(truncatingIfNeeded: word >> 16)) ?? .started }
    /// Which NIC, by its place in `Trace.nics`; nil for none.
    public var nic: Int? {
        let number = word >> 24 & 0xF
        return number == Self.noNIC ? nil : Int(number)
    }
    /// What the transfer does, where it begins.
    public var operation: Operation? {
        kind == .started || kind == .waitBegan ? Operation(rawValue: UInt8(word >> 28 & 0xF)) : nil
    }
    /// How requests or a transfer ended.
    public var status: WorkStatus {
        operation == nil ? WorkStatus(rawValue: UInt8(word >> 28 & 0xF)) ?? .success : .success
    }
    /// Bits of `first` that are bytes, where a transfer begins.
    package static let lengthBits: UInt64 = 47
    /// Bytes of a write, a page or a message that begins.
    public var length: UInt64 { first & (1 << Self.lengthBits - 1) }
    /// The attachment that a transfer writes to, where there is one only.
    public var attachment: UInt64? {
        let number = first >> Self.lengthBits
        return kind == .started && number > 0 ? number - 1 : nil
    }
    /// The immediate of a write or of a wait that begins.
    public var immediate: UInt32? { operation == nil ? nil : UInt32(truncatingIfNeeded: second) }
    /// The number of a message among those of its sender; nil for what has none, as the engines' own messages.
    public var messageNumber: UInt32? {
        guard kind == .messageIn || kind == .messageOut, first >> 32 > 0 else { return nil }
        return UInt32(first >> 32)
    }

    /// The transfer, as a number that no other one of the same engine has for a long time; nil for none.
    public var transfer: UInt64? { word & 0xFFFF == Self.noPlace ? nil : word & Self.transferMask }
}

extension TraceEvent: CustomStringConvertible {
    private var lower: UInt64 { second & 0xFFFF_FFFF }
    private var upper: UInt64 { second >> 32 }
    private var number: String { messageNumber.map { " \($0)" } ?? "" }

    /// In words, without time and NIC.
    public var description: String {
        switch kind {
        case .started:
            let name = operation.map { "\($0)" } ?? "transfer"
            return "\(name) began: \(upper) x \(length) bytes, immediate \(lower)"
        case .posted: return "posted \(first & 0xFFFF_FFFF) requests, \(second) in flight"
        case .pushedBack:
            return "pushed back: took \(first & 0xFFFF_FFFF) of \(first >> 32) requests, \(second) in flight"
        case .completed:
            let how = status == .success ? "" : " (\(status))"
            return "completed \(first) requests\(how), \(second) in flight"
        case .ended:
            if status == .success { return "ended after \(first) requests" }
            if status == .again { return "ended early after \(first) requests" }
            return "failed (\(status), error \(second)) after \(first) requests"
        case .stalled: return "stalled: \(first) requests done, \(second) in flight"
        case .waitBegan: return "waits for immediate \(lower): \(upper) of \(first) counted"
        case .attached: return "attached a region of engine \(EngineID(rawValue: first)) as \(second)"
        case .detached: return "detached region \(second)"
        case .peerLost: return "a peer is gone (error \(first))"
        case .registered: return "registered region \(second) of \(first) bytes"
        case .deregistered: return "deregistered region \(second) of \(first) bytes"
        case .messageIn:
            let sender = EngineID(rawValue: second)
            return "message\(number) of \(first & 0xFFFF_FFFF) bytes from engine \(sender)"
        case .messageOut: return "message\(number) of \(first & 0xFFFF_FFFF) bytes handed over"
        case .wroteAtOnce: return "\(first) short writes of \(second) bytes, complete at once"
        }
    }
}

/// What an engine's flight recorder held at one moment.
///
/// ```swift
/// let trace = engine.trace()
/// for event in trace.events { print(trace.line(event)) }
/// let bytes = trace.encoded()                  // a file for `te trace`
/// ```
public struct Trace: Hashable, Sendable {
    /// Two moments by which times are converted to nanoseconds.
    public struct Clock: Hashable, Sendable {
        /// A moment in the unit of the events.
        public var firstTicks: UInt64
        /// The same moment in nanoseconds of the engine's clock.
        public var firstNanoseconds: UInt64
        /// A later moment in the unit of the events.
        public var lastTicks: UInt64
        /// The same moment in nanoseconds of the engine's clock.
        public var lastNanoseconds: UInt64
        /// The later moment by the calendar, in nanoseconds since 1970; 0 when time is simulated.
        public var wallNanoseconds: UInt64

        public init(
            firstTicks: UInt64, firstNanoseconds: UInt64, lastTicks: UInt64, lastNanoseconds: UInt64,
            wallNanoseconds: UInt64
        ) {
            self.firstTicks = firstTicks
            self.firstNanoseconds = firstNanoseconds
            self.lastTicks = lastTicks
            self.lastNanoseconds = lastNanoseconds
            self.wallNanoseconds = wallNanoseconds
        }

        /// Nanoseconds of the engine's clock: on the line through the two moments, held to 0 and `UInt64.max`.
        public func nanoseconds(_ ticks: UInt64) -> UInt64 {
            let ticksBetween = lastTicks &- firstTicks
            let between = lastNanoseconds &- firstNanoseconds
            let isLater = ticks >= firstTicks
            let distance = isLater ? ticks - firstTicks : firstTicks - ticks
            var scaled = distance
            if lastTicks > firstTicks, lastNanoseconds >= firstNanoseconds, ticksBetween != between {
                let product = distance.multipliedFullWidth(by: between)
                scaled =
                    product.high < ticksBetween
                    ? ticksBetween.dividingFullWidth((product.high, product.low)).quotient : .max
            }
            if !isLater { return firstNanoseconds - min(firstNanoseconds, scaled) }
            let (sum, overflow) = firstNanoseconds.addingReportingOverflow(scaled)
            return overflow ? .max : sum
        }
    }

    /// The engine.
    public var engine: EngineID
    /// The engine's name.
    public var name: String
    /// Its NICs, in the order of the configuration.
    public var nics: [String]
    /// How times are converted.
    public var clock: Clock
    /// How many events there were before the first one here.
    public var lost: UInt64
    /// The events, oldest first.
    public var events: [TraceEvent]

    public init(
        engine: EngineID, name: String, nics: [String], clock: Clock, lost: UInt64, events: [TraceEvent]
    ) {
        self.engine = engine
        self.name = name
        self.nics = nics
        self.clock = clock
        self.lost = lost
        self.events = events
    }

    /// How many events the engine has recorded since it was opened.
    public var next: UInt64 { lost + UInt64(events.count) }

    /// When an event happened, in nanoseconds of the engine's clock.
    public func nanoseconds(of event: TraceEvent) -> UInt64 { clock.nanoseconds(event.time) }

    /// The name of an event's NIC; nil for none.
    public func nic(of event: TraceEvent) -> String? {
        event.nic.map { $0 < nics.count ? nics[$0] : "NIC \($0)" }
    }

    /// An event in words: NIC and what happened there.
    public func line(_ event: TraceEvent) -> String {
        nic(of: event).map { "\($0): \(event)" } ?? "\(event)"
    }
}
