import Foundation

/// A process of the demonstration. Its lines come to a queue, with its name.
final class Child: @unchecked Sendable {
    // SAFETY: written once in `init`; `Process` and pipes may be used from any thread as they are here.
    enum Event: Sendable {
        case line(name: String, [Substring])
        case ended(name: String)
    }

    let name: String
    private let process = Process()
    private let input = Pipe()
    private let output = Pipe()

    init(_ role: String, _ name: String, model: String, _ events: Queue<Event>) throws {
        self.name = name
        process.executableURL = URL(fileURLWithPath: "/proc/self/exe").resolvingSymlinksInPath()
        process.arguments = [role, name, model]
        process.standardInput = input
        process.standardOutput = output
        try process.run()
        let file = output.fileHandleForReading
        Thread.detachNewThread {
            var rest = Data()
            while true {
                let data = file.availableData
                if data.isEmpty { return events.append(.ended(name: name)) }
                rest += data
                while let end = rest.firstIndex(of: 10) {
                    let line = String(decoding: rest[..<end], as: UTF8.self)
                    rest.removeSubrange(...end)
                    events.append(.line(name: name, line.split(separator: " ")))
                }
            }
        }
    }

    /// A line to the process; one that is gone does not read it.
    func send(_ line: String) { try? input.fileHandleForWriting.write(contentsOf: Data((line + "\n").utf8)) }

    func kill() {
        Foundation.kill(process.processIdentifier, SIGKILL)
        process.waitUntilExit()
    }

    /// Lets it end: it does when nobody can say anything more to it.
    func end() {
        try? input.fileHandleForWriting.close()
        for _ in 0..<200 where process.isRunning { Thread.sleep(forTimeInterval: 0.01) }
        if process.isRunning { kill() }
    }
}
