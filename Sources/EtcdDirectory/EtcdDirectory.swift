internal import Foundation
internal import FoundationNetworking
internal import Synchronization
public import TransferDirectory
public import TransferEngine

/// A directory in etcd (3.4 and later), over the JSON gateway that every etcd server has.
///
/// An entry lives as long as its lease, which a task of this object renews: a process that ends disappears by itself. When
/// etcd is lost and comes back, even empty, entries are announced again. Meanwhile `entries` fails and `changes` says
/// nothing: peers that know each other go on.
public final class EtcdDirectory: TransferDirectory {
    private let endpoint: String
    private let prefix: String
    private let seconds: Int
    private let session: URLSession
    private let kept = Mutex<[String: Kept]>([:])

    /// An entry that is kept alive.
    private struct Kept {
        var entry: DirectoryEntry
        var task: Task<Void, Never>
        var lease: String
    }

    /// Uses an etcd server.
    /// - Parameters:
    ///   - endpoint: For example `http://127.0.0.1:2379`.
    ///   - prefix: Before the names of all keys.
    ///   - leaseSeconds: How long an entry outlives its process, at least 2.
    public init(endpoint: String, prefix: String = "/transfer-engine/", leaseSeconds: Int = 5) {
        self.endpoint = endpoint
        self.prefix = prefix
        seconds = max(2, leaseSeconds)
        let configuration = URLSessionConfiguration.ephemeral
        configuration.timeoutIntervalForRequest = 3
        session = URLSession(configuration: configuration)
    }

    deinit {
        kept.withLock { kept in
            for entry in kept.values { entry.task.cancel() }
        }
        session.invalidateAndCancel()
    }

    /// See `TransferDirectory`. The entry is renewed until it is withdrawn or this object goes.
    public func announce(_ entry: DirectoryEntry) async throws(TransferError) {
        try await withdraw(entry.name)
        let lease = try await put(entry)
        let pause = Duration.milliseconds(seconds * 1000 / 3)
        let task = Task { [weak self] in
            while !Task.isCancelled {
                try? await Task.sleep(for: pause)
                if Task.isCancelled { return }
                await self?.renew(entry.name)
            }
        }
        kept.withLock { $0[entry.name] = Kept(entry: entry, task: task, lease: lease) }
    }

    /// See `TransferDirectory`.
    public func withdraw(_ name: String) async throws(TransferError) {
        let old = kept.withLock { $0.removeValue(forKey: name) }
        old?.task.cancel()
        _ = try await call("kv/deleterange", ["key": encode(prefix + name)])
    }

    /// See `TransferDirectory`. Values that are no entries are passed over.
    public func entries() async throws(TransferError) -> [DirectoryEntry] {
        // Up to the first key that does not begin with the prefix.
        var end = Array(prefix.utf8)
        end[end.count - 1] += 1
        let answer = try await call(
            "kv/range", ["key": encode(prefix), "range_end": Data(end).base64EncodedString()])
        let values = (answer["kvs"] as? [[String: Any]] ?? []).compactMap { $0["value"] as? String }
        return values.compactMap { value in
            guard let data = Data(base64Encoded: value) else { return nil }
            return try? DirectoryEntry(line: String(decoding: data, as: UTF8.self))
        }.sorted { $0.name < $1.name }
    }

    /// Writes an entry under a new lease, and returns the lease.
    private func put(_ entry: DirectoryEntry) async throws(TransferError) -> String {
        let granted = try await call("lease/grant", ["TTL": seconds])
        guard let lease = granted["ID"] as? String else {
            throw TransferError(.unavailable, "\(endpoint) gives no lease; is it etcd?")
        }
        _ = try await call(
            "kv/put", ["key": encode(prefix + entry.name), "value": encode(entry.line), "lease": lease])
        return lease
    }

    /// Keeps a lease alive, or writes the entry again when the lease is gone.
    private func renew(_ name: String) async {
        guard let known = kept.withLock({ $0[name].map { ($0.entry, $0.lease) } }) else { return }
        do throws(TransferError) {
            let answer = try await call("lease/keepalive", ["ID": known.1])
            let result = answer["result"] as? [String: Any]
            if let left = result?["TTL"] as? String, left != "0" { return }
            let lease = try await put(known.0)
            kept.withLock { $0[name]?.lease = lease }
        } catch {
            // Not reached: it is tried again after the next pause.
        }
    }

    private func encode(_ text: String) -> String { Data(text.utf8).base64EncodedString() }

    private func call(_ path: String, _ body: [String: Any]) async throws(TransferError) -> [String: Any] {
        guard let url = URL(string: "\(endpoint)/v3/\(path)") else {
            throw TransferError(
                .invalidArgument, "'\(endpoint)' is no address; for example http://127.0.0.1:2379")
        }
        var request = URLRequest(url: url)
        request.httpMethod = "POST"
        do {
            request.httpBody = try JSONSerialization.data(withJSONObject: body)
            let (data, response) = try await session.data(for: request)
            guard (response as? HTTPURLResponse)?.statusCode == 200,
                let answer = try JSONSerialization.jsonObject(with: data) as? [String: Any]
            else {
                throw TransferError(.unavailable, String(decoding: data.prefix(200), as: UTF8.self))
            }
            return answer
        } catch {
            throw TransferError(.unavailable, "etcd at \(endpoint), \(path): \(error.localizedDescription)")
        }
    }
}
