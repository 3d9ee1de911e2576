import EngineMetrics
import Foundation
import Testing
@testable import TransferEngine

#if Metrics
    import MetricsTestKit
#endif

private let example = EngineStatistics(
    engine: EngineID(rawValue: 1), name: "prefill \"0\"",
    nics: [
        EngineStatistics.NIC(
            name: "rdmap0s6", fabric: "efa", megabitsPerSecond: 100_000, requests: 12, bytes: 49152,
            inFlight: 2,
            failed: 1, pushedBack: 3, takenOver: 4, linkFailures: 5)
    ],
    operations: [
        EngineStatistics.Operation(
            name: "pages", begun: 7, inFlight: 1, failed: 2, stalled: 1, bytes: 4096,
            total: {
                var latency = EngineStatistics.Latency()
                for duration: UInt64 in [900, 3_000, 3_500, 20_000_000_000] {
                    latency.counts[EngineStatistics.Latency.place(of: duration)] += 1
                    latency.nanoseconds += duration
                }
                return latency
            }())
    ],
    peers: [
        EngineStatistics.Peer(
            engine: EngineID(rawValue: 255), name: "decode\n1", operations: 6, bytes: 1 << 62, isLost: true),
        EngineStatistics.Peer(engine: nil, name: "", operations: 1, bytes: 2, isLost: false),
    ])

