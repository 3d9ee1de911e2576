internal import ArgumentParser
internal import EngineMetrics
internal import Glibc
internal import Platform
internal import Synchronization
internal import TransferEngine

#if Metrics
    /// `te metrics`.
    struct MetricsCommand: ParsableCommand {
        static let configuration = CommandConfiguration(
            commandName: "metrics",
            abstract:
                "Serve the metrics of two engines that write to each other: to try dashboards and alerts.")

        @Option(help: "The TCP port on 127.0.0.1; 0 lets the kernel choose.")
        var port: UInt16 = 9464

        @Option(help: "How long.")
        var seconds = 3600

        @Option(help: "Bytes of each write.")
        var bytes = 1 << 20

        func run() throws {
            let sender = try TransferEngine(Configuration(name: "prefill"))
            let receiver = try TransferEngine(Configuration(name: "decode"))
            defer {
                sender.close()
                receiver.close()
            }
            let source = try sender.allocate(byteCount: bytes)
            let target = try receiver.allocate(byteCount: bytes)
            let remote = try sender.attach(receiver.descriptor(of: target))
            _ = try sender.connect(to: receiver.address)
            let server = MetricsServer([sender, receiver], port: port)
            let serving = Task { try await server.run() }
            defer { serving.cancel() }
            print("http://127.0.0.1:\(try portOnceOpen(server))/metrics")
            fflush(nil)
            let clock = SystemClock()
            let end = clock.nowNanoseconds + UInt64(max(0, seconds)) * 1_000_000_000
            while clock.nowNanoseconds < end {
                let wait = try receiver.expect(1, count: 1)
                try sender.write(from: source, byteCount: bytes, to: remote, immediate: 1) { _ in }
                try receiver.wait(for: wait)
                usleep(1000)
            }
        }

        private func portOnceOpen(_ server: MetricsServer) throws -> UInt16 {
            let opened = Opened()
            Task { try await opened.set(server.port()) }
            for _ in 0..<500 {
                if let port = opened.port.withLock({ $0 }) { return port }
                usleep(10_000)
            }
            throw TransferError(.unavailable, "port \(port) could not be opened; is it taken? try --port 0")
        }

        private final class Opened: Sendable {
            let port = Mutex<UInt16?>(nil)
            func set(_ value: UInt16?) { port.withLock { $0 = value } }
        }
    }
#endif
