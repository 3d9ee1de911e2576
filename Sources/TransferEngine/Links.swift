internal import Synchronization
internal import TransferCore

/// A pair of NICs over which a peer is reached. Belongs to the progress thread; never touched while all is well.
final class Link {
    enum State { case up, down }

    /// Its place in `Links.all`.
    let index: Int
    /// Tells it apart from the links that had that place before.
    let generation: UInt64
    let peer: PeerRecord
    /// Our NIC.
    let domain: Int
    /// The peer's NIC, by its place in the peer's descriptors.
    let nic: Int
    /// The provider's number of the peer.
    let number: Int
    /// What control messages are addressed with: one element, which stays where it is.
    let key: Table<ImportedKey>
    /// How many rails use it.
    var uses = 0
    var state = State.up
    /// When something last came over it or was acknowledged.
    var lastAlive: UInt64
    /// Since when a ping is unanswered, or 0.
    var askedSince: UInt64 = 0
    /// When a link that is down is tried again, and how long after that.
    var nextTry: UInt64 = 0
    var pause: UInt64 = 0
    /// Connections that broke with requests whose fate only the receiver knows, the newest last.
    var settlements: [Settlement] = []

    struct Settlement {
        var connection: UInt64
        /// Nil until the peer has answered.
        var ledger: DeliveryLedger?
        var askedAt: UInt64
        /// How long after that to ask again.
        var pause: UInt64
    }

    init(
        index: Int, generation: UInt64, peer: PeerRecord, domain: Int, nic: Int, key: ImportedKey, now: UInt64
    ) {
        self.index = index
        self.generation = generation
        self.peer = peer
        self.domain = domain
        self.nic = nic
        number = key.peer
        self.key = Table(repeating: key, count: 1)
        lastAlive = now
    }

    /// The receiver's word about a connection, when it has come.
    func ledger(of connection: UInt64) -> DeliveryLedger? {
        settlements.first { $0.connection == connection }?.ledger
    }
}

/// An engine that this one writes to, or hears from.
final class PeerRecord {
    let engine: EngineID
    /// The place of its numbers in `Links.totals`.
    let place: UInt32
    fileprivate(set) var name: String
    var links: [Link] = []
    /// When anything last came from it.
    var lastHeard: UInt64
    /// Whether it counts as lost: it has not answered for too long, over any link.
    var isLost = false
    /// Since when it owes an answer, or 0.
    var askedSince: UInt64 = 0
    /// Our own attachment to it, for answers to a peer that nobody here has attached; `.max` is none.
    var landing = UInt32.max

    init(engine: EngineID, place: UInt32, now: UInt64) {
        self.engine = engine
        self.place = place
        name = ""
        lastHeard = now
    }

    /// For people.
    var description: String { name.isEmpty ? "engine \(engine)" : "\(name) (engine \(engine))" }
    /// Whether a request can go some other way.
    func hasOther(than link: Link) -> Bool { links.contains { $0 !== link && $0.state == .up } }
}

/// All links and peers.
final class Links {
    private(set) var all: [Link?] = []
    private var free: [Int] = []
    private var made: UInt64 = 0
    private(set) var peers: [EngineID: PeerRecord] = [:]
    private var places: [Place: Link] = [:]
    /// What goes to each peer, by `PeerRecord.place`.
    let totals = Table(count: Limits.countedPeers + 1) { _ in Counters.Peer() }
    /// Where those are counted that have no place of their own.
    static let others = UInt32(Limits.countedPeers)
    private var freeTotals: [UInt32] = []
    private var usedTotals: UInt32 = 0
    /// Names and places of all peers. Callable from anywhere.
    let directory = Mutex<[EngineID: (place: UInt32, name: String)]>([:])

    /// What tells links apart: our NIC, and the provider's number of the peer's.
    private struct Place: Hashable {
        var domain: Int
        var number: Int
    }

    /// The link from one of our NICs to a peer's.
    func link(domain: Int, number: Int) -> Link? { places[Place(domain: domain, number: number)] }
    /// Control messages that their NIC pushed back.
    var outbox: [(link: Int, message: [UInt8], since: UInt64)] = []

    /// The record of a peer, made when it is not known.
    func peer(_ engine: EngineID, now: UInt64) -> PeerRecord {
        if let known = peers[engine] { return known }
        let record = PeerRecord(engine: engine, place: takeTotals(), now: now)
        peers[engine] = record
        directory.withLock { $0[engine] = (record.place, "") }
        return record
    }

    /// Notes the name that a peer gives itself.
    func name(_ engine: EngineID, _ name: String) {
        guard let record = peers[engine] else { return }
        record.name = name
        directory.withLock { $0[engine]?.name = name }
    }

    private func takeTotals() -> UInt32 {
        if let place = freeTotals.popLast() {
            totals[place].operations.store(0, ordering: .relaxed)
            totals[place].bytes.store(0, ordering: .relaxed)
            totals[place].isLost.store(false, ordering: .relaxed)
            return place
        }
        guard usedTotals < Self.others else { return Self.others }
        usedTotals += 1
        return usedTotals - 1
    }

    private func forget(_ peer: PeerRecord) {
        peers[peer.engine] = nil
        directory.withLock { $0[peer.engine] = nil }
        if peer.place != Self.others { freeTotals.append(peer.place) }
    }

    /// Notes one more rail over a pair of NICs.
    func use(_ key: ImportedKey, domain: Int, nic: Int, of peer: PeerRecord, now: UInt64) -> Link {
        if let known = link(domain: domain, number: key.peer) {
            known.uses += 1
            return known
        }
        let index = free.popLast() ?? all.count
        if index == all.count { all.append(nil) }
        made &+= 1
        let link = Link(
            index: index, generation: made & 0xFFF, peer: peer, domain: domain, nic: nic, key: key, now: now)
        link.uses = 1
        all[index] = link
        places[Place(domain: domain, number: key.peer)] = link
        peer.links.append(link)
        return link
    }

    /// Notes that a rail is gone. Returns whether the link went with it.
    func release(_ index: Int) -> Link? {
        guard let link = all[index] else { return nil }
        link.uses -= 1
        guard link.uses == 0 else { return nil }
        all[index] = nil
        places[Place(domain: link.domain, number: link.number)] = nil
        free.append(index)
        link.peer.links.removeAll { $0 === link }
        if link.peer.links.isEmpty { forget(link.peer) }
        return link
    }
}
