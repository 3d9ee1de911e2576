internal import Platform
internal import Synchronization
internal import TransferCore

/// The producer's end of a ring.
struct OutgoingRing: ~Copyable {
    let mapping: SharedMapping
    private let ring: ByteRing
    private var tail: UInt64 = 0
    private var head: UInt64 = 0

    /// A record whose fate is not known yet.
    struct Pending {
        var record: UInt64
        var end: UInt64
        var context: UInt64
        var isMessage: Bool
    }
    private static let pendingCapacity = 4096
    private let pending = Table(
        repeating: Pending(record: 0, end: 0, context: 0, isMessage: false), count: Self.pendingCapacity)
    private var pendingFirst = 0
    private var pendingEnd = 0
    /// Whether the consumer is gone: what it has not consumed it never will.
    var isOver = false

    init(_ mapping: SharedMapping) {
        self.mapping = mapping
        ring = unsafe ByteRing(base: mapping.base)
    }

    var isEmpty: Bool { pendingFirst == pendingEnd }

    /// The contexts of records whose fate is not known yet.
    var waiting: [UInt64] {
        (pendingFirst..<pendingEnd).map { pending[$0 & (Self.pendingCapacity - 1)].context }
    }

    /// Appends a record; false when the ring is full.
    mutating func append(_ record: FrameRecord, _ bytes: UnsafeRawBufferPointer, context: UInt64) -> Bool {
        guard pendingEnd - pendingFirst < Self.pendingCapacity else { return false }
        // Only what has been collected may be overwritten: verdicts lie in the records.
        guard
            let (position, end) = unsafe ring.append(record, bytes, at: tail, limit: head + ByteRing.capacity)
        else { return false }
        pending[pendingEnd & (Self.pendingCapacity - 1)] = Pending(
            record: position, end: end, context: context, isMessage: record.kind == FrameRecord.Kind.message)
        pendingEnd += 1
        tail = end
        ring.ends.tail.store(tail, ordering: .sequentiallyConsistent)  // pairs with the load in drain
        return true
    }

    /// Collects the verdicts on records that the consumer is through with.
    mutating func collect(into completions: UnsafeMutableBufferPointer<Completion>, _ count: inout Int) {
        guard !isEmpty else { return }
        // pairs with the store in IncomingRing.drain
        let consumed = ring.ends.head.load(ordering: .acquiring)
        while pendingFirst < pendingEnd, count < completions.count {
            let next = pending[pendingFirst & (Self.pendingCapacity - 1)]
            let isThrough = next.end <= consumed
            guard isThrough || isOver else { break }
            let status: WorkStatus =
                !isThrough ? .peerLost : next.isMessage ? .success : ring.verdict(at: next.record)
            unsafe completions[count] = Completion(context: next.context, count: 1, status: status)
            count += 1
            pendingFirst += 1
            head = next.end
        }
    }
}

/// The consumer's end of a ring.
struct IncomingRing {
    let mapping: SharedMapping
    private let ring: ByteRing
    private var head: UInt64 = 0
    /// False once the producer wrote something that is no record: nothing of it is believed any more.
    private var isSound = true
    /// Whether the producer has gone.
    var hasEnded = false

    init(_ mapping: SharedMapping) {
        self.mapping = mapping
        ring = unsafe ByteRing(base: mapping.base)
    }

    var isEmpty: Bool {
        // pairs with the store in append
        !isSound || ring.ends.tail.load(ordering: .acquiring) == head && published == head
    }
    private var published: UInt64 { ring.ends.head.load(ordering: .relaxed) }

    /// Releases what the last call returned, carries out writes and returns messages until the space is used up.
    mutating func drain(
        into completions: UnsafeMutableBufferPointer<Completion>, _ count: inout Int, page: TargetPage
    ) {
        guard isSound else { return }
        release()
        let tail = ring.ends.tail.load(ordering: .acquiring)  // pairs with the store in append
        guard tail >= head, tail - head <= ByteRing.capacity else {
            isSound = false
            return
        }
        var holdsMessage = false
        while head < tail, count < completions.count {
            guard let (record, next) = ring.record(at: head, tail: tail) else {
                isSound = false
                return
            }
            let bytes = unsafe ring.bytes(of: record, at: head)
            if record.kind == FrameRecord.Kind.write {
                ring.leave(unsafe record.apply(bytes, to: page), at: head)
            } else if record.kind == FrameRecord.Kind.message {
                unsafe completions[count] = Completion(message: bytes, from: record.sender)
                count += 1
                holdsMessage = true
            }
            head = next
        }
        if !holdsMessage { release() }
    }

    private func release() {
        // pairs with the load in collect
        if published != head { ring.ends.head.store(head, ordering: .releasing) }
    }
}
