#if Metrics
    internal import FlyingFox
    internal import FlyingSocks
    internal import Foundation
    public import TransferEngine

    /// A Prometheus endpoint: answers `GET /metrics` with the numbers of some engines.
    ///
    /// ```swift
    /// let server = MetricsServer([engine], port: 9464)
    /// let task = Task { try await server.run() }
    /// ```
    /// It costs nothing while nobody asks.
    public struct MetricsServer: Sendable {
        private let server: HTTPServer
        private let engines: [TransferEngine]

        /// - Parameters:
        ///   - engines: Whose numbers; kept alive.
        ///   - port: The TCP port; 0 lets the kernel choose.
        ///   - isPublic: Whether other hosts may ask. The numbers tell names of peers, and nobody has to say who he is.
        public init(_ engines: [TransferEngine], port: UInt16, isPublic: Bool = false) {
            self.engines = engines
            // 127.0.0.1 is an address.
            var config =
                isPublic
                ? HTTPServer.Configuration(address: .inet6(port: port))
                : (try? HTTPServer.Configuration(address: .inet(ip4: "127.0.0.1", port: port)))
                    ?? HTTPServer.Configuration(address: .loopback(port: port))
            // It would write to standard output.
            config.logger = .disabled
            server = HTTPServer(config: config)
        }

        /// Serves until the task is cancelled.
        /// - Throws: When the port is taken.
        public func run() async throws {
            let engines = engines
            await server.appendRoute("GET /metrics") { _ in
                let text = PrometheusText.encode(MetricFamily.all(of: engines.map { $0.statistics() }))
                return HTTPResponse(
                    statusCode: .ok, headers: [.contentType: PrometheusText.contentType],
                    body: Data(text.utf8))
            }
            try await server.run()
        }

        /// The port, once it is open.
        public func port() async throws -> UInt16? {
            try await server.waitUntilListening()
            return switch await server.listeningAddress {
            case .ip4(_, port: let port), .ip6(_, port: let port): port
            default: nil
            }
        }
    }
#endif
