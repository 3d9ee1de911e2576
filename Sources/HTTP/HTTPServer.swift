#if HTTP
    package import NIOCore
    package import NIOHTTP1
    internal import NIOPosix
    internal import Synchronization

    /// A server of HTTP/1.1, one task for each connection. When a client goes away, what answers it is cancelled.
    package final class HTTPServer: Sendable {
        /// Answers a request: one head, then the parts of the body, at most. Nothing that is written afterwards is sent.
        package struct Writer: Sendable {
            fileprivate typealias Outbound = NIOAsyncChannelOutboundWriter<
                HTTPPart<HTTPResponseHead, ByteBuffer>
            >
            fileprivate let outbound: Outbound
            fileprivate let isKeptAlive: Bool

            /// Begins an answer whose length is not known, or that has `content-length` among its headers.
            package func begin(_ status: HTTPResponseStatus, _ headers: HTTPHeaders = [:]) async throws {
                var head = HTTPResponseHead(version: .http1_1, status: status, headers: headers)
                head.headers.replaceOrAdd(name: "Connection", value: isKeptAlive ? "keep-alive" : "close")
                try await outbound.write(.head(head))
            }

            /// Sends a part. Waits while the client does not read.
            package func write(_ bytes: ByteBuffer) async throws { try await outbound.write(.body(bytes)) }

            /// Ends an answer that was begun.
            package func end() async throws { try await outbound.write(.end(nil)) }

            /// A whole answer.
            package func answer(
                _ status: HTTPResponseStatus, _ text: String, type: String = "text/plain; charset=utf-8",
                _ headers: HTTPHeaders = [:]
            ) async throws {
                var headers = headers
                headers.replaceOrAdd(name: "Content-Type", value: type)
                headers.replaceOrAdd(name: "Content-Length", value: "\(text.utf8.count)")
                try await begin(status, headers)
                try await write(ByteBuffer(string: text))
                try await end()
            }
        }

        /// Answers a request, in any task. An error that it throws closes the connection.
        package typealias Handler = @Sendable (HTTPRequest, Writer) async throws -> Void

        private typealias Parts = NIOAsyncChannel<
            HTTPServerRequestPart, HTTPPart<HTTPResponseHead, ByteBuffer>
        >

        private let listening: any Channel
        private let connections = Connections()

        /// The TCP port.
        package let port: Int

        /// Opens a port and answers requests.
        /// - Parameters:
        ///   - host: The address to listen at: a name, or `0.0.0.0` and `::` for all.
        ///   - port: 0 lets the kernel choose.
        ///   - bodyLimit: Longer requests are answered with 413.
        ///   - idleLimit: Connections on which nothing has been sent or received for so long are closed.
        /// - Throws: `HTTPFailure` when the port is taken.
        package init(
            host: String, port: Int, bodyLimit: Int = 64 << 20, idleLimit: Duration = .seconds(600),
            _ handler: @escaping Handler
        ) async throws {
            // A listening `NIOAsyncChannel` hands connections over in a stream: one that comes while it ends is let go of
            // unfinished, which ends the process. Here each connection has its task from the beginning.
            do {
                listening = try await ServerBootstrap(group: MultiThreadedEventLoopGroup.singleton)
                    .serverChannelOption(.backlog, value: 256)
                    .serverChannelOption(.socketOption(.so_reuseaddr), value: 1)
                    .childChannelOption(.tcpOption(.tcp_nodelay), value: 1)
                    .childChannelInitializer { [connections] channel in
                        channel.eventLoop.makeCompletedFuture {
                            let pipeline = channel.pipeline.syncOperations
                            try pipeline.addHandler(IdleStateHandler(allTimeout: TimeAmount(idleLimit)))
                            try pipeline.addHandler(ClosesWhenIdle())
                            // A second request is read from the stream when the first has been answered.
                            try pipeline.configureHTTPServerPipeline(withPipeliningAssistance: false)
                            try pipeline.addHandler(ByteBufferParts<HTTPResponseHead>())
                            let parts = try Parts(wrappingChannelSynchronously: channel)
                            connections.add(channel)
                            Task {
                                // What a client does to its connection is its own affair.
                                try? await Self.serve(parts, bodyLimit, handler)
                            }
                        }
                    }
                    .bind(host: host, port: port).get()
            } catch {
                throw HTTPFailure("cannot listen at \(host) port \(port): \(error)")
            }
            self.port = listening.localAddress?.port ?? port
        }

        /// Closes the port and all connections.
        package func close() {
            listening.close(promise: nil)
            connections.close()
        }

        deinit { close() }

        /// Serves until the task is cancelled, or the server is closed.
        package func run() async throws {
            try await withTaskCancellationHandler {
                try await listening.closeFuture.get()
            } onCancel: {
                close()
            }
        }

        /// The connections that are open. One that comes after the end is closed at once.
        private final class Connections: Sendable {
            private let open = Mutex<[ObjectIdentifier: any Channel]?>([:])

            func add(_ channel: any Channel) {
                let isOver = open.withLock { open in
                    open?[ObjectIdentifier(channel)] = channel
                    return open == nil
                }
                guard !isOver else { return channel.close(promise: nil) }
                channel.closeFuture.whenComplete { [weak self] _ in
                    self?.open.withLock { $0?[ObjectIdentifier(channel)] = nil }
                }
            }

            func close() {
                let all = open.withLock { open in
                    defer { open = nil }
                    return open ?? [:]
                }
                for channel in all.values { channel.close(promise: nil) }
            }
        }

        private static func serve(
            _ connection: Parts, _ bodyLimit: Int, _ handler: @escaping Handler
        ) async throws {
            // Ends when the client goes away: the stream of requests does not tell while nobody reads it.
            let answering = Answering()
            connection.channel.closeFuture.whenComplete { _ in answering.cancel() }
            try await connection.executeThenClose { inbound, outbound in
                var head: HTTPRequestHead?
                var body = ByteBuffer()
                for try await part in inbound {
                    switch part {
                    case .head(let new):
                        head = new
                        body = ByteBuffer()
                    case .body(let bytes):
                        if body.readableBytes <= bodyLimit { body.writeImmutableBuffer(bytes) }
                    case .end:
                        guard let head else { return }
                        let writer = Writer(outbound: outbound, isKeptAlive: head.isKeepAlive)
                        if body.readableBytes > bodyLimit {
                            try await writer.answer(.payloadTooLarge, "at most \(bodyLimit) bytes\n")
                        } else {
                            let request = HTTPRequest(
                                head.method, head.uri, headers: head.headers, body: body)
                            try await answering.run { try await handler(request, writer) }
                        }
                        if !head.isKeepAlive { return }
                    }
                }
            }
        }

        private final class Answering: Sendable {
            private struct State {
                var isOver = false
                var task: Task<Void, any Error>?
            }

            private let state = Mutex(State())

            func cancel() {
                state.withLock {
                    $0.isOver = true
                    $0.task?.cancel()
                }
            }

            func run(_ work: @escaping @Sendable () async throws -> Void) async throws {
                let task = Task { try await work() }
                state.withLock {
                    $0.task = task
                    if $0.isOver { task.cancel() }
                }
                try await withTaskCancellationHandler {
                    try await task.value
                } onCancel: {
                    task.cancel()
                }
            }
        }

        private final class ClosesWhenIdle: ChannelInboundHandler {
            typealias InboundIn = NIOAny

            func userInboundEventTriggered(context: ChannelHandlerContext, event: Any) {
                if event is IdleStateHandler.IdleStateEvent { context.close(promise: nil) }
                context.fireUserInboundEventTriggered(event)
            }
        }
    }
#endif
