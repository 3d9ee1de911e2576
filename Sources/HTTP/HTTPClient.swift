#if HTTP
    package import NIOCore
    package import NIOHTTP1
    internal import NIOPosix

    /// A client of HTTP/1.1. Each request has a connection of its own, which ends with it: a request that is given up leaves
    /// nothing behind, and its server notices.
    package struct HTTPClient: Sendable {
        /// What a server answered.
        package struct Answer: Sendable {
            package var status: HTTPResponseStatus
            package var headers: HTTPHeaders
            package var body: ByteBuffer
        }

        private typealias Connection = NIOAsyncChannel<
            HTTPClientResponsePart, HTTPPart<HTTPRequestHead, ByteBuffer>
        >

        package var connectTimeout: Duration

        package init(connectTimeout: Duration = .seconds(5)) { self.connectTimeout = connectTimeout }

        /// Sends a request, and hands on the head of the answer and then its body, piece by piece. What `part` waits for, the
        /// server waits for too.
        /// - Throws: `HTTPFailure` when the server cannot be reached, breaks off, or takes longer than `limit` in all; what the
        ///   closures throw.
        package func stream(
            _ request: HTTPRequest, to address: HTTPAddress, within limit: Duration,
            head: @escaping @Sendable (HTTPResponseHead) async throws -> Void,
            part: @escaping @Sendable (ByteBuffer) async throws -> Void
        ) async throws {
            let place = "\(request.method) \(address.text)\(request.path)"
            try await within(limit, place) {
                let connection = try await connect(to: address)
                do {
                    try await connection.executeThenClose { inbound, outbound in
                        // A server may answer and close before it has read all: then its answer counts.
                        try? await outbound.write(contentsOf: parts(of: request, to: address))
                        for try await next in inbound {
                            switch next {
                            case .head(let answer): try await Caller.run { try await head(answer) }
                            case .body(let bytes): try await Caller.run { try await part(bytes) }
                            case .end: return
                            }
                        }
                        try Task.checkCancellation()
                        throw HTTPFailure("the server broke off")
                    }
                } catch let error as Caller {
                    throw error.reason
                } catch let error as CancellationError {
                    throw error
                } catch {
                    try Task.checkCancellation()
                    throw HTTPFailure("\(place): \(error)")
                }
            }
        }

        /// What a closure of the caller's has thrown: neither the server's fault nor the network's.
        private struct Caller: Error {
            var reason: any Error

            static func run(_ work: () async throws -> Void) async throws {
                do {
                    try await work()
                } catch {
                    throw Caller(reason: error)
                }
            }
        }

        /// Sends a request, and waits for the whole answer.
        /// - Throws: See `stream`; also when the answer is longer than `bytes`.
        package func fetch(
            _ request: HTTPRequest, from address: HTTPAddress, within limit: Duration,
            atMost bytes: Int = 16 << 20
        ) async throws -> Answer {
            let collected = Collected()
            try await stream(
                request, to: address, within: limit, head: { await collected.begin($0) },
                part: {
                    guard await collected.append($0) <= bytes else {
                        throw HTTPFailure(
                            "\(address.text)\(request.path): the answer has more than \(bytes) bytes")
                    }
                })
            guard let answer = await collected.answer else {
                throw HTTPFailure("\(address.text)\(request.path): no answer")
            }
            return answer
        }

        private actor Collected {
            var answer: Answer?

            func begin(_ head: HTTPResponseHead) {
                answer = Answer(status: head.status, headers: head.headers, body: ByteBuffer())
            }

            /// The bytes that are there now.
            func append(_ bytes: ByteBuffer) -> Int {
                answer?.body.writeImmutableBuffer(bytes)
                return answer?.body.readableBytes ?? 0
            }
        }

        private func connect(to address: HTTPAddress) async throws -> Connection {
            do {
                return try await ClientBootstrap(group: MultiThreadedEventLoopGroup.singleton)
                    .connectTimeout(TimeAmount(connectTimeout))
                    .channelOption(.tcpOption(.tcp_nodelay), value: 1)
                    .connect(host: address.host, port: address.port) { channel in
                        channel.eventLoop.makeCompletedFuture {
                            let pipeline = channel.pipeline.syncOperations
                            try pipeline.addHTTPClientHandlers()
                            try pipeline.addHandler(ByteBufferParts<HTTPRequestHead>())
                            return try Connection(wrappingChannelSynchronously: channel)
                        }
                    }
            } catch let error as CancellationError {
                throw error
            } catch {
                throw HTTPFailure("\(address.text) cannot be reached: \(error)")
            }
        }

        private func parts(
            of request: HTTPRequest, to address: HTTPAddress
        ) -> [HTTPPart<HTTPRequestHead, ByteBuffer>] {
            var head = HTTPRequestHead(
                version: .http1_1, method: request.method, uri: address.path + request.uri,
                headers: request.headers)
            head.headers.replaceOrAdd(name: "Host", value: address.authority)
            head.headers.replaceOrAdd(name: "Connection", value: "close")
            head.headers.replaceOrAdd(name: "Content-Length", value: "\(request.body.readableBytes)")
            return [.head(head), .body(request.body), .end(nil)]
        }
    }
#endif
