internal import TransferCore

/// What had been counted over connections that are closed, for peers that ask.
struct ClosedConnections: ~Copyable {
    struct Entry {
        var engine: UInt64 = 0
        /// What the peer calls the connection; 0 when it was never told us.
        var identity: UInt64 = 0
        /// Immediates that came.
        var counted: UInt64 = 0
    }

    private let entries = Table(repeating: Entry(), count: 512)
    private var next = 0
    private var isFull = false

    mutating func note(_ entry: Entry) {
        guard entry.identity != 0 else { return }
        entries[next] = entry
        next = (next + 1) % entries.count
        if next == 0 { isFull = true }
    }

    /// How much was counted: nothing over a connection that was never made, nil when it may have been forgotten.
    func counted(_ identity: UInt64, of engine: UInt64) -> UInt64? {
        for index in 0..<entries.count
        where entries[index].identity == identity && entries[index].engine == engine {
            return entries[index].counted
        }
        return isFull ? nil : 0
    }
}
