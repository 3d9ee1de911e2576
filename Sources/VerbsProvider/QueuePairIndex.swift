internal import TransferCore

/// Finds a connection by the number of one of its queue pairs.
struct QueuePairIndex: ~Copyable {
    /// Which of a connection's queue pairs.
    enum Kind: Int { case write, message }

    private static let buckets = 16384
    private let heads = Table<Int32>(repeating: -1, count: buckets)
    private let numbers = Table<UInt32>(repeating: 0, count: 2 * Tuning.connections)
    private let next = Table<Int32>(repeating: -1, count: 2 * Tuning.connections)

    func insert(_ number: UInt32, connection: Int, _ kind: Kind) {
        let entry = 2 * connection + kind.rawValue
        let bucket = Int(number) & (Self.buckets - 1)
        numbers[entry] = number
        next[entry] = heads[bucket]
        heads[bucket] = Int32(entry)
    }

    func remove(_ number: UInt32, connection: Int, _ kind: Kind) {
        let entry = Int32(2 * connection + kind.rawValue)
        let bucket = Int(number) & (Self.buckets - 1)
        if heads[bucket] == entry {
            heads[bucket] = next[Int(entry)]
            return
        }
        var position = heads[bucket]
        while position >= 0 {
            if next[Int(position)] == entry {
                next[Int(position)] = next[Int(entry)]
                return
            }
            position = next[Int(position)]
        }
    }

    /// The connection, or nil for a number that is not in use.
    @inline(__always) func find(_ number: UInt32) -> Int? {
        var position = heads[Int(number) & (Self.buckets - 1)]
        while position >= 0 {
            if numbers[Int(position)] == number { return Int(position) >> 1 }
            position = next[Int(position)]
        }
        return nil
    }
}
