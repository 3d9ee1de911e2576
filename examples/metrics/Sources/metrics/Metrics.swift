import EngineMetrics
import Foundation
import TransferEngine

/// Serves the metrics of two engines that write to each other, to try dashboards and alerts: `metrics [PORT]`.
@main struct Metrics {
    static func main() async throws {
        let sender = try TransferEngine(Configuration(name: "prefill"))
        let receiver = try TransferEngine(Configuration(name: "decode"))
        defer {
            sender.close()
            receiver.close()
        }
        let bytes = 1 << 20
        let source = try sender.allocate(byteCount: bytes)
        let target = try receiver.allocate(byteCount: bytes)
        let remote = try sender.attach(receiver.descriptor(of: target))
        // A descriptor does not say what the peer calls itself; its address does.
        _ = try sender.connect(to: receiver.address)

        // On 127.0.0.1; port 0 lets the kernel choose.
        let port = CommandLine.arguments.dropFirst().first.flatMap(UInt16.init) ?? 9464
        let server = try await MetricsServer([sender, receiver], port: port)
        try await withThrowingTaskGroup(of: Void.self) { group in
            group.addTask { try await server.run() }
            group.addTask {
                let url = "http://127.0.0.1:\(server.port)/metrics"
                // Standard output may be a pipe, which is flushed only when it is full.
                try FileHandle.standardOutput.write(
                    contentsOf: Data("\(url)\n".utf8))
            }
            group.addTask {
                while !Task.isCancelled {
                    let arrived = try receiver.expect(1, count: 1)
                    try await sender.result(
                        of: sender.write(from: source, byteCount: bytes, to: remote, immediate: 1))
                    try await receiver.result(of: arrived)
                    try await Task.sleep(for: .milliseconds(1))
                }
            }
            try await group.waitForAll()
        }
    }
}
