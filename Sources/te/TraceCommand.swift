internal import ArgumentParser
internal import Glibc
internal import TransferEngine

/// `te trace`: what flight recorders wrote to files, for people or for Chrome and Perfetto.
struct TraceCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "trace",
        abstract: "Show what an engine's flight recorder wrote to a file, or convert it for ui.perfetto.dev.")

    @Argument(help: "files written by writeTrace or on a stall; with --json several become one time line")
    var files: [String]
    @Flag(help: "Chrome's Trace Event Format on standard output")
    var json = false

    func run() throws {
        let traces = try files.map { try Trace(decoding: Self.read($0)) }
        if json {
            print(Trace.json(traces), terminator: "")
        } else {
            let offsets = Trace.clockOffsets(traces)
            for (trace, offset) in zip(traces, offsets) { Self.show(trace, offset) }
        }
    }

    /// How a trace's clock differs from that of the first one.
    private static func text(_ offset: ClockOffset) -> String {
        let shift = Field.number(Double(offset.nanoseconds) / 1000).human
        switch offset.source {
        case .shared: return ""
        case .messages(let uncertainty):
            return
                ", clock \(shift) us, within \(Field.number(Double(uncertainty) / 1000).human) us by messages"
        case .calendar: return ", clock \(shift) us by the calendar"
        }
    }

    private static func show(_ trace: Trace, _ offset: ClockOffset) {
        print(
            "engine \(trace.name) (\(trace.engine)), \(trace.events.count) events, \(trace.lost) before"
                + text(offset))
        let end = trace.events.last.map { trace.nanoseconds(of: $0) } ?? 0
        for event in trace.events {
            let before = Double(end - min(end, trace.nanoseconds(of: event))) / 1000
            let who = event.transfer.map { " [\(String($0, radix: 16))]" } ?? ""
            print("-\(Field.number(before).human) us\(who) \(trace.line(event))")
        }
    }

    /// A whole file, of at most twice what a trace can have.
    private static func read(_ path: String) throws(TransferError) -> [UInt8] {
        let file = open(path, O_RDONLY | O_CLOEXEC)
        guard file >= 0 else {
            throw TransferError(.invalidArgument, "\(path) cannot be opened: error \(errno)")
        }
        defer { Glibc.close(file) }
        var bytes: [UInt8] = []
        var buffer = [UInt8](repeating: 0, count: 1 << 16)
        while bytes.count <= Trace.maximumEvents * 2 * TraceEvent.byteCount {
            let count = Glibc.read(file, &buffer, buffer.count)
            guard count >= 0 else {
                throw TransferError(.invalidArgument, "\(path) cannot be read: error \(errno)")
            }
            if count == 0 { break }
            bytes.append(contentsOf: buffer.prefix(count))
        }
        return bytes
    }
}
