internal import Synchronization
public import TransferEngine

/// A directory inside of one process: for tests, and where the launcher tells everybody who is there.
public final class StaticDirectory: TransferDirectory {
    private let known: Mutex<[String: DirectoryEntry]>

    /// Begins with some entries.
    public init(_ entries: [DirectoryEntry] = []) {
        known = Mutex(Dictionary(entries.map { ($0.name, $0) }, uniquingKeysWith: { $1 }))
    }

    /// See `TransferDirectory`.
    public func announce(_ entry: DirectoryEntry) async throws(TransferError) {
        known.withLock { $0[entry.name] = entry }
    }

    /// See `TransferDirectory`.
    public func withdraw(_ name: String) async throws(TransferError) { known.withLock { $0[name] = nil } }

    /// See `TransferDirectory`.
    public func entries() async throws(TransferError) -> [DirectoryEntry] {
        known.withLock { $0.values.sorted { $0.name < $1.name } }
    }
}
