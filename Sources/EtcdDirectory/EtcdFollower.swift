#if HTTP
    internal import FoundationEssentials
    internal import TransferDirectory

    /// What a process believes of etcd's entries, and what it tells of them.
    struct EtcdView {
        /// How long an entry that was missing in a list may announce itself again.
        let grace: Duration
        /// What has been told, by name.
        private var told: [String: DirectoryEntry] = [:]
        /// Since when entries are missing.
        private var missing: [String: ContinuousClock.Instant] = [:]

        init(grace: Duration) { self.grace = grace }

        /// A whole list, after a time in which nothing was seen.
        mutating func replace(_ list: [DirectoryEntry], at now: ContinuousClock.Instant) -> DirectoryChange {
            let old = Array(told.values)
            let new = Dictionary(list.map { ($0.name, $0) }, uniquingKeysWith: { $1 })
            missing = missing.filter { new[$0.key] == nil }
            for name in told.keys where new[name] == nil {
                if now - (missing[name] ?? now) >= grace {
                    told[name] = nil
                    missing[name] = nil
                } else if missing[name] == nil {
                    missing[name] = now
                }
            }
            told.merge(new) { $1 }
            return DirectoryChange(from: old, to: Array(told.values))
        }

        /// An entry was put, or taken out.
        mutating func update(_ name: String, to entry: DirectoryEntry?) -> DirectoryChange {
            let old = told[name]
            told[name] = entry
            missing[name] = nil
            return DirectoryChange(from: old.map { [$0] } ?? [], to: entry.map { [$0] } ?? [])
        }
    }

    /// Reads lists and watches, and yields what has changed.
    actor EtcdFollower {
        private let prefix: String
        private let continuation: AsyncStream<DirectoryChange>.Continuation
        private var view: EtcdView
        /// The beginning of a message that is not complete.
        private var rest: [UInt8] = []

        init(prefix: String, grace: Duration, _ continuation: AsyncStream<DirectoryChange>.Continuation) {
            self.prefix = prefix
            self.continuation = continuation
            view = EtcdView(grace: grace)
        }

        func relist(_ answer: EtcdRangeResponse) {
            rest = []
            tell(view.replace((answer.kvs ?? []).compactMap { $0.entry(prefix)?.entry }, at: .now))
        }

        /// A piece of a watch: messages in JSON, each with a line end.
        /// - Throws: When etcd ends the watch, or says something else.
        func receive(_ bytes: [UInt8]) throws {
            rest += bytes
            while let end = rest.firstIndex(of: 10) {
                let message = try JSONDecoder().decode(EtcdWatchResponse.self, from: Data(rest[..<end]))
                rest.removeFirst(end + 1)
                // Another list is needed: what was to be watched from has been compacted away, say.
                guard let result = message.result, result.canceled != true else { throw CancellationError() }
                for event in result.events ?? [] {
                    guard let (name, entry) = event.kv.entry(prefix) else { continue }
                    tell(view.update(name, to: event.type == "DELETE" ? nil : entry))
                }
            }
        }

        private func tell(_ change: DirectoryChange) {
            guard !change.joined.isEmpty || !change.left.isEmpty else { return }
            continuation.yield(change)
        }
    }

    extension EtcdKeyValue {
        /// The name behind the prefix, and the entry; nil for what nobody of ours has put.
        func entry(_ prefix: String) -> (name: String, entry: DirectoryEntry?)? {
            let key = String(decoding: key, as: UTF8.self)
            guard key.hasPrefix(prefix) else { return nil }
            let name = String(key.dropFirst(prefix.count))
            let entry = value.flatMap { try? DirectoryEntry(line: String(decoding: $0, as: UTF8.self)) }
            return (name, entry?.name == name ? entry : nil)
        }
    }
#endif
