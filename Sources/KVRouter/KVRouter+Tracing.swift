#if HTTP
    internal import HTTP
    internal import Instrumentation
    internal import NIOHTTP1
    internal import ServiceContextModule
    internal import Tracing

    // Spans: what somebody who follows a request over services sees of the router. Without a tracer nothing happens.
    extension KVRouter {
        /// A request of a client's, within whatever the client traces.
        func span<Result: Sendable>(
            of request: HTTPRequest, _ body: @Sendable () async throws -> Result
        ) async throws -> Result {
            var context = ServiceContext.current ?? .topLevel
            InstrumentationSystem.instrument.extract(request.headers, into: &context, using: HeaderFields())
            return try await withSpan("\(request.method) \(request.path)", context: context, ofKind: .server)
            { _ in
                try await body()
            }
        }

        /// One half of it, at an instance, which is told in headers what it is a part of.
        func half<Result: Sendable>(
            _ name: String, _ url: String, _ body: @Sendable (HTTPHeaders) async throws -> Result
        ) async throws -> Result {
            try await withSpan(name, ofKind: .client) { span in
                span.attributes["server.address"] = url
                var headers: HTTPHeaders = [:]
                InstrumentationSystem.instrument.inject(span.context, into: &headers, using: HeaderFields())
                return try await body(headers)
            }
        }
    }

    private struct HeaderFields: Extractor, Injector {
        func extract(key: String, from carrier: HTTPHeaders) -> String? { carrier.first(name: key) }

        func inject(_ value: String, forKey key: String, into carrier: inout HTTPHeaders) {
            carrier.replaceOrAdd(name: key, value: value)
        }
    }

    extension HTTPRequest {
        /// The request with more headers.
        func with(_ headers: HTTPHeaders) -> HTTPRequest {
            var request = self
            request.headers.add(contentsOf: headers)
            return request
        }
    }
#endif
