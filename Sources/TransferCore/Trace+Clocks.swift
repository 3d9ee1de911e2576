/// How the clock of a trace's engine differs from that of the first trace's.
public struct ClockOffset: Hashable, Sendable {
    /// How it is known.
    public enum Source: Hashable, Sendable {
        /// It is the same clock: engines of one host have one, and so have those of a simulation.
        case shared
        /// By messages that went both ways: the true offset lies within so many nanoseconds of it.
        case messages(uncertainty: UInt64)
        /// By the calendars of the two hosts, whose error is not known.
        case calendar
    }

    /// Nanoseconds to be added to the times of the trace.
    public var nanoseconds: Int64
    /// How it is known.
    public var source: Source

    public init(nanoseconds: Int64, source: Source) {
        self.nanoseconds = nanoseconds
        self.source = source
    }
}

extension Trace {
    /// How the clocks of several engines' traces differ, so that what happened on several hosts is put on one time line.
    ///
    /// Hosts that exchanged messages have their clocks compared as NTP does: no message arrives before it was sent, so that the
    /// least difference in either direction bounds the offset, and half of the shortest round trip is the uncertainty. This
    /// needs messages in both directions within the traces; where a host has none its calendar is believed.
    /// - Returns: One offset for each trace, to the clock of the first.
    /// - Complexity: O(events).
    public static func clockOffsets(_ traces: [Trace]) -> [ClockOffset] {
        clockOffsets(traces, messages(traces))
    }

    static func clockOffsets(_ traces: [Trace], _ messages: [TraceArrow]) -> [ClockOffset] {
        // Engines with one clock belong to one host.
        var hosts: [Trace] = []
        let host = traces.map { trace in
            if let known = hosts.firstIndex(where: { $0.hasClock(of: trace) }) { return known }
            hosts.append(trace)
            return hosts.count - 1
        }
        let shortest = shortestWays(traces, messages, host)
        var offsets: [ClockOffset?] = hosts.map { _ in nil }
        if !hosts.isEmpty { offsets[0] = ClockOffset(nanoseconds: 0, source: .shared) }
        // From the first host on to all that talked with it, and to those that talked with them.
        while true {
            var best: (host: Int, offset: ClockOffset, uncertainty: UInt64)?
            for (from, known) in offsets.enumerated() {
                guard let known, known.source != .calendar else { continue }
                for to in hosts.indices where offsets[to] == nil {
                    guard let there = shortest[Way(from: from, to: to)],
                        let back = shortest[Way(from: to, to: from)]
                    else { continue }
                    var uncertainty = UInt64(max(0, there &+ back)) / 2
                    if case .messages(let before) = known.source { uncertainty &+= before }
                    if uncertainty < best?.uncertainty ?? .max {
                        let nanoseconds = known.nanoseconds &+ (back &- there) / 2
                        best = (
                            to,
                            ClockOffset(
                                nanoseconds: nanoseconds, source: .messages(uncertainty: uncertainty)),
                            uncertainty
                        )
                    }
                }
            }
            guard let best else { break }
            offsets[best.host] = best.offset
        }
        return host.map { index in
            offsets[index]
                ?? ClockOffset(
                    nanoseconds: hosts[index].calendarOffset &- hosts[0].calendarOffset, source: .calendar)
        }
    }

    private struct Way: Hashable {
        var from: Int
        var to: Int
    }

    /// The least time between the sending of a message and its arrival, each by its own clock, from host to host.
    private static func shortestWays(
        _ traces: [Trace], _ messages: [TraceArrow], _ host: [Int]
    ) -> [Way: Int64] {
        func time(_ end: TraceArrow.End) -> UInt64 {
            traces[end.trace].nanoseconds(of: traces[end.trace].events[end.event])
        }
        var shortest: [Way: Int64] = [:]
        for message in messages where host[message.from.trace] != host[message.to.trace] {
            let way = Way(from: host[message.from.trace], to: host[message.to.trace])
            let length = Int64(bitPattern: time(message.to) &- time(message.from))
            shortest[way] = min(shortest[way] ?? .max, length)
        }
        return shortest
    }

    /// What has to be added to the engine's clock to get the calendar's time.
    private var calendarOffset: Int64 { Int64(bitPattern: clock.wallNanoseconds &- clock.lastNanoseconds) }

    /// Whether two engines have one clock: by the calendar, it began at the same time.
    private func hasClock(of other: Trace) -> Bool {
        guard clock.wallNanoseconds > 0, other.clock.wallNanoseconds > 0 else {
            return clock.wallNanoseconds == other.clock.wallNanoseconds
        }
        return (calendarOffset &- other.calendarOffset).magnitude < 10_000_000
    }
}
