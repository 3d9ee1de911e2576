/// From what one engine did to what another one noticed of it.
struct TraceArrow {
    /// An event, by the trace's place in the list and its own place in the trace.
    struct End: Hashable {
        var trace: Int
        var event: Int
    }

    var name: String
    var from: End
    var to: End

    /// Writes the arrow, and at its ends slices of a nanosecond: arrows have to begin and end at slices.
    func write(_ number: Int, _ traces: [Trace], _ offsets: [ClockOffset], _ emit: (String) -> Void) {
        for (phase, end) in [("s", from), ("f", to)] {
            let event = traces[end.trace].events[end.event]
            let time = microseconds(offsets[end.trace].moved(traces[end.trace].nanoseconds(of: event)))
            let place = "\"pid\":\(end.trace + 1),\"tid\":\(event.nic.map { $0 + 1 } ?? 0),\"ts\":\(time)"
            emit("{\"ph\":\"X\",\"dur\":0.001,\"name\":\"\(name)\",\(place),\"args\":{}}")
            emit(
                "{\"ph\":\"\(phase)\",\"bp\":\"e\",\"id\":\(number),\"cat\":\"arrow\",\"name\":\"\(name)\",\(place)}"
            )
        }
    }
}

extension Trace {
    /// Messages, from who sent them to who got them: by sender and number.
    /// - Complexity: O(events).
    static func messages(_ traces: [Trace]) -> [TraceArrow] {
        struct Name: Hashable {
            var sender: EngineID
            var number: UInt32
        }
        var sent: [Name: TraceArrow.End] = [:]
        for (index, trace) in traces.enumerated() {
            for (place, event) in trace.events.enumerated() where event.kind == .messageOut {
                guard let number = event.messageNumber else { continue }
                sent[Name(sender: trace.engine, number: number)] = TraceArrow.End(trace: index, event: place)
            }
        }
        var arrows: [TraceArrow] = []
        for (index, trace) in traces.enumerated() {
            for (place, event) in trace.events.enumerated() where event.kind == .messageIn {
                guard let number = event.messageNumber,
                    let from = sent[Name(sender: EngineID(rawValue: event.second), number: number)]
                else { continue }
                arrows.append(
                    TraceArrow(
                        name: "message \(number)", from: from, to: TraceArrow.End(trace: index, event: place))
                )
            }
        }
        return arrows
    }

    /// Writes, to the waits that they were for: by the engine that owns the region, and the immediate. A write belongs to the
    /// first wait for its immediate that ended after it had begun; there may be none, and it may be that of a later write,
    /// which only the counts would tell.
    /// - Complexity: O(events).
    static func writes(_ traces: [Trace], _ offsets: [ClockOffset]) -> [TraceArrow] {
        struct Wait {
            var end: TraceArrow.End
            var time: UInt64
        }
        struct Counter: Hashable {
            var engine: EngineID
            var immediate: UInt32
        }
        // Waits that ended, by what they waited for, in the order of time.
        var waits: [Counter: [Wait]] = [:]
        for (index, trace) in traces.enumerated() {
            var open: [UInt64: UInt32] = [:]
            for (place, event) in trace.events.enumerated() {
                guard let transfer = event.transfer else { continue }
                if event.kind == .waitBegan { open[transfer] = event.immediate }
                guard event.kind == .ended, let immediate = open.removeValue(forKey: transfer) else {
                    continue
                }
                waits[Counter(engine: trace.engine, immediate: immediate), default: []].append(
                    Wait(
                        end: TraceArrow.End(trace: index, event: place),
                        time: offsets[index].moved(trace.nanoseconds(of: event))))
            }
        }
        var arrows: [TraceArrow] = []
        for (index, trace) in traces.enumerated() {
            var owners: [UInt64: EngineID] = [:]
            // Waits that ended before the last write began: writes are in the order of time, too.
            var over: [Counter: Int] = [:]
            for (place, event) in trace.events.enumerated() {
                if event.kind == .attached { owners[event.second] = EngineID(rawValue: event.first) }
                guard event.kind == .started, event.operation != .message, let immediate = event.immediate,
                    let owner = event.attachment.flatMap({ owners[$0] })
                else { continue }
                let time = offsets[index].moved(trace.nanoseconds(of: event))
                let counter = Counter(engine: owner, immediate: immediate)
                guard let ended = waits[counter] else { continue }
                var next = over[counter, default: 0]
                while next < ended.count, ended[next].time < time { next += 1 }
                over[counter] = next
                guard next < ended.count else { continue }
                arrows.append(
                    TraceArrow(
                        name: "immediate \(immediate)",
                        from: TraceArrow.End(trace: index, event: place), to: ended[next].end))
            }
        }
        return arrows
    }
}
