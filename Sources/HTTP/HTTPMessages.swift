#if HTTP
    package import NIOCore
    package import NIOHTTP1

    /// Where a server listens: `http://HOST:PORT`, with or without a path that all requests begin with.
    package struct HTTPAddress: Hashable, Sendable {
        package var host: String
        package var port: Int
        package var path: String

        /// Reads an address.
        /// - Throws: `HTTPFailure` that says what is wrong with it.
        package init(_ text: String) throws(HTTPFailure) {
            let scheme = "http://"
            guard text.hasPrefix(scheme) else {
                throw HTTPFailure("'\(text)' does not begin with \(scheme): this client speaks no TLS")
            }
            let rest = text.dropFirst(scheme.count)
            let authority = rest.prefix { $0 != "/" }
            path = String(rest.dropFirst(authority.count))
            while path.hasSuffix("/") { path.removeLast() }
            // An IPv6 address stands in brackets, because it has colons itself.
            let end = authority.lastIndex(of: "]") ?? authority.startIndex
            let colon = authority[end...].lastIndex(of: ":")
            host = String(authority[..<(colon ?? authority.endIndex)].filter { $0 != "[" && $0 != "]" })
            guard let colon else {
                port = 80
                guard !host.isEmpty else { throw HTTPFailure("'\(text)' names no host") }
                return
            }
            guard let number = UInt16(authority[authority.index(after: colon)...]), !host.isEmpty else {
                throw HTTPFailure("'\(text)' names no host and port: http://HOST:PORT")
            }
            port = Int(number)
        }

        /// As it was read, without a slash at the end.
        package var text: String { "http://\(authority)\(path)" }

        var authority: String { host.contains(":") ? "[\(host)]:\(port)" : "\(host):\(port)" }
    }

    /// A request with its whole body.
    package struct HTTPRequest: Sendable {
        package var method: HTTPMethod
        /// Path and query.
        package var uri: String
        package var headers: HTTPHeaders
        package var body: ByteBuffer

        package init(
            _ method: HTTPMethod, _ uri: String, headers: HTTPHeaders = [:], body: ByteBuffer = ByteBuffer()
        ) {
            self.method = method
            self.uri = uri
            self.headers = headers
            self.body = body
        }

        /// The path without the query.
        package var path: Substring { uri.prefix { $0 != "?" } }

        /// The value of a name in the query, both with their percent escapes undone.
        package func query(_ name: String) -> String? {
            for pair in uri.dropFirst(path.utf8.count + 1).split(separator: "&") {
                let parts = pair.split(separator: "=", maxSplits: 1)
                if let first = parts.first, unescaped(first) == name {
                    return parts.count > 1 ? unescaped(parts[1]) : ""
                }
            }
            return nil
        }

        private func unescaped(_ text: Substring) -> String {
            var bytes: [UInt8] = []
            var rest = text.utf8[...]
            while let byte = rest.popFirst() {
                if byte == 0x25, rest.count >= 2,
                    let value = UInt8(String(decoding: rest.prefix(2), as: UTF8.self), radix: 16)
                {
                    bytes.append(value)
                    rest = rest.dropFirst(2)
                } else {
                    bytes.append(byte == 0x2B ? 0x20 : byte)
                }
            }
            return String(decoding: bytes, as: UTF8.self)
        }
    }

    /// Why an exchange failed, in one sentence.
    package struct HTTPFailure: Error, CustomStringConvertible {
        package var description: String

        package init(_ description: String) { self.description = description }
    }

    /// Parts that may be sent to another thread, to those that NIO's encoders take.
    final class ByteBufferParts<Head: Sendable & Equatable>: ChannelOutboundHandler {
        typealias OutboundIn = HTTPPart<Head, ByteBuffer>
        typealias OutboundOut = HTTPPart<Head, IOData>

        func write(context: ChannelHandlerContext, data: NIOAny, promise: EventLoopPromise<Void>?) {
            let part: OutboundOut =
                switch Self.unwrapOutboundIn(data) {
                case .head(let head): .head(head)
                case .body(let bytes): .body(.byteBuffer(bytes))
                case .end(let trailers): .end(trailers)
                }
            context.write(Self.wrapOutboundOut(part), promise: promise)
        }
    }

    /// Ends work that takes longer than `limit`. The work has to notice that its task is cancelled.
    /// - Throws: What the work throws, or `HTTPFailure`.
    package func within<Result: Sendable>(
        _ limit: Duration, _ what: @autoclosure () -> String,
        _ work: @escaping @Sendable () async throws -> Result
    ) async throws -> Result {
        try await withThrowingTaskGroup(of: Result?.self) { group in
            group.addTask { try await work() }
            group.addTask {
                try await Task.sleep(for: limit)
                return nil
            }
            defer { group.cancelAll() }
            guard let result = try await group.next(), let result else {
                throw HTTPFailure("\(what()) took longer than \(limit)")
            }
            return result
        }
    }
#endif
