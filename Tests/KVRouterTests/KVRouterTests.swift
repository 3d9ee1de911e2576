#if HTTP
    import Foundation
    import KVCacheTransfer
    import Synchronization
    import Testing
    import TransferDirectory
    import TransferEngine

    @testable import HTTP
    @testable import KVRouter

    import InMemoryTracing
    import Instrumentation
    import Logging
    import Tracing

    import NIOCore
    import NIOHTTP1

    /// Stands for an engine's server: remembers what it was asked, and answers as it is told.
    private final class Engine: Sendable {
        enum Conduct: Sendable {
            case answers
            /// Takes the request and answers nothing until the client goes.
            case hangs
            /// Closes the connection instead of answering.
            case breaksOff
            /// Begins an answer and closes the connection.
            case breaksInTheMiddle
            case refuses
            /// Says how long its answer is, sends all of it, and does not end it.
            case lingers
            /// Does not say that it is well.
            case isSilent
        }

        private let state = Mutex(
            (conduct: Conduct.answers, bodies: [Data](), abandoned: 0, headers: [HTTPHeaders]()))
        let name: String
        let url: String
        private let serving: Task<Void, any Error>

        var bodies: [NSDictionary] {
            state.withLock(\.bodies).map {
                (try? JSONSerialization.jsonObject(with: $0) as? NSDictionary) ?? NSDictionary()
            }
        }
        var abandoned: Int { state.withLock(\.abandoned) }
        /// Of the requests, in the order of `bodies`.
        var headers: [HTTPHeaders] { state.withLock(\.headers) }

        func conduct(_ conduct: Conduct) { state.withLock { $0.conduct = conduct } }

        /// - Parameter address: What a prefiller says of its engine.
        init(_ name: String, address: String? = nil) async throws {
            self.name = name
            let box = Box()
            let server = try await HTTPServer(host: "127.0.0.1", port: 0) { request, writer in
                try await box.engine?.answer(request, writer, address)
            }
            url = "http://127.0.0.1:\(server.port)"
            serving = Task { try await server.run() }
            box.set(self)
        }

        func stop() { serving.cancel() }

        private func answer(_ request: HTTPRequest, _ writer: HTTPServer.Writer, _ address: String?)
            async throws
        {
            switch request.path {
            case "/health":
                if case .isSilent = state.withLock(\.conduct) { try await Task.sleep(for: .seconds(60)) }
                return try await writer.answer(.ok, "")
            case "/v1/models":
                return try await writer.answer(.ok, #"{"data": [{"id": "m"}]}"#, type: "application/json")
            default: break
            }
            let body =
                try JSONSerialization.jsonObject(with: Data(request.body.readableBytesView)) as? [String: Any]
            let parameters = body?["kv_transfer_params"] as? [String: Any]
            if parameters?["do_remote_decode"] as? Bool == true, parameters?["transfer_id"] == nil {
                return try await writer.answer(
                    .ok, #"{"kv_transfer_params": {"prefiller": "\#(address ?? "")"}}"#)
            }
            let conduct = state.withLock { state in
                state.bodies.append(Data(request.body.readableBytesView))
                state.headers.append(request.headers)
                return state.conduct
            }
            switch conduct {
            case .hangs:
                do {
                    try await Task.sleep(for: .seconds(60))
                } catch {
                    state.withLock { $0.abandoned += 1 }
                    throw error
                }
            case .breaksOff: throw HTTPFailure("as told")
            case .breaksInTheMiddle:
                try await writer.begin(.ok)
                try await writer.write(ByteBuffer(string: "half"))
                throw HTTPFailure("as told")
            case .lingers:
                try await writer.begin(.ok, ["Content-Length": "5"])
                try await writer.write(ByteBuffer(string: "whole"))
                try await Task.sleep(for: .seconds(60))
            case .refuses: try await writer.answer(.internalServerError, "as told")
            case .answers, .isSilent:
                try await writer.begin(.ok, ["Content-Type": "text/event-stream"])
                for part in ["data: \(name)", "\n\n", "data: [DONE]\n\n"] {
                    try await writer.write(ByteBuffer(string: part))
                }
                try await writer.end()
            }
        }

        private final class Box: Sendable {
            private let stored = Mutex<Engine?>(nil)
            var engine: Engine? { stored.withLock(\.self) }
            func set(_ engine: Engine) { stored.withLock { $0 = engine } }
        }
    }

    /// What a router has logged.
    private final class Log: Sendable {
        private let entries = Mutex<[String]>([])
        var lines: [String] { entries.withLock(\.self) }

        var logger: Logger {
            var logger = Logger(label: "test") { _ in Handler(log: self) }
            logger.logLevel = .debug
            return logger
        }

        private struct Handler: LogHandler {
            let log: Log
            var logLevel = Logger.Level.debug
            var metadata: Logger.Metadata = [:]

            init(log: Log) { self.log = log }

            subscript(metadataKey key: String) -> Logger.Metadata.Value? {
                get { metadata[key] }
                set { metadata[key] = newValue }
            }

            func log(event: LogEvent) {
                let metadata = (event.metadata ?? [:]).sorted { $0.key < $1.key }
                    .map { "\($0.key)=\($0.value)" }
                log.entries.withLock { entries in
                    entries.append(
                        (["\(event.level): \(event.message)"] + metadata).joined(separator: " "))
                }
            }
        }
    }

    @Suite struct KVRouterTests {
        private let client = HTTPClient()

        /// A router in front of some engines, all of which it has seen.
        private func route(
            _ prefillers: [Engine], _ decoders: [Engine],
            _ change: (inout KVRouter.Configuration) -> Void = { _ in },
            directory: (any TransferDirectory)? = nil, log: Log = Log(),
            _ body: (HTTPAddress, KVRouter) async throws -> Void
        ) async throws {
            var configuration = KVRouter.Configuration()
            configuration.lookInterval = .milliseconds(20)
            change(&configuration)
            let router = KVRouter(configuration, logger: log.logger)
            for engine in prefillers { try await router.add(.prefiller, url: engine.url) }
            for engine in decoders { try await router.add(.decoder, url: engine.url) }
            let serving = Task { try await router.run(host: "127.0.0.1", port: 0, directory: directory) }
            defer {
                serving.cancel()
                for engine in prefillers + decoders { engine.stop() }
            }
            var port: Int?
            try await eventually {
                port = await router.port; return port != nil
            }
            let address = try HTTPAddress("http://127.0.0.1:\(port ?? 0)")
            try await seen(prefillers.count, decoders.count, address)
            try await body(address, router)
        }

        private func seen(_ prefillers: Int, _ decoders: Int, _ address: HTTPAddress) async throws {
            try await eventually {
                let answer = try await client.fetch(
                    HTTPRequest(.GET, "/healthz"), from: address, within: .seconds(5))
                return String(buffer: answer.body)
                    == "{\"prefillers\": \(prefillers), \"decoders\": \(decoders)}\n"
            }
        }

        private func eventually(_ condition: () async throws -> Bool) async throws {
            let deadline = ContinuousClock.now + .seconds(20)
            while try await !condition() {
                try #require(ContinuousClock.now < deadline, "what was waited for has not happened in 20 s")
                try await Task.sleep(for: .milliseconds(5))
            }
        }

        private func post(
            _ body: String, to address: HTTPAddress, path: String = "/v1/completions"
        ) async throws -> HTTPClient.Answer {
            try await client.fetch(
                HTTPRequest(.POST, path, body: ByteBuffer(string: body)), from: address, within: .seconds(20))
        }

        private func metric(_ line: String, _ address: HTTPAddress) async throws -> Bool {
            let answer = try await client.fetch(
                HTTPRequest(.GET, "/metrics"), from: address, within: .seconds(5))
            return String(buffer: answer.body).split(separator: "\n").contains(Substring(line))
        }

        @Test(arguments: ["/v1/completions", "/v1/chat/completions"])
        func bothHalvesOfARequest(path: String) async throws {
            let (prefiller, decoder) = (try await Engine("p", address: "QUJD"), try await Engine("d"))
            try await route([prefiller], [decoder]) { address, _ in
                let answer = try await post(
                    #"{"prompt": "Once", "max_tokens": 7, "stream": true, "#
                        + #""stream_options": {"include_usage": true}, "seed": 1234567890123456789}"#,
                    to: address, path: path)
                #expect(answer.status == .ok)
                #expect(answer.headers.first(name: "content-type") == "text/event-stream")
                #expect(String(buffer: answer.body) == "data: d\n\ndata: [DONE]\n\n")
                try await eventually { prefiller.bodies.count == 1 }
                let transfer = try #require(
                    (decoder.bodies.first?["kv_transfer_params"] as? [String: Any])?["transfer_id"] as? String
                )
                #expect(transfer.count > 20)
                #expect(
                    decoder.bodies == [
                        [
                            "prompt": "Once", "max_tokens": 7, "stream": true,
                            "seed": 1_234_567_890_123_456_789,
                            "stream_options": ["include_usage": true],
                            "kv_transfer_params": [
                                "do_remote_prefill": true, "transfer_id": transfer, "prefiller": "QUJD",
                            ],
                        ]
                    ])
                #expect(
                    prefiller.bodies == [
                        [
                            "prompt": "Once", "max_tokens": 1, "stream": false,
                            "seed": 1_234_567_890_123_456_789,
                            "kv_transfer_params": ["do_remote_decode": true, "transfer_id": transfer],
                        ]
                    ])
                try await eventually {
                    try await metric("transfer_engine_router_requests_total{outcome=\"answered\"} 1", address)
                }
            }
        }

        private static let tracer: InMemoryTracer = {
            let tracer = InMemoryTracer()
            InstrumentationSystem.bootstrap(tracer)
            return tracer
        }()

        /// The client's trace goes on in the router, and from there in both engines.
        @Test func aRequestIsFollowedToBothEngines() async throws {
            let tracer = Self.tracer
            let (prefiller, decoder) = (
                try await Engine("p", address: "P1"), try await Engine("d")
            )
            try await route([prefiller], [decoder]) { address, _ in
                let trace = "trace-\(UInt64.random(in: 0 ... .max))"
                let keys = (InMemoryTracer.traceIDKey, InMemoryTracer.spanIDKey)
                _ = try await client.fetch(
                    HTTPRequest(
                        .POST, "/v1/completions", headers: [keys.0: trace, keys.1: "client"],
                        body: ByteBuffer(string: #"{"prompt": "x"}"#)), from: address, within: .seconds(20))
                var spans: [FinishedInMemorySpan] = []
                try await eventually {
                    spans = tracer.finishedSpans.filter { $0.traceID == trace }
                    return spans.count == 3
                }
                let request = try #require(spans.first { $0.operationName == "POST /v1/completions" })
                #expect(request.parentSpanID == "client" && request.kind == .server)
                for (name, engine) in [("prefill", prefiller), ("decode", decoder)] {
                    let half = try #require(spans.first { $0.operationName == name })
                    #expect(half.parentSpanID == request.spanID && half.kind == .client)
                    let headers = try #require(engine.headers.last)
                    #expect(headers.first(name: keys.0) == trace)
                    #expect(headers.first(name: keys.1) == half.spanID)
                }
            }
        }

        /// Who comes, who fails and what becomes of requests.
        @Test func whatHappensIsLogged() async throws {
            let log = Log()
            let (bad, good) = (try await Engine("bad"), try await Engine("good"))
            try await route([], [bad, good], log: log) { address, router in
                bad.conduct(.breaksOff)
                for _ in 0..<8 where log.lines.allSatisfy({ !$0.contains("failed a request") }) {
                    _ = try await post(#"{"prompt": "x"}"#, to: address)
                    try await seen(0, 2, address)
                }
                await router.drain(url: good.url)
                let lines = log.lines
                #expect(lines.contains("info: an instance has joined role=decoder url=\(good.url)"))
                #expect(lines.contains("info: an instance takes requests role=decoder url=\(bad.url)"))
                #expect(
                    lines.contains {
                        $0.hasPrefix("warning: a decoder failed a request") && $0.contains(bad.url)
                    })
                #expect(
                    lines.contains {
                        $0.hasPrefix("debug: a request has ended duration=")
                            && $0.hasSuffix("outcome=answered path=/v1/completions")
                    })
                #expect(lines.contains("info: an instance drains url=\(good.url)"))
            }
        }

        /// One that does not answer whether it is well holds up no look at the others.
        @Test func whoIsSlowHoldsUpNobody() async throws {
            let (slow, quick) = (try await Engine("slow"), try await Engine("quick"))
            try await route([], [quick]) { address, router in
                slow.conduct(.isSilent)
                try await router.add(.decoder, url: slow.url)
                // Its look takes five seconds; meanwhile the other one fails, and is seen to be well again.
                try await Task.sleep(for: .milliseconds(100))
                quick.conduct(.breaksOff)
                let failed = try await post(#"{"prompt": "x"}"#, to: address)
                #expect(failed.status == .badGateway)
                quick.conduct(.answers)
                let begin = ContinuousClock.now
                try await seen(0, 1, address)
                #expect(.now - begin < .seconds(4))
                #expect(try await post(#"{"prompt": "x"}"#, to: address).status == .ok)
            }
        }

        @Test func withoutAPrefillerTheDecoderComputes() async throws {
            let decoder = try await Engine("d")
            try await route([], [decoder]) { address, _ in
                let answer = try await post(#"{"prompt": "x"}"#, to: address)
                #expect(String(buffer: answer.body).contains("data: d"))
                #expect(decoder.bodies == [["prompt": "x"]])
                #expect(try await metric("transfer_engine_router_without_prefiller_total 1", address))
            }
        }

        @Test func aDecoderThatFailsIsReplaced() async throws {
            let engines = [try await Engine("a"), try await Engine("b")]
            for engine in engines { engine.conduct(.breaksOff) }
            try await route([], engines) { address, _ in
                // The first that is asked fails; whoever is asked second answers.
                let answer = try await post(#"{"prompt": "x"}"#, to: address)
                #expect(answer.status == .badGateway)
                #expect(engines.allSatisfy { $0.bodies.count == 1 })
                #expect(String(buffer: answer.body).contains(engines[0].url))
                engines[0].conduct(.answers)
                engines[1].conduct(.answers)
                try await seen(0, 2, address)
                engines[1].conduct(.breaksOff)
                for _ in 0..<2 {
                    #expect(
                        String(buffer: try await post(#"{"prompt": "x"}"#, to: address).body).contains(
                            "data: a"))
                }
                try await eventually {
                    try await metric("transfer_engine_router_requests_total{outcome=\"failed\"} 1", address)
                }
            }
        }

        @Test func whatHasBegunIsNotBegunAgain() async throws {
            let engines = [try await Engine("a"), try await Engine("b")]
            for engine in engines { engine.conduct(.breaksInTheMiddle) }
            try await route([], engines) { address, _ in
                await #expect(throws: HTTPFailure.self) { try await post(#"{"prompt": "x"}"#, to: address) }
                #expect(engines.map(\.bodies.count).reduce(0, +) == 1)
            }
        }

        @Test func anAnswerOfTheEngineIsPassedOnWhateverItSays() async throws {
            let decoder = try await Engine("d")
            decoder.conduct(.refuses)
            try await route([], [decoder]) { address, _ in
                let answer = try await post(#"{"prompt": "x"}"#, to: address)
                #expect(answer.status == .internalServerError && String(buffer: answer.body) == "as told")
                #expect(decoder.bodies.count == 1)
            }
        }

        /// Whoever knows the length may go as soon as it has everything.
        @Test func aWholeAnswerIsAnAnswer() async throws {
            let decoder = try await Engine("d")
            decoder.conduct(.lingers)
            try await route([], [decoder]) { address, _ in
                let answer = try await post(#"{"prompt": "x"}"#, to: address)
                #expect(String(buffer: answer.body) == "whole")
                try await eventually {
                    try await metric("transfer_engine_router_requests_total{outcome=\"answered\"} 1", address)
                }
            }
        }

        @Test func aClientThatGoesEndsBothHalves() async throws {
            let (prefiller, decoder) = (try await Engine("p", address: "QUJD"), try await Engine("d"))
            prefiller.conduct(.hangs)
            decoder.conduct(.hangs)
            try await route([prefiller], [decoder]) { address, _ in
                let asking = Task { try await post(#"{"prompt": "x"}"#, to: address) }
                try await eventually { prefiller.bodies.count == 1 && decoder.bodies.count == 1 }
                #expect(try await metric("transfer_engine_router_requests_open 1", address))
                asking.cancel()
                try await eventually { prefiller.abandoned == 1 && decoder.abandoned == 1 }
                try await eventually {
                    try await metric(
                        "transfer_engine_router_requests_total{outcome=\"abandoned\"} 1", address)
                }
                #expect(try await metric("transfer_engine_router_requests_open 0", address))
                #expect(
                    try await metric(
                        "transfer_engine_router_instance_load_tokens{role=\"decoder\",url=\"\(decoder.url)\"} 0",
                        address))
            }
        }

        @Test func aRequestEndsWithItsDeadline() async throws {
            let decoder = try await Engine("d")
            decoder.conduct(.hangs)
            try await route([], [decoder], { $0.timeout = .milliseconds(100) }) { address, _ in
                #expect(try await post(#"{"prompt": "x"}"#, to: address).status == .badGateway)
                try await eventually { decoder.abandoned == 1 }
            }
        }

        @Test func tooManyRequestsAreRefused() async throws {
            let decoder = try await Engine("d")
            decoder.conduct(.hangs)
            try await route([], [decoder], { $0.requestLimit = 1 }) { address, _ in
                let asking = Task { try await post(#"{"prompt": "x"}"#, to: address) }
                try await eventually { decoder.bodies.count == 1 }
                let answer = try await post(#"{"prompt": "x"}"#, to: address)
                #expect(answer.status == .serviceUnavailable && answer.headers.contains(name: "retry-after"))
                #expect(decoder.bodies.count == 1)
                asking.cancel()
            }
        }

        @Test(arguments: ["", "[]", "{", #"{"a": }"#, #"{"a": 1} 2"#, #"{"a": [}"#, #"{a: 1}"#])
        func malformed(text: String) async throws {
            try await route([], [try await Engine("d")]) { address, _ in
                let answer = try await post(text, to: address)
                #expect(answer.status == .badRequest)
                #expect(String(buffer: answer.body).contains("invalid_request_error"))
            }
        }

        @Test func instancesAreManagedOnlyWhereThatIsAllowed() async throws {
            let (first, second) = (try await Engine("a"), try await Engine("b"))
            defer { second.stop() }
            let row = HTTPRequest(
                .POST, "/instances",
                body: ByteBuffer(string: #"{"role": "decoder", "url": "\#(second.url)/"}"#))
            try await route([], [first]) { address, _ in
                let answer = try await client.fetch(row, from: address, within: .seconds(5))
                #expect(answer.status == .forbidden)
            }
            let third = try await Engine("c")
            try await route([], [third], { $0.isManaged = true }) { address, _ in
                #expect(try await client.fetch(row, from: address, within: .seconds(5)).status == .ok)
                try await seen(0, 2, address)
                // What it has is finished before it is forgotten.
                third.conduct(.hangs)
                second.conduct(.hangs)
                let asking = Task { try await post(#"{"prompt": "x"}"#, to: address) }
                try await eventually { third.bodies.count + second.bodies.count == 1 }
                let busy = third.bodies.isEmpty ? second : third
                let gone = HTTPRequest(
                    .DELETE, "/instances?url=\(busy.url.replacingOccurrences(of: ":", with: "%3A"))")
                #expect(try await client.fetch(gone, from: address, within: .seconds(5)).status == .ok)
                try await seen(0, 1, address)
                #expect(
                    try await metric(
                        "transfer_engine_router_instance_draining{role=\"decoder\",url=\"\(busy.url)\"} 1",
                        address))
                asking.cancel()
                try await eventually {
                    let rows = try await client.fetch(
                        HTTPRequest(.GET, "/instances"), from: address, within: .seconds(5))
                    return !String(buffer: rows.body).contains(
                        busy.url)
                }
                let bad = HTTPRequest(
                    .POST, "/instances", body: ByteBuffer(string: #"{"role": "x", "url": "y"}"#))
                #expect(try await client.fetch(bad, from: address, within: .seconds(5)).status == .badRequest)
            }
        }

        @Test func entriesOfADirectoryComeAndGo() async throws {
            let (first, second) = (try await Engine("a"), try await Engine("b"))
            defer { second.stop() }
            let engine = EngineAddress(
                name: "e",
                landing: RemoteRegion(
                    engine: EngineID(rawValue: 7), device: 0, index: 1, generation: 2, access: .remoteWrite,
                    length: 0,
                    base: 4096, secret: 3, nics: []))
            let directory = StaticDirectory()
            try await route([], [first], directory: directory) { address, _ in
                try await directory.announce(
                    DirectoryEntry(name: "second", role: .decoder, address: engine, url: second.url))
                try await directory.announce(DirectoryEntry(name: "without", role: .decoder, address: engine))
                try await seen(0, 2, address)
                try await directory.withdraw("second")
                try await seen(0, 1, address)
            }
        }

        @Test func nobodyIsThere() async throws {
            let engine = try await Engine("a")
            try await route([], [engine]) { address, _ in
                engine.stop()
                try await eventually {
                    try await client.fetch(HTTPRequest(.GET, "/healthz"), from: address, within: .seconds(5))
                        .status
                        == .serviceUnavailable
                }
                let answer = try await post(#"{"prompt": "x"}"#, to: address)
                #expect(answer.status == .serviceUnavailable)
                #expect(try await post("{}", to: address, path: "/v1/nothing").status == .notFound)
            }
        }
    }
#endif
