internal import TransferCore

/// How urgent the writes to an attached region are: with which class a region is attached decides for all of them.
///
/// While more urgent traffic is around, less urgent transfers of the same engine keep little in flight (`Yielding`), so that an
/// urgent write waits behind that, or behind one longer request. They still move on: nobody starves. A class costs nothing
/// while an engine has attachments of one class only.
///
/// Classes order what one engine hands to its NICs. They are no service levels of the fabric, and engines do not know of each
/// other.
public enum TrafficClass: UInt8, Hashable, Sendable, CaseIterable, Comparable {
    /// Latency decides: dispatch and combine of experts. Never held back.
    case urgent
    /// The default: KV caches.
    case normal
    /// Throughput decides, and others come first: weights. Cut into requests of at most 1 MiB.
    case bulk

    /// More urgent is less.
    public static func < (left: TrafficClass, right: TrafficClass) -> Bool { left.rawValue < right.rawValue }
}

/// How far transfers hold themselves back while more urgent ones are around.
public struct Yielding: Hashable, Sendable {
    /// Bytes that less urgent transfers together keep in flight on each NIC, or copy in one turn where writes are complete when
    /// they are posted; at least one request each time.
    public var bytes: Int
    /// How long after its last request more urgent traffic counts as being around.
    public var hold: Duration

    /// 256 KiB, which take 5 microseconds at 400 Gbit/s, and 5 ms: longer than a decoder's step is without traffic.
    public init(bytes: Int = 262_144, hold: Duration = .milliseconds(5)) {
        precondition(
            bytes > 0 && hold >= .zero, "transfers that yield keep something in flight, for some time")
        self.bytes = bytes
        self.hold = hold
    }
}

/// What classes are in use, and what of them is under way.
struct Traffic: ~Copyable {
    /// A bit for each class that something was attached with.
    private var classes: UInt8 = 0
    /// Whether there is more than one: only then anything is held back.
    private(set) var isMixed = false
    /// When a request of a class was begun or ended last.
    private var seen = InlineArray<3, UInt64>(repeating: 0)
    /// Bytes in flight. What was posted before there were several classes is not among them.
    private var bytes = InlineArray<3, Int>(repeating: 0)
    /// What the slot whose turn it is has copied.
    var turnBytes = 0

    mutating func use(_ trafficClass: TrafficClass) {
        classes |= 1 << trafficClass.rawValue
        isMixed = classes & (classes - 1) != 0
    }

    mutating func note(_ trafficClass: TrafficClass, at now: UInt64) {
        seen[Int(trafficClass.rawValue)] = max(seen[Int(trafficClass.rawValue)], now)
    }

    mutating func add(_ count: Int, of trafficClass: TrafficClass) {
        bytes[Int(trafficClass.rawValue)] += count
    }

    /// When nothing more urgent is around any more.
    func isQuiet(above trafficClass: TrafficClass, at now: UInt64, hold: UInt64) -> Bool {
        (0..<Int(trafficClass.rawValue)).allSatisfy { seen[$0] == 0 || seen[$0] &+ hold <= now }
    }

    /// Bytes of a class and of less urgent ones that are under way.
    func inFlight(from trafficClass: TrafficClass) -> Int {
        (Int(trafficClass.rawValue)..<bytes.count).reduce(turnBytes) { $0 + bytes[$1] }
    }
}

// Less urgent transfers hold themselves back.
extension DomainGroup {
    /// The longest request of bulk traffic.
    static let bulkRequestBytes: UInt64 = 1 << 20

    /// Notes what class a transfer is of, when it begins: that of its first target.
    @inline(__always)
    func classify(_ slot: inout TransferSlot) {
        guard slot.kind == .scatter ? slot.targetCount > 0 : slot.kind != .barrier && slot.length > 0 else {
            return
        }
        slot.trafficClass = attachments[slot.firstAttachment].trafficClass
        if hot.value.traffic.isMixed { noteBeginning(slot) }
    }

    @inline(never)
    private func noteBeginning(_ slot: borrowing TransferSlot) {
        if let trafficClass = slot.trafficClass { hot.value.traffic.note(trafficClass, at: slot.submitted) }
    }

    /// Whether there may be something more urgent.
    @inline(__always)
    func mayYield(_ slot: borrowing TransferSlot) -> Bool {
        hot.value.traffic.isMixed && slot.trafficClass ?? .urgent != .urgent
    }

    /// How many of the requests `first..<end` of the batch may be posted now; 0 leaves the turn to others.
    @inline(never)
    func allowance(_ slot: borrowing TransferSlot, _ first: Int, _ end: Int) -> Int {
        guard let trafficClass = slot.trafficClass else { return end - first }
        var left = yielding.bytes
        var count = 0
        let (now, hold) = (recorder.now(), yielding.hold.nanoseconds)
        if !hot.value.traffic.isQuiet(above: trafficClass, at: now, hold: hold) {
            let inFlight = hot.value.traffic.inFlight(from: trafficClass)
            left = yielding.bytes * domains.count - inFlight
            if inFlight > 0, left < batch[first].length { return 0 }
        } else if !attachments[slot.firstAttachment].completesAtOnce {
            return end - first
        } else if hot.value.traffic.turnBytes > 0, submissions.mayHaveItems {
            return 0  // Whoever has come while this copied may be more urgent.
        }
        repeat {
            left -= batch[first + count].length
            count += 1
        } while first + count < end && left >= batch[first + count].length
        return count
    }

    /// Notes what has been posted of a batch of a slot that may yield.
    @inline(never)
    func noteBytes(_ slot: inout TransferSlot, _ requests: Range<Int>, isComplete: Bool) {
        guard let trafficClass = slot.trafficClass else { return }
        let bytes = requests.reduce(0) { $0 + batch[$1].length }
        if isComplete {
            hot.value.traffic.turnBytes += bytes
        } else {
            slot.bytesInFlight += bytes
            hot.value.traffic.add(bytes, of: trafficClass)
        }
    }

    /// Notes the end of some of a slot's requests; `before` were in flight. Requests of a transfer are taken to be equally long.
    @inline(never)
    func noteEnd(_ slot: inout TransferSlot, _ count: Int, of before: Int) {
        guard let trafficClass = slot.trafficClass else { return }
        hot.value.traffic.note(trafficClass, at: recorder.lastTime ?? hot.value.now)
        guard slot.bytesInFlight > 0 else { return }
        let bytes = count == before ? slot.bytesInFlight : slot.bytesInFlight * count / before
        slot.bytesInFlight -= bytes
        hot.value.traffic.add(-bytes, of: trafficClass)
    }
}
