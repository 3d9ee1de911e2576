import TransferCore

/// What both sides call everything that one NIC sent to another in one epoch, in `Delivery.unsettled`: frames or counted writes.
///
/// A record's ordinal is the number of its frame, `recordBits` bits up, plus its place there; a write's is its number.
struct FabricConnection: Hashable {
    var rawValue: UInt64

    /// A frame has fewer records.
    static let recordBits: UInt64 = 10
    private static let epochBits: UInt64 = 29

    /// - Parameters:
    ///   - nic: The sender's NIC, as `DomainState.identity` tells it.
    ///   - isWrites: Whether ordinals are those of counted writes.
    ///   - needsFence: Whether the receiver must see to it that no data lands any more; without, it suffices that it counts none.
    ///   - isReverse: Whether it was sent from the sender's reverse endpoint.
    init(nic: UInt32, epoch: UInt32, isWrites: Bool, needsFence: Bool, isReverse: Bool) {
        rawValue =
            UInt64(nic) << 32 | UInt64(epoch & (1 << Self.epochBits - 1)) << 3 | (isWrites ? 1 : 0)
            | (needsFence ? 2 : 0) | (isReverse ? 4 : 0)
    }

    init(rawValue: UInt64) { self.rawValue = rawValue }

    var nic: UInt32 { UInt32(truncatingIfNeeded: rawValue >> 32) }
    var isWrites: Bool { rawValue & 1 != 0 }
    var needsFence: Bool { rawValue & 2 != 0 }
    var isReverse: Bool { rawValue & 4 != 0 }
    /// How many epochs it is ahead of `epoch`, of which it carries the lower bits.
    func ahead(of epoch: UInt32) -> Int32 {
        Int32(bitPattern: (UInt32(truncatingIfNeeded: rawValue) &- epoch << 3) & ~7) >> 3
    }
}

/// What has been counted of peers' epochs that are over. Touched when something fails, never otherwise.
final class EpochLedgers {
    private struct Closed {
        var epoch: UInt32
        var frames: UInt64
        var writes: UInt64
        /// Records that were refused: they are not among those that were counted.
        var refused: [FrameFailure]
    }

    /// The engine and NIC of somebody who has not been heard here.
    private struct Stranger: Hashable {
        var engine: UInt64
        var nic: UInt32
    }

    /// Closed epochs that are remembered for each peer.
    private static let remembered = 16
    private var closed: [Int32: [Closed]] = [:]
    private var hasForgotten: Set<Int32> = []
    private var refused: [Int32: [FrameFailure]] = [:]
    private var strangers: [Stranger: FabricConnection] = [:]
    /// Whether a peer was forgotten, of whom nobody can say any more what was counted.
    var hasForgottenPeers = false

    /// Notes that records of a peer's frame were not carried out. Older frames than `window` have been acknowledged.
    func refuse(_ index: Int32, _ failure: FrameFailure) {
        var known = refused.removeValue(forKey: index) ?? []
        defer { refused[index] = known }
        if let last = known.last, last.sequence == failure.sequence {
            // The same once more: there was no room for it in an acknowledgement.
            if failure.first < last.first &+ last.count { return }
            if failure.first == last.first &+ last.count {
                known[known.count - 1].count &+= failure.count
                return
            }
        } else {
            known.removeAll { failure.sequence &- $0.sequence > Tuning.window }
        }
        known.append(failure)
    }

    /// Keeps what was counted in an epoch that ends.
    func save(_ index: Int32, epoch: UInt32, frames: UInt64, writes: UInt64) {
        let refused = refused.removeValue(forKey: index) ?? []
        var list = closed[index] ?? []
        if list.count == Self.remembered {
            list.removeFirst()
            hasForgotten.insert(index)
        }
        list.append(Closed(epoch: epoch, frames: frames, writes: writes, refused: refused))
        closed[index] = list
    }

    /// What was counted in an epoch that has ended: nothing if no frame of it came; nil when it may have been forgotten.
    func ledger(of index: Int32, _ epoch: UInt32, isWrites: Bool) -> DeliveryLedger? {
        guard let known = closed[index]?.last(where: { $0.epoch == epoch }) else {
            return hasForgotten.contains(index) ? nil : DeliveryLedger(base: 0)
        }
        if isWrites { return DeliveryLedger(base: known.writes) }
        let window = UInt64(Tuning.window) << FabricConnection.recordBits
        let recent = Set(known.refused.flatMap(Self.ordinals)).filter {
            $0 < known.frames && known.frames - $0 <= window
        }
        guard let first = recent.min() else { return DeliveryLedger(base: known.frames) }
        return DeliveryLedger(base: first, counted: (first..<known.frames).filter { !recent.contains($0) })
    }

    private static func ordinals(of failure: FrameFailure) -> Range<UInt64> {
        let start = UInt64(failure.sequence) << FabricConnection.recordBits
        let first = min(UInt64(failure.first), 1 << FabricConnection.recordBits)
        let end = min(first + UInt64(failure.count), 1 << FabricConnection.recordBits)
        return start + first..<start + end
    }

    /// Forgets a peer whose place is given to another.
    func forget(_ index: Int32) {
        closed[index] = nil
        refused[index] = nil
        hasForgotten.remove(index)
        hasForgottenPeers = true
    }

    /// Somebody unknown asks: nothing of theirs has been counted, nor will be.
    func closeUnmet(_ connection: FabricConnection, of engine: UInt64) -> DeliveryLedger? {
        guard !hasForgottenPeers, strangers.count < Tuning.peers else { return nil }
        strangers[Stranger(engine: engine, nic: connection.nic)] = connection
        return DeliveryLedger(base: 0)
    }

    /// The epoch with which a peer may begin that is heard for the first time.
    func firstEpoch(of engine: UInt64, nic: UInt32) -> UInt32 {
        guard !strangers.isEmpty,
            let connection = strangers.removeValue(forKey: Stranger(engine: engine, nic: nic))
        else { return 0 }
        return UInt32(bitPattern: connection.ahead(of: 0)) &+ 1
    }
}
