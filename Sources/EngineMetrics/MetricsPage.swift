#if HTTP
    internal import HTTP
    internal import NIOCore
    internal import NIOHTTP1
    public import TransferEngine

    /// The page of a `MetricsServer`, as whoever reads it finds it.
    ///
    /// ```swift
    /// let page = try MetricsPage("10.0.0.5")          // http://10.0.0.5:9464/metrics
    /// print(try await page.text(within: .seconds(1)))
    /// ```
    public struct MetricsPage: Sendable {
        /// Where a page is looked for when no port is named: that of OpenTelemetry's exporters.
        public static let port: UInt16 = 9464

        private let address: HTTPAddress
        private let path: String

        /// Host, port and path.
        public var name: String { String((address.text + path).dropFirst("http://".count)) }

        /// Takes an address apart.
        /// - Parameter text: `http://HOST:PORT/PATH`, of which the host or the port is enough.
        /// - Throws: `invalidArgument` for what is no address of a web page, or that of a secure one.
        public init(_ text: String) throws(TransferError) {
            var rest = Substring(text)
            if rest.hasPrefix("http://") { rest = rest.dropFirst("http://".count) }
            guard !rest.contains("://"), !text.utf8.contains(where: { $0 <= 32 }) else {
                throw TransferError(
                    .invalidArgument, "'\(text)' is not HOST:PORT, PORT or http://HOST:PORT/PATH, without TLS"
                )
            }
            var place = String(rest.prefix { $0 != "/" })
            let path = rest.dropFirst(place.count)
            if !place.isEmpty, place.allSatisfy(\.isNumber) { place = "127.0.0.1:" + place }
            // The colons of an IPv6 address are in its brackets.
            let end = place.lastIndex(of: "]") ?? place.startIndex
            if !place[end...].contains(":") { place += ":\(Self.port)" }
            do {
                address = try HTTPAddress("http://" + place)
            } catch {
                throw TransferError(.invalidArgument, "\(error)")
            }
            self.path = path.isEmpty ? "/metrics" : String(path)
        }

        /// What the page says now.
        ///
        /// Looking the host's name up cannot be cancelled: it may take longer than `limit`.
        /// - Throws: `peerLost` when it does not answer within `limit`, or with anything else than a page.
        public func text(within limit: Duration) async throws(TransferError) -> String {
            do {
                let answer = try await HTTPClient(connectTimeout: limit)
                    .fetch(HTTPRequest(.GET, path), from: address, within: limit)
                guard answer.status == .ok else {
                    throw HTTPFailure("\(address.text)\(path) answers '\(answer.status)'")
                }
                return String(buffer: answer.body)
            } catch {
                throw TransferError(.peerLost, "\(error): is there a MetricsServer (docs/operations.md)?")
            }
        }
    }
#endif