private let root = URL(fileURLWithPath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
    .deletingLastPathComponent()

@Suite struct EngineMetricsTests {
    /// Golden: what Prometheus gets. `IntegrationTests/metrics/run` gives it to Prometheus' own parser.
    @Test func text() {
        let lines = PrometheusText.encode(MetricFamily.all(of: [example])).split(separator: "\n")
        for line in [
            "# HELP transfer_engine_nic_requests_total Work requests that the NIC took.",
            "# TYPE transfer_engine_nic_requests_total counter",
            #"transfer_engine_nic_requests_total{engine="prefill \"0\"",nic="rdmap0s6",fabric="efa"} 12"#,
            #"transfer_engine_nic_requests_in_flight{engine="prefill \"0\"",nic="rdmap0s6",fabric="efa"} 2"#,
            #"transfer_engine_nic_speed_bytes_per_second{engine="prefill \"0\"",nic="rdmap0s6",fabric="efa"} 12500000000"#,
            #"transfer_engine_operations_stalled_total{engine="prefill \"0\"",operation="pages"} 1"#,
            #"transfer_engine_peer_bytes_total{engine="prefill \"0\"",peer="decode\n1",peer_id="\#(EngineID(rawValue: 255))"} "#
                + "4611686018427387904",
            #"transfer_engine_peer_lost{engine="prefill \"0\"",peer="",peer_id="others"} 0"#,
            "# TYPE transfer_engine_peer_lost gauge",
            "# TYPE transfer_engine_operation_seconds histogram",
            #"transfer_engine_operation_seconds_bucket{engine="prefill \"0\"",operation="pages",stage="total",le="1.024e-06"} 1"#,
            #"transfer_engine_operation_seconds_bucket{engine="prefill \"0\"",operation="pages",stage="total",le="2.048e-06"} 1"#,
            #"transfer_engine_operation_seconds_bucket{engine="prefill \"0\"",operation="pages",stage="total",le="4.096e-06"} 3"#,
            #"transfer_engine_operation_seconds_bucket{engine="prefill \"0\"",operation="pages",stage="total",le="+Inf"} 4"#,
            #"transfer_engine_operation_seconds_sum{engine="prefill \"0\"",operation="pages",stage="total"} 20.0000074"#,
            #"transfer_engine_operation_seconds_count{engine="prefill \"0\"",operation="pages",stage="total"} 4"#,
        ] { #expect(lines.contains(Substring(line)), "\(line)") }
        #expect(Set(lines).count == lines.count, "no line twice")
    }

    /// An engine without peers has no samples of them, and no empty family.
    @Test func emptyFamilies() {
        var alone = example
        alone.peers = []
        let text = PrometheusText.encode(MetricFamily.all(of: [alone]))
        #expect(!text.contains("transfer_engine_peer_") && text.hasSuffix("\n"))
        #expect(PrometheusText.encode(MetricFamily.all(of: [])) == "")
    }

    /// The dashboard and the alerts ask for metrics that there are; every metric is on the dashboard.
    @Test func dashboardAndAlerts() throws {
        let known = Set(MetricFamily.all(of: []).map(\.name))
        func names(_ file: String) throws -> Set<String> {
            let text = try String(
                contentsOf: root.appendingPathComponent("docs/monitoring/\(file)"), encoding: .utf8)
            return Set(
                text.matches(of: #/(transfer_engine_[a-z_]+?)(_bucket|_sum|_count)?\b/#).map { String($0.1) })
        }
        #expect(try names("dashboard.json") == known)
        #expect(try names("alerts.yml").isSubset(of: known))
        let data = try Data(contentsOf: root.appendingPathComponent("docs/monitoring/dashboard.json"))
        let dashboard = try #require(try JSONSerialization.jsonObject(with: data) as? [String: Any])
        let panels = try #require(dashboard["panels"] as? [[String: Any]])
        #expect(Set(panels.compactMap { $0["id"] as? Int }).count == panels.count && panels.count >= 10)
        #expect(panels.allSatisfy { ($0["targets"] as? [Any])?.isEmpty == false && $0["title"] is String })
    }

    /// Every alert is tested by promtool's file.
    @Test func alertsHaveTests() throws {
        func text(_ name: String) throws -> String {
            try String(contentsOf: root.appendingPathComponent("docs/monitoring/\(name)"), encoding: .utf8)
        }
        let alerts = try text("alerts.yml").matches(of: #/alert: (\w+)/#).map { String($0.1) }
        let tests = try text("alerts.test.yml")
        #expect(alerts.count >= 7)
        for alert in alerts { #expect(tests.contains("alertname: \(alert)\n"), "\(alert)") }
    }

    #if Metrics
        /// A backend of swift-metrics gets what has been added since the last report.
        @Test func swiftMetrics() throws {
            let engine = try TransferEngine(Configuration(name: "m", progress: .manual))
            defer { engine.close() }
            let source = try engine.allocate(byteCount: 4096)
            let remote = try engine.attach(engine.descriptor(of: source))
            let backend = TestMetrics()
            let metrics = EngineMetrics([engine], factory: backend)
            let labels = [("engine", "m"), ("nic", "shm0"), ("fabric", "shm")]
            try engine.write(from: source, byteCount: 1000, to: remote, immediate: 1)
            metrics.report()
            try engine.write(from: source, byteCount: 24, to: remote, immediate: 1)
            try engine.write(from: source, byteCount: 1, to: remote, immediate: 1)
            metrics.report()
            metrics.report()
            let bytes = try backend.expectCounter("transfer_engine_nic_bytes_total", labels)
            #expect(bytes.values == [1000, 25, 0])
            let speed = try backend.expectGauge("transfer_engine_nic_speed_bytes_per_second", labels)
            #expect(speed.lastValue == 12_500_000_000)
            try engine.detach(remote)
            metrics.report()
            let peer = [("engine", "m"), ("peer", ""), ("peer_id", "\(engine.id)")]
            #expect(throws: (any Error).self) {
                try backend.expectCounter("transfer_engine_peer_bytes_total", peer)
            }
        }

        /// The endpoint answers, from loopback only, and nothing else is served.
        @Test(.timeLimit(.minutes(1))) func endpoint() async throws {
            let engine = try TransferEngine(Configuration(name: "served", progress: .manual))
            defer { engine.close() }
            let server = try await MetricsServer([engine], port: 0)
            let task = Task { try await server.run() }
            defer { task.cancel() }
            let port = server.port
            let answer = await get("/metrics", port)
            #expect(answer.contains("200 OK") && answer.contains("text/plain; version=0.0.4"))
            #expect(
                answer.contains(
                    "transfer_engine_nic_requests_total{engine=\"served\",nic=\"shm0\",fabric=\"shm\"} 0"))
            #expect(await get("/other", port).contains("404"))
        }

        /// The whole answer to a request.
        private func get(_ path: String, _ port: UInt16) async -> String {
            await Task.detached {
                let file = socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
                defer { close(file) }
                var address = sockaddr_in()
                address.sin_family = sa_family_t(AF_INET)
                address.sin_port = port.bigEndian
                address.sin_addr.s_addr = UInt32(0x7F00_0001).bigEndian
                let isConnected = withUnsafePointer(to: &address) { pointer in
                    pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                        connect(file, $0, socklen_t(MemoryLayout<sockaddr_in>.size)) == 0
                    }
                }
                #expect(isConnected)
                let request = "GET \(path) HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
                _ = request.withCString { send(file, $0, strlen($0), Int32(MSG_NOSIGNAL)) }
                var bytes: [UInt8] = []
                var buffer = [UInt8](repeating: 0, count: 65536)
                while true {
                    let count = recv(file, &buffer, buffer.count, 0)
                    guard count > 0 else { break }
                    bytes += buffer.prefix(count)
                }
                return String(decoding: bytes, as: UTF8.self)
            }.value
        }
    #endif
}
