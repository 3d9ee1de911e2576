extension Trace {
    /// Several engines' traces in the Trace Event Format, which Chrome (`chrome://tracing`) and Perfetto show: one process
    /// for each engine, one thread for each NIC, a transfer as an asynchronous slice, everything else as instants.
    ///
    /// A transfer whose beginning or end is not in the trace gets one at the trace's border, with the argument `cut`, so that
    /// slices are always balanced. Times are microseconds of the engines' clocks: engines of one host share a time line.
    /// - Complexity: O(number of events).
    public static func json(_ traces: [Trace]) -> String {
        var text = "{\"displayTimeUnit\":\"ns\",\"traceEvents\":["
        var isFirst = true
        for (process, trace) in traces.enumerated() {
            trace.write(process: process + 1) { line in
                text += isFirst ? "\n" : ",\n"
                text += line
                isFirst = false
            }
        }
        return text + "\n]}\n"
    }

    private func write(process: Int, _ emit: (String) -> Void) {
        let place = "\"pid\":\(process),\"tid\":"
        func name(_ what: String, _ thread: Int, _ name: String) {
            emit("{\"ph\":\"M\",\"name\":\"\(what)\",\(place)\(thread),\"args\":{\"name\":\(quoted(name))}}")
        }
        name("process_name", 0, "\(self.name) (engine \(engine))")
        name("thread_name", 0, "engine")
        for (nic, title) in nics.enumerated() { name("thread_name", nic + 1, title) }
        let times = events.map { clock.nanoseconds($0.time) }
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

    private func microseconds(_ nanoseconds: UInt64) -> String {
        let rest = String(nanoseconds % 1000)
        return "\(nanoseconds / 1000)." + String(repeating: "0", count: 3 - rest.count) + rest
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
