internal import Synchronization

/// Some immediates that belong to one use: one request of one peer, one step of one collective.
public struct ImmediateLease: Hashable, Sendable {
    /// The first one; the others follow.
    public let first: Immediate
    /// How many.
    public let count: Int
    /// Which use of these immediates it is; no two leases have the same one.
    public let epoch: UInt64

    /// The immediates, by their number in the lease. Traps outside of `0..<count`.
    public subscript(number: Int) -> Immediate {
        precondition(number >= 0 && number < count, "a lease of \(count) immediates has no number \(number)")
        return Immediate(truncatingIfNeeded: first.value + UInt32(number))
    }
}

/// Hands out immediates so that no two uses share one while anything of the older use can still arrive.
///
/// Leases are cut from the upper half of the 30 bits; the lower half is the caller's own. A lease that has ended is *closed*: its
/// counters hold a number far below zero, so that what arrives late is counted nowhere and is seen. It is handed out again
/// only after its old user was proven quiet, and as late as possible: the oldest first.
///
/// A value type without a thread or a clock of its own; whoever owns it serialises the calls. Arrivals go on meanwhile.
public struct ImmediateLeases: ~Copyable {
    /// Immediates from here on are leased.
    public static let begin: UInt32 = 1 << 29
    /// Immediates in all.
    public static let capacity = 1 << 29
    /// Most immediates of one lease.
    public static let longest = 1 << 16
    /// What the counter of a closed immediate holds, and what it never comes near by arrivals.
    static let closed = Int64.min / 2

    private enum State { case open, quarantined }
    private var states: [ImmediateLease: State] = [:]
    /// Ranges that nobody uses, the oldest first, by their length.
    private var returned: [Int: [UInt32]] = [:]
    private var firstReturned: [Int: Int] = [:]
    private var unused = begin
    private var epoch: UInt64 = 0

    /// The first immediate that does not exist.
    private let limit: UInt32

    /// All immediates are there.
    public init() { self.init(capacity: Self.capacity) }

    /// Fewer, so that tests see them come back.
    init(capacity: Int) { limit = Self.begin + UInt32(capacity) }

    /// Leases in use.
    public var openCount: Int { states.values.count { $0 == .open } }
    /// Leases that have ended and wait for the proof that their user is quiet.
    public var quarantinedCount: Int { states.values.count { $0 == .quarantined } }

    /// Hands out `count` immediates whose counters are 0.
    ///
    /// - Throws: `invalidArgument` outside of 1 to `longest`, `limitReached` when all are in use.
    /// - Complexity: O(count).
    public mutating func lease(count: Int, page: TargetPage) throws(TransferError) -> ImmediateLease {
        guard count >= 1, count <= Self.longest else {
            throw TransferError(.invalidArgument, "a lease of \(count) immediates; 1 to \(Self.longest)")
        }
        let first: UInt32
        // Fresh ones while there are some: the later an immediate comes back, the better.
        if unused + UInt32(count) <= limit {
            first = unused
            unused += UInt32(count)
        } else if let list = returned[count], firstReturned[count, default: 0] < list.count {
            let place = firstReturned[count, default: 0]
            first = list[place]
            firstReturned[count] = place + 1
            if place + 1 == list.count {
                returned[count] = []
                firstReturned[count] = 0
            }
        } else {
            throw TransferError(
                .limitReached,
                "no \(count) immediates are left: \(states.count) leases are open or in quarantine; end or reclaim some"
            )
        }
        epoch += 1
        let lease = ImmediateLease(
            first: Immediate(truncatingIfNeeded: first), count: count, epoch: epoch)
        for number in 0..<count { _ = page.open(lease[number].value) }
        states[lease] = .open
        return lease
    }

    /// Ends a lease. With `isQuiet`, because all that was expected has been counted or the sender's cancellation was
    /// `quiescent`, the immediates can be handed out again; without, they stay in quarantine until `reclaim`.
    /// - Throws: `invalidArgument` for a lease that has ended.
    /// - Complexity: O(count).
    public mutating func end(
        _ lease: ImmediateLease, isQuiet: Bool, page: TargetPage
    ) throws(TransferError) {
        guard states[lease] == .open else { throw Self.unknown(lease) }
        for number in 0..<lease.count { page.close(lease[number].value) }
        states[lease] = .quarantined
        if isQuiet { _ = try reclaim(lease, page: page) }
    }

    /// How many arrivals came after a lease in quarantine had ended.
    /// - Throws: `invalidArgument` for a lease that is not in quarantine.
    public func lateArrivals(of lease: ImmediateLease, page: TargetPage) throws(TransferError) -> Int {
        guard states[lease] == .quarantined else { throw Self.unknown(lease) }
        return (0..<lease.count).reduce(0) { $0 + page.late(lease[$1].value) }
    }

    /// Takes a lease out of quarantine, because its old user is proven quiet: the peer said so, or the region was revoked.
    /// Returns how many arrivals came after its end; they have been counted nowhere.
    /// - Throws: `invalidArgument` for a lease that is not in quarantine.
    public mutating func reclaim(_ lease: ImmediateLease, page: TargetPage) throws(TransferError) -> Int {
        let late = try lateArrivals(of: lease, page: page)
        states[lease] = nil
        returned[lease.count, default: []].append(lease.first.value)
        return late
    }

    private static func unknown(_ lease: ImmediateLease) -> TransferError {
        TransferError(
            .invalidArgument,
            "lease \(lease.epoch) of immediates from \(lease.first) is not in that state: it has ended")
    }
}

extension TargetPage {
    /// Lets nothing be counted any more. What had been counted and not consumed is forgotten.
    func close(_ immediate: UInt32) {
        self[counter: immediate].store(ImmediateLeases.closed, ordering: .sequentiallyConsistent)
    }

    /// Begins to count from 0. Returns the arrivals since it was closed.
    func open(_ immediate: UInt32) -> Int {
        let old = self[counter: immediate].exchange(0, ordering: .sequentiallyConsistent)
        return old < 0 ? Int((old - ImmediateLeases.closed) >> 3) : 0
    }

    /// Arrivals since it was closed, counting parts of one as one.
    func late(_ immediate: UInt32) -> Int {
        // pairs with the add in add(eighths:to:)
        let value = self[counter: immediate].load(ordering: .acquiring)
        return value < 0 ? Int((value - ImmediateLeases.closed + 7) >> 3) : 0
    }
}
