#if HTTP
    internal import FoundationEssentials
    internal import HTTP
    internal import NIOHTTP1
    internal import NIOCore
    internal import Synchronization
    public import TransferDirectory
    public import TransferEngine

    /// A directory in etcd (3.4 or newer), through its JSON gateway.
    ///
    /// What is announced hangs on a lease that this object keeps alive, so that the entries of a process that dies, or is cut
    /// off, vanish after `timeToLive`. `changes` follows a watch. Nobody needs etcd for what is already running: while it
    /// cannot be reached nothing changes, and when it comes back, even without its data, everybody announces himself again.
    ///
    /// Plain HTTP only, without users: keep etcd's client port inside of the cluster's own network.
    public final class EtcdDirectory: TransferDirectory {
        private struct State {
            var lease: String?
            var announced: [String: DirectoryEntry] = [:]
            var keeper: Task<Void, Never>?
            var last: Task<Void, any Error>?
            var preferred = 0
        }

        private let endpoints: [HTTPAddress]
        private let prefix: String
        private let timeToLive: Duration
        private let state = Mutex(State())
        private let client: HTTPClient

        /// Connects to nobody yet.
        /// - Parameters:
        ///   - endpoints: `http://HOST:2379` of each member; the first that answers is used.
        ///   - prefix: What all keys begin with. Clusters that share an etcd need one each.
        ///   - timeToLive: How long after its last sign of life a process is taken to be gone; at least 2 seconds.
        /// - Throws: `invalidArgument`.
        public init(
            endpoints: [String], prefix: String = "/transfer-engine/", timeToLive: Duration = .seconds(10)
        ) throws(TransferError) {
            guard !endpoints.isEmpty, !prefix.isEmpty, timeToLive >= .seconds(2) else {
                throw TransferError(
                    .invalidArgument,
                    "a directory in etcd has an endpoint, a prefix, and entries that live for 2 s or more")
            }
            do {
                self.endpoints = try endpoints.map { text throws(HTTPFailure) in try HTTPAddress(text) }
            } catch {
                throw TransferError(.invalidArgument, "etcd: \(error)")
            }
            self.prefix = prefix
            self.timeToLive = timeToLive
            client = HTTPClient(connectTimeout: min(timeToLive / 4, .seconds(5)))
        }

        /// Stops keeping the entries alive: they vanish after `timeToLive`. `close` takes them out at once.
        deinit { state.withLock { $0.keeper?.cancel() } }

        /// See `TransferDirectory`. From now on the entry is kept alive.
        public func announce(_ entry: DirectoryEntry) async throws(TransferError) {
            guard (try? DirectoryEntry(line: entry.line)) == entry else {
                throw TransferError(
                    .invalidArgument,
                    "'\(entry.name)' is no name: names and URLs have no spaces, and names are not empty")
            }
            let before = state.withLock { $0.announced.updateValue(entry, forKey: entry.name) }
            do {
                try await inTurn { [self] in
                    guard let lease = try await keptLease() else { return }
                    try await put(entry, lease)
                }
            } catch {
                // The caller may try again or go on; either way nothing is announced behind its back.
                state.withLock { $0.announced[entry.name] = before }
                throw error
            }
            state.withLock {
                guard $0.keeper == nil else { return }
                let pause = timeToLive / 3
                $0.keeper = Task { [weak self] in
                    while !Task.isCancelled {
                        try? await Task.sleep(for: pause)
                        try? await self?.inTurn { [weak self] in _ = try await self?.keptLease() }
                        if self == nil { return }
                    }
                }
            }
        }

        /// See `TransferDirectory`.
        public func withdraw(_ name: String) async throws(TransferError) {
            state.withLock { $0.announced[name] = nil }
            let _: EtcdNothing = try await call("/v3/kv/deleterange", EtcdDeleteRequest(key: key(name)))
        }

        /// Takes out all that this object has announced.
        /// - Throws: `unavailable`; then the entries vanish by themselves after `timeToLive`.
        public func close() async throws(TransferError) {
            let (keeper, lease) = state.withLock { state in
                defer { state = State() }
                return (state.keeper, state.lease)
            }
            keeper?.cancel()
            guard let lease else { return }
            let _: EtcdNothing = try await call("/v3/lease/revoke", EtcdLeaseRequest(ID: lease))
        }

        /// See `TransferDirectory`. Values that are no entries are passed over.
        public func entries() async throws(TransferError) -> [DirectoryEntry] {
            (try await range().kvs ?? []).compactMap { $0.entry(prefix)?.entry }.sorted { $0.name < $1.name }
        }

        /// See `TransferDirectory`. What is put or deleted is told at once; `interval` is the pause before etcd is asked again
        /// after it was not there. An entry that is missing when etcd comes back has `timeToLive` to announce itself again
        /// before it is told to have left.
        public func changes(every interval: Duration) -> AsyncStream<DirectoryChange> {
            AsyncStream { continuation in
                let follower = EtcdFollower(prefix: prefix, grace: timeToLive, continuation)
                let task = Task {
                    while !Task.isCancelled {
                        if let answer = try? await range() {
                            await follower.relist(answer)
                            // It ends after `timeToLive` also when all is well: connections may die without saying so.
                            try? await watch(after: answer.header, follower)
                        }
                        try? await Task.sleep(for: interval)
                    }
                    continuation.finish()
                }
                continuation.onTermination = { _ in task.cancel() }
            }
        }

        private func watch(after header: EtcdHeader, _ follower: EtcdFollower) async throws {
            let next = (header.revision.flatMap { Int64($0) } ?? 0) + 1
            let request = EtcdWatchRequest(
                create_request: .init(key: key(""), range_end: rangeEnd, start_revision: "\(next)"))
            try await client.stream(
                post("/v3/watch", request), to: endpoints[preferred], within: timeToLive,
                head: {
                    guard $0.status == .ok else { throw HTTPFailure("etcd refuses the watch: \($0.status)") }
                }, part: { try await follower.receive(Array($0.readableBytesView)) })
        }

        // The lease

        /// The lease, kept alive. Nil when it is a new one, because etcd has lost the one before: all entries hang on it then.
        private func keptLease() async throws(TransferError) -> String? {
            if let known = state.withLock({ $0.lease }), try await isAlive(known) { return known }
            // Known only when everything hangs on it: whatever fails is done again.
            state.withLock { $0.lease = nil }
            let new = try await grantLease()
            for entry in state.withLock({ Array($0.announced.values) }) {
                try await put(entry, new)
                if state.withLock({ $0.announced[entry.name] == nil }) { try await withdraw(entry.name) }
            }
            state.withLock { $0.lease = new }
            return nil
        }

        /// One after the other: of two that renew the lease at once, one would leave its entries on the one that ends.
        private func inTurn(_ work: @escaping @Sendable () async throws -> Void) async throws(TransferError) {
            let task = state.withLock { state in
                let before = state.last
                let task = Task {
                    _ = await before?.result
                    try await work()
                }
                state.last = task
                return task
            }
            do {
                try await task.value
            } catch {
                throw error as? TransferError ?? TransferError(.unavailable, "etcd: \(error)")
            }
        }

        private func isAlive(_ lease: String) async throws(TransferError) -> Bool {
            let answer: EtcdKeepAliveResponse = try await call(
                "/v3/lease/keepalive", EtcdLeaseRequest(ID: lease))
            return (answer.result?.TTL.flatMap { Int($0) } ?? 0) > 0
        }

        private func grantLease() async throws(TransferError) -> String {
            let seconds = timeToLive.components.seconds + (timeToLive.components.attoseconds > 0 ? 1 : 0)
            let answer: EtcdLeaseGrantResponse = try await call(
                "/v3/lease/grant", EtcdLeaseGrantRequest(TTL: "\(seconds)"))
            guard let new = answer.ID else { throw TransferError(.unavailable, "etcd granted no lease") }
            return new
        }

        // Keys

        private func key(_ name: String) -> Data { Data((prefix + name).utf8) }

        /// The first key behind all that begin with the prefix.
        private var rangeEnd: Data {
            var end = key("")
            while let last = end.popLast() {
                if last < .max { return end + [last + 1] }
            }
            return Data([0])
        }

        private func range() async throws(TransferError) -> EtcdRangeResponse {
            try await call("/v3/kv/range", EtcdRangeRequest(key: key(""), range_end: rangeEnd))
        }

        private func put(_ entry: DirectoryEntry, _ lease: String) async throws(TransferError) {
            let _: EtcdNothing = try await call(
                "/v3/kv/put", EtcdPutRequest(key: key(entry.name), value: Data(entry.line.utf8), lease: lease)
            )
        }

        // Calls

        /// The member that answered last.
        private var preferred: Int { state.withLock { $0.preferred } }

        private func post(_ path: String, _ message: some Encodable) throws -> HTTPRequest {
            HTTPRequest(
                .POST, path, headers: ["Content-Type": "application/json"],
                body: ByteBuffer(bytes: try JSONEncoder().encode(message)))
        }

        /// Asks the members in turn, beginning with the one that answered last.
        private func call<Answer: Decodable & Sendable>(
            _ path: String, _ message: some Encodable
        ) async throws(TransferError) -> Answer {
            var failure = ""
            let first = preferred
            for index in endpoints.indices.map({ ($0 + first) % endpoints.count }) {
                do {
                    let answer = try await client.fetch(
                        try post(path, message), from: endpoints[index], within: timeToLive / 3)
                    let data = Data(answer.body.readableBytesView)
                    if answer.status == .ok {
                        state.withLock { $0.preferred = index }
                        return try JSONDecoder().decode(Answer.self, from: data)
                    }
                    let said = try? JSONDecoder().decode(EtcdFailure.self, from: data)
                    failure = "\(answer.status) \(said?.error ?? said?.message ?? "")"
                } catch {
                    failure = "\(error)"
                }
            }
            throw TransferError(
                .unavailable,
                "etcd: \(failure); see that it runs at \(endpoints.map(\.text).joined(separator: ", "))")
        }
    }
#endif
