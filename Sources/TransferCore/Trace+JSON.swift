extension Trace {
    /// Several engines' traces in the Trace Event Format, which Chrome (`chrome://tracing`) and Perfetto show: one process
    /// for each engine, one thread for each NIC, a transfer as an asynchronous slice, everything else as instants.
    /// Arrows go from the sending of a message to its arrival, and from a write to the wait for its immediate that it was
    /// there for; messages and writes are the ends of arrows only where both engines' traces are given.
    ///
    /// A transfer whose beginning or end is not in the trace gets one at the trace's border, with the argument `cut`, so that
    /// slices are always balanced. Times are microseconds of the first engine's clock; those of other hosts are moved by
    /// `clockOffsets`, which the names of their processes tell.
    /// - Complexity: O(number of events).
    public static func json(_ traces: [Trace]) -> String {
        var text = "{\"displayTimeUnit\":\"ns\",\"traceEvents\":["
        var isFirst = true
        func emit(_ line: String) {
            text += isFirst ? "\n" : ",\n"
            text += line
            isFirst = false
        }
        let messages = messages(traces)
        let offsets = clockOffsets(traces, messages)
        for (process, trace) in traces.enumerated() { trace.write(process + 1, offsets[process], emit) }
        for (number, arrow) in (messages + writes(traces, offsets)).enumerated() {
            arrow.write(number + 1, traces, offsets, emit)
        }
        return text + "\n]}\n"
    }

    private func write(_ process: Int, _ offset: ClockOffset, _ emit: (String) -> Void) {
        let place = "\"pid\":\(process),\"tid\":"
        func name(_ what: String, _ thread: Int, _ name: String) {
            emit("{\"ph\":\"M\",\"name\":\"\(what)\",\(place)\(thread),\"args\":{\"name\":\(quoted(name))}}")
        }
        name("process_name", 0, "\(self.name) (engine \(engine)\(offset.note))")
        name("thread_name", 0, "engine")
        for (nic, title) in nics.enumerated() { name("thread_name", nic + 1, title) }
        let times = events.map { offset.moved(nanoseconds(of: $0)) }
        let (start, end) = (times.min() ?? 0, times.max() ?? 0)
        var open: [UInt64: String] = [:]
        var closed: Set<UInt64> = []
        func slice(_ phase: String, _ transfer: UInt64, _ time: UInt64, _ title: String, _ arguments: String)
        {
            let number = String(transfer, radix: 16)
            emit(
                "{\"ph\":\"\(phase)\",\"cat\":\"transfer\",\"id2\":{\"local\":\"0x\(number)\"},"
                    + "\"name\":\(quoted(title)),\(place)0,\"ts\":\(microseconds(time)),\"args\":{\(arguments)}}"
            )
        }
        for (event, time) in zip(events, times) {
            if let transfer = event.transfer, open[transfer] == nil, event.kind != .ended,
                !closed.contains(transfer)
            {
                let isWhole = event.operation != nil
                let title = event.operation.map { "\($0)" } ?? "transfer"
                open[transfer] = title
                slice(
                    "b", transfer, isWhole ? time : start, title, isWhole ? arguments(event) : "\"cut\":true")
            }
            if event.kind == .ended, let transfer = event.transfer {
                if let title = open.removeValue(forKey: transfer) {
                    slice("e", transfer, time, title, arguments(event))
                    closed.insert(transfer)
                }
                continue
            }
            let thread = event.nic.map { $0 + 1 } ?? 0
            emit(
                "{\"ph\":\"i\",\"s\":\"t\",\"name\":\(quoted("\(event.kind)")),\(place)\(thread),"
                    + "\"ts\":\(microseconds(time)),\"args\":{\(arguments(event))}}")
        }
        for (transfer, title) in open.sorted(by: { $0.key < $1.key }) {
            slice("e", transfer, end, title, "\"cut\":true")
        }
    }

    private func arguments(_ event: TraceEvent) -> String {
        var text = "\"what\":\(quoted("\(event)"))"
        if let transfer = event.transfer { text += ",\"transfer\":\"\(String(transfer, radix: 16))\"" }
        return text
    }

    private func quoted(_ text: String) -> String {
        var result = "\""
        for scalar in text.unicodeScalars {
            switch scalar {
            case "\"": result += "\\\""
            case "\\": result += "\\\\"
            case "\u{0}"..<"\u{20}": result += " "
            default: result.unicodeScalars.append(scalar)
            }
        }
        return result + "\""
    }
}

/// Microseconds with three digits behind the point.
func microseconds(_ nanoseconds: UInt64) -> String {
    let rest = String(nanoseconds % 1000)
    return "\(nanoseconds / 1000)." + String(repeating: "0", count: 3 - rest.count) + rest
}

extension ClockOffset {
    /// A time of the trace by the clock of the first one.
    func moved(_ time: UInt64) -> UInt64 {
        let (sum, overflow) = Int64(bitPattern: time).addingReportingOverflow(nanoseconds)
        return overflow || sum < 0 ? 0 : UInt64(sum)
    }

    /// For the name of a process.
    fileprivate var note: String {
        let shift = "clock moved by \(nanoseconds / 1000) us"
        switch source {
        case .shared: return ""
        case .messages(let uncertainty): return ", \(shift), within \(uncertainty / 1000) us"
        case .calendar: return ", \(shift) by the calendar"
        }
    }
}
