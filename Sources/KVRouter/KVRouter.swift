#if HTTP
    internal import EngineMetrics
    internal import FoundationEssentials
    internal import HTTP
    internal import Instrumentation
    public import KVCacheTransfer
    public import Logging
    internal import NIOCore
    internal import NIOHTTP1
    internal import Synchronization
    internal import Tracing
    public import TransferDirectory

    /// An HTTP service in front of prefillers and decoders: OpenAI's completions in, each request to one of both.
    ///
    /// ```swift
    /// let router = KVRouter()
    /// try await router.add(.prefiller, url: "http://10.0.0.1:8100")
    /// try await router.add(.decoder, url: "http://10.0.0.2:8200")
    /// try await router.run(host: "127.0.0.1", port: 8000)
    /// ```
    /// A request goes to a decoder with `kv_transfer_params` that name the prefiller, and to that prefiller with one token to
    /// generate, at the same time (docs/integrations.md). The answer of the decoder is passed on as it comes; its client's going
    /// away ends both. Without a prefiller decoders compute prompts themselves. A decoder that fails before its answer has begun
    /// is replaced by another one.
    ///
    /// Each request is a span of swift-distributed-tracing with one for each half, whose context goes to the engines in headers;
    /// who comes, goes and fails is logged.
    public actor KVRouter {
        /// How it behaves.
        public struct Configuration: Sendable {
            /// Requests that may be open at once; more are refused with 503 and told to come again.
            public var requestLimit = 1024
            /// The longest that a request may take, from its first byte to the last of its answer.
            public var timeout = Duration.seconds(600)
            /// Between two looks at each instance.
            public var lookInterval = Duration.seconds(1)
            /// How many decoders are asked for a request, one after the other fails.
            public var attempts = 3
            /// Tokens that a request without `max_tokens` is taken to generate, for the load.
            public var outputTokens = 256
            /// Whether instances may be added and taken out over HTTP, by anybody who reaches the port.
            public var isManaged = false

            /// The defaults.
            public init() {}
        }

        private let configuration: Configuration
        private let client = HTTPClient()
        let logger: Logger
        private var state: RouterState
        private var metrics = RouterMetrics()
        private var listening: Int?
        /// Instances that are being asked at the moment.
        private var looking: Set<String> = []

        /// A router that knows nobody.
        /// - Parameters:
        ///   - configuration: How it behaves.
        ///   - scheduler: Who gets a request. A prompt's tokens are four bytes each of its text.
        ///   - logger: Told of instances that come, go and fail, and at `debug` of each request.
        public init(
            _ configuration: Configuration = Configuration(),
            scheduler: any KVScheduler = PrefixAffinityScheduler(),
            logger: Logger = Logger(label: "transfer-engine.router")
        ) {
            self.configuration = configuration
            self.logger = logger
            state = RouterState(scheduler: scheduler)
        }

        /// The port, once `run` has opened it.
        public var port: Int? { listening }

        private static var encoder: JSONEncoder {
            let encoder = JSONEncoder()
            encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
            return encoder
        }

        // Instances

        /// Adds an instance, which is given requests as soon as it answers `GET /health`; a prefiller, as soon as it has said
        /// where its engine is.
        /// - Throws: A description of what is wrong with the URL.
        public func add(_ role: DirectoryEntry.Role, url: String) throws {
            let text = try HTTPAddress(url).text
            state.add(role, text)
            logger.info("an instance has joined", metadata: ["role": "\(role.rawValue)", "url": "\(text)"])
        }

        /// Takes an instance out: it is given nothing new, and finishes what it has.
        public func drain(url: String) {
            guard let address = try? HTTPAddress(url) else { return }
            logger.info("an instance drains", metadata: ["url": "\(address.text)"])
            state.drain(address.text)
        }

        /// Serves until the task is cancelled.
        /// - Parameters:
        ///   - host: The address to listen at.
        ///   - port: 0 lets the kernel choose; see `port`.
        ///   - directory: Whose entries with a URL come and go as instances.
        /// - Throws: When the port is taken.
        public func run(host: String, port: Int, directory: (any TransferDirectory)? = nil) async throws {
            let server = try await HTTPServer(host: host, port: port) { [self] request, writer in
                try await answer(request, writer)
            }
            listening = server.port
            try await withThrowingTaskGroup(of: Void.self) { group in
                group.addTask { try await server.run() }
                group.addTask { [self] in try await look() }
                if let directory {
                    group.addTask { [self] in
                        for await change in directory.changes() { await follow(change) }
                    }
                }
                defer { group.cancelAll() }
                try await group.next()
            }
        }

        private func follow(_ change: DirectoryChange) {
            // Who has another address leaves and joins with the same URL.
            let urls = Set(change.joined.compactMap(\.url))
            for entry in change.left { if let url = entry.url, !urls.contains(url) { drain(url: url) } }
            for entry in change.joined { if let url = entry.url { try? add(entry.role, url: url) } }
        }

        private func look() async throws {
            try await withThrowingDiscardingTaskGroup { group in
                while true {
                    // One that is slow to answer holds up no look at another.
                    for instance in state.instances.values where looking.insert(instance.url).inserted {
                        group.addTask { [self] in await look(at: instance) }
                    }
                    try await Task.sleep(for: configuration.lookInterval)
                }
            }
        }

        private func look(at instance: RouterState.Instance) async {
            defer { looking.remove(instance.url) }
            guard let address = try? HTTPAddress(instance.url) else { return }
            let answer = try? await client.fetch(
                HTTPRequest(.GET, "/health"), from: address, within: .seconds(5))
            let isAlive = answer?.status == .ok
            var engine = instance.isAlive ? instance.address : nil
            if isAlive, engine == nil, instance.role == .prefiller {
                engine = try? await introduce(address)
            }
            state.saw(instance.url, isAlive: isAlive, address: engine)
            guard let now = state.instances[instance.url], now.takesRequests != instance.takesRequests else {
                return
            }
            logger.log(
                level: now.takesRequests || now.isDraining ? .info : .warning,
                now.takesRequests ? "an instance takes requests" : "an instance takes no requests",
                metadata: ["role": "\(now.role.rawValue)", "url": "\(now.url)"])
        }

        private struct Models: Decodable {
            struct Model: Decodable {
                var id: String
            }
            var data: [Model]
        }

        private struct Introduction: Codable {
            struct Parameters: Codable {
                var do_remote_decode: Bool?
                var prefiller: String?
            }
            var model: String?
            var prompt: [Int]?
            var max_tokens: Int?
            var kv_transfer_params: Parameters?
        }

        /// Asks a prefiller where its engine is: that comes with the answer to any request of the kind.
        private func introduce(_ address: HTTPAddress) async throws -> String? {
            let models = try await client.fetch(
                HTTPRequest(.GET, "/v1/models"), from: address, within: .seconds(5))
            let model = try JSONDecoder().decode(Models.self, from: Data(models.body.readableBytesView)).data
                .first?.id
            let question = Introduction(
                model: model, prompt: [1], max_tokens: 1, kv_transfer_params: .init(do_remote_decode: true))
            let answer = try await client.fetch(
                Self.post("/v1/completions", Array(try Self.encoder.encode(question))), from: address,
                within: .seconds(60))
            return try JSONDecoder().decode(Introduction.self, from: Data(answer.body.readableBytesView))
                .kv_transfer_params?.prefiller
        }

        // Requests

        private func answer(_ request: HTTPRequest, _ writer: HTTPServer.Writer) async throws {
            switch (request.method, request.path) {
            case (.POST, "/v1/completions"), (.POST, "/v1/chat/completions"):
                try await complete(request, writer)
            case (.GET, "/v1/models"): try await models(writer)
            case (.GET, "/metrics"):
                let text = PrometheusText.encode(metrics.families(known))
                try await writer.answer(.ok, text, type: PrometheusText.contentType)
            case (.GET, "/healthz"):
                let able = known.filter(\.takesRequests)
                let decoders = able.count { $0.role == .decoder }
                try await writer.answer(
                    decoders > 0 ? .ok : .serviceUnavailable,
                    "{\"prefillers\": \(able.count - decoders), \"decoders\": \(decoders)}\n",
                    type: "application/json")
            case (.GET, "/instances"):
                let rows = known.map(Row.init)
                try await writer.answer(
                    .ok, String(decoding: try Self.encoder.encode(rows), as: UTF8.self),
                    type: "application/json")
            case (_, "/instances"): try await manage(request, writer)
            default: try await fail(writer, .notFound, "no such path: \(request.method) \(request.path)")
            }
        }

        private var known: [RouterState.Instance] {
            state.instances.values.sorted { ($0.role.rawValue, $0.url) < ($1.role.rawValue, $1.url) }
        }

        private struct Row: Codable {
            var role: String
            var url: String
            var is_alive: Bool?
            var is_draining: Bool?
            var takes_requests: Bool?
            var open_requests: Int?
            var load_tokens: Int?

            init(_ instance: RouterState.Instance) {
                (role, url) = (instance.role.rawValue, instance.url)
                is_alive = instance.isAlive
                is_draining = instance.isDraining
                takes_requests = instance.takesRequests
                open_requests = instance.open
                load_tokens = instance.load
            }
        }

        private func manage(_ request: HTTPRequest, _ writer: HTTPServer.Writer) async throws {
            guard configuration.isManaged else {
                return try await fail(
                    writer, .forbidden, "instances are not managed over HTTP here (--manage)")
            }
            switch request.method {
            case .POST:
                let row = try? JSONDecoder().decode(Row.self, from: Data(request.body.readableBytesView))
                guard let row, let role = DirectoryEntry.Role(rawValue: row.role),
                    (try? add(role, url: row.url)) != nil
                else {
                    return try await fail(
                        writer, .badRequest,
                        "an instance has a \"role\" (prefiller or decoder) and a \"url\" (http://HOST:PORT)")
                }
                try await writer.answer(.ok, "{}\n", type: "application/json")
            case .DELETE:
                drain(url: request.query("url") ?? "")
                try await writer.answer(.ok, "{}\n", type: "application/json")
            default: try await fail(writer, .methodNotAllowed, "GET, POST or DELETE")
            }
        }

        private func models(_ writer: HTTPServer.Writer) async throws {
            for instance in known where instance.isAlive {
                guard let address = try? HTTPAddress(instance.url),
                    let answer = try? await client.fetch(
                        HTTPRequest(.GET, "/v1/models"), from: address, within: .seconds(5))
                else { continue }
                return try await writer.answer(
                    answer.status, String(buffer: answer.body),
                    type: answer.headers.first(name: "content-type") ?? "")
            }
            try await fail(writer, .serviceUnavailable, "no instance answers")
        }

        /// An error as OpenAI's clients expect it.
        private func fail(_ writer: HTTPServer.Writer, _ status: HTTPResponseStatus, _ message: String)
            async throws
        {
            struct Failure: Encodable {
                struct Reason: Encodable {
                    var message: String
                    var type: String
                    var code: UInt
                }
                var error: Reason
            }
            let type = status.code < 500 ? "invalid_request_error" : "server_error"
            let body = Failure(error: .init(message: message, type: type, code: status.code))
            try await writer.answer(
                status, String(decoding: try Self.encoder.encode(body), as: UTF8.self),
                type: "application/json",
                status == .serviceUnavailable ? ["Retry-After": "1"] : [:])
        }

        private func complete(_ request: HTTPRequest, _ writer: HTTPServer.Writer) async throws {
            let body: RequestBody
            do {
                body = try RequestBody(Array(request.body.readableBytesView))
            } catch {
                metrics.ended(.malformed)
                return try await fail(
                    writer, .badRequest, "the body is no JSON object: see byte \(error.offset)")
            }
            guard metrics.open < configuration.requestLimit else {
                metrics.ended(.refused)
                return try await fail(
                    writer, .serviceUnavailable, "\(metrics.open) requests are open; come again")
            }
            metrics.open += 1
            defer { metrics.open -= 1 }
            let begin = ContinuousClock.now
            do {
                let outcome = try await span(of: request) { [self] in
                    try await attempt(String(request.path), body, writer)
                }
                ended(outcome, request, since: begin)
            } catch let error as HTTPFailure {
                ended(.failed, request, since: begin)
                throw error
            } catch {
                ended(.abandoned, request, since: begin)
                throw error
            }
        }

        private func ended(
            _ outcome: RouterMetrics.Outcome, _ request: HTTPRequest, since begin: ContinuousClock.Instant
        ) {
            metrics.ended(outcome)
            logger.log(
                level: outcome == .failed ? .warning : .debug, "a request has ended",
                metadata: [
                    "path": "\(request.path)", "outcome": "\(outcome)",
                    "duration": "\(.now - begin as Duration)",
                ])
        }

        /// Asks decoders until one answers.
        /// - Throws: `HTTPFailure` when an answer breaks off; otherwise the client has gone.
        private func attempt(
            _ path: String, _ body: RequestBody, _ writer: HTTPServer.Writer
        ) async throws -> RouterMetrics.Outcome {
            let prompt = Self.units(body)
            let output =
                body.integer("max_completion_tokens") ?? body.integer("max_tokens")
                ?? configuration.outputTokens
            let begin = ContinuousClock.now
            var excluded = Set<String>()
            for _ in 0..<max(configuration.attempts, 1) {
                guard let choice = state.begin(prompt, output: output, excluded: excluded) else { break }
                if !excluded.isEmpty { metrics.retried += 1 }
                if choice.prefiller == nil { metrics.withoutPrefiller += 1 }
                let progress = Progress()
                var failed = Set<String>()
                do {
                    defer { state.finish(choice, failed: failed) }
                    do {
                        try await ask(choice, path, body, writer, progress, since: begin)
                        return .answered
                    } catch {
                        // Whoever knows the length may go before we have said that it is all.
                        if progress.isWhole { return .answered }
                        try Task.checkCancellation()
                        guard error is HTTPFailure else { throw error }
                        failed.insert(choice.decoder)
                        excluded.insert(choice.decoder)
                        logger.warning(
                            "a decoder failed a request",
                            metadata: ["url": "\(choice.decoder)", "reason": "\(error)"])
                        // What has been sent cannot be taken back: the client sees that the answer breaks off.
                        if progress.hasBegun { throw error }
                    }
                }
            }
            let isFailure = !excluded.isEmpty
            try await fail(
                writer, isFailure ? .badGateway : .serviceUnavailable,
                isFailure
                    ? "no decoder answered: \(excluded.sorted().joined(separator: ", ")) failed"
                    : "no decoder is there")
            return isFailure ? .failed : .refused
        }

        /// How much of an answer has been passed on.
        private final class Progress: Sendable {
            private let state = Mutex((hasBegun: false, left: Int?.none))

            var hasBegun: Bool { state.withLock(\.hasBegun) }
            /// All of an answer whose length is known.
            var isWhole: Bool { state.withLock { $0.left == 0 } }

            func begin(_ length: Int?) { state.withLock { $0 = (true, length) } }

            func sent(_ bytes: Int) { state.withLock { $0.left = $0.left.map { $0 - bytes } } }
        }

        /// Both halves of a request at the same time. What the prefiller still does when the decoder has ended, or the client has
        /// gone, is given up.
        private func ask(
            _ choice: RouterState.Choice, _ path: String, _ body: RequestBody, _ writer: HTTPServer.Writer,
            _ progress: Progress, since begin: ContinuousClock.Instant
        ) async throws {
            var forDecoder = body
            var forPrefiller: RequestBody?
            if let address = choice.address {
                let transfer = Self.unique()
                forDecoder.set(
                    "kv_transfer_params",
                    to:
                        "{\"do_remote_prefill\":true,\"transfer_id\":\"\(transfer)\",\"prefiller\":\"\(address)\"}"
                )
                forPrefiller = Self.prefill(body, transfer)
            }
            let prefilling = Task { [forPrefiller] in await prefill(choice, path, forPrefiller) }
            defer { prefilling.cancel() }
            let request = Self.post(path, forDecoder.bytes)
            try await half("decode", choice.decoder) { [self, client, configuration] headers in
                try await pass(
                    request.with(headers), to: HTTPAddress(choice.decoder), client, configuration.timeout,
                    writer, progress, since: begin)
            }
        }

        /// Passes the answer on as it comes.
        private func pass(
            _ request: HTTPRequest, to address: HTTPAddress, _ client: HTTPClient, _ limit: Duration,
            _ writer: HTTPServer.Writer, _ progress: Progress, since begin: ContinuousClock.Instant
        ) async throws {
            try await client.stream(
                request, to: address, within: limit,
                head: { [self] head in
                    progress.begin(head.headers.first(name: "content-length").flatMap { Int($0) })
                    await firstByte(since: begin)
                    var headers = HTTPHeaders()
                    for name in ["Content-Type", "Content-Length", "Cache-Control", "X-Request-Id"] {
                        if let value = head.headers.first(name: name) {
                            headers.add(name: name, value: value)
                        }
                    }
                    try await writer.begin(head.status, headers)
                },
                part: {
                    let bytes = $0.readableBytes
                    try await writer.write($0)
                    progress.sent(bytes)
                })
            try await writer.end()
        }

        private func firstByte(since begin: ContinuousClock.Instant) {
            metrics.firstByte(after: .now - begin)
        }

        private func prefill(_ choice: RouterState.Choice, _ path: String, _ body: RequestBody?) async {
            guard let body, let url = choice.prefiller, let address = try? HTTPAddress(url) else { return }
            let request = Self.post(path, body.bytes)
            let answer = try? await half("prefill", url) { [client, configuration] headers in
                try await client.fetch(request.with(headers), from: address, within: configuration.timeout)
            }
            state.prefilled(choice)
            // The decoder notices by itself, and computes the prompt.
            if answer?.status.code ?? 500 >= 500, !Task.isCancelled {
                state.failed(url)
                logger.warning("a prefiller failed a request", metadata: ["url": "\(url)"])
            }
        }

        /// The request as a prefiller gets it: one token, and no stream of it.
        static func prefill(_ body: RequestBody, _ transfer: String) -> RequestBody {
            var body = body
            body.set("kv_transfer_params", to: "{\"do_remote_decode\":true,\"transfer_id\":\"\(transfer)\"}")
            if body["max_completion_tokens"] != nil { body.set("max_completion_tokens", to: "1") }
            body.set("max_tokens", to: "1")
            if body["min_tokens"] != nil { body.set("min_tokens", to: "1") }
            body.set("stream", to: "false")
            body.set("stream_options", to: nil)
            return body
        }

        /// The prompt, or what stands for it: its text in JSON, four bytes for a token, so that equal beginnings are equal.
        static func units(_ body: RequestBody) -> [UInt32] {
            guard let text = body["messages"] ?? body["prompt"] else { return [] }
            var units: [UInt32] = []
            units.reserveCapacity(text.count / 4 + 1)
            var unit: UInt32 = 0
            for (index, byte) in text.enumerated() {
                unit = unit << 8 | UInt32(byte)
                if index % 4 == 3 { units.append(unit) }
            }
            return units
        }

        /// A text that is used once.
        private static func unique() -> String {
            var generator = SystemRandomNumberGenerator()
            return String(generator.next(), radix: 16) + String(generator.next(), radix: 16)
        }

        private static func post(_ path: String, _ body: [UInt8]) -> HTTPRequest {
            HTTPRequest(
                .POST, path, headers: ["Content-Type": "application/json"], body: ByteBuffer(bytes: body))
        }
    }
#endif
