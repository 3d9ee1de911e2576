#if HTTP
    internal import HTTP
    internal import NIOHTTP1
    public import TransferEngine

    /// A Prometheus endpoint: answers `GET /metrics` with the numbers of some engines.
    ///
    /// ```swift
    /// let server = try await MetricsServer([engine], port: 9464)
    /// let task = Task { try await server.run() }
    /// ```
    /// It costs nothing while nobody asks.
    public struct MetricsServer: Sendable {
        private let server: HTTPServer

        /// Opens the port.
        /// - Parameters:
        ///   - engines: Whose numbers; kept alive.
        ///   - port: The TCP port; 0 lets the kernel choose.
        ///   - isPublic: Whether other hosts may ask. The numbers tell names of peers, and nobody has to say who he is.
        /// - Throws: When the port is taken.
        public init(_ engines: [TransferEngine], port: UInt16, isPublic: Bool = false) async throws {
            server = try await HTTPServer(
                host: isPublic ? "::" : "127.0.0.1", port: Int(port), bodyLimit: 1 << 16
            ) { request, writer in
                guard request.method == .GET, request.path == "/metrics" else {
                    return try await writer.answer(.notFound, "GET /metrics\n")
                }
                try await writer.answer(
                    .ok, PrometheusText.encode(MetricFamily.all(of: engines.map { $0.statistics() })),
                    type: PrometheusText.contentType)
            }
        }

        /// Serves until the task is cancelled.
        public func run() async throws { try await server.run() }

        /// The port.
        public var port: UInt16 { UInt16(server.port) }
    }
#endif
