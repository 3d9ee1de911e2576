import CLibfabric
import CPlatform
import Glibc
@testable import LibfabricProvider
import Testing
import TransferCore

/// What becomes of requests whose connection broke: the receiver says what it has counted, once nothing else can land.
@Suite("libfabric failover", .serialized, .enabled(if: LibfabricProvider.isLoaded), .timeLimit(.minutes(2)))
struct FailoverTests {
    static let kinds = LibfabricDomainTests.kinds.filter(\.frames)

    private static let places = 64
    private static let placeBytes = 50_000

    /// Asks about everything that A lost until B has answered. Returns how many of them had been counted, by the tag.
    private func settle(_ pair: Pair) throws -> Set<UInt64> {
        var counted: Set<UInt64> = []
        for (tag, delivery) in pair.a.lost {
            guard case .unsettled(let connection, let ordinal) = delivery else { continue }
            var ledger: DeliveryLedger?
            #expect(
                pair.run {
                    ledger = pair.b.domain.settle(connection: connection, from: pair.a.engine)
                    return ledger != nil
                })
            let again = pair.b.domain.settle(connection: connection, from: pair.a.engine)
            #expect(again == ledger, "the same answer again")
            if try #require(ledger).contains(ordinal) { counted.insert(tag.rawValue) }
        }
        return counted
    }

    /// Small and large writes, to a place each.
    private func requests(_ pair: Pair) -> [WorkRequest] {
        (0..<Self.places).map { number in
            var request = pair.request(
                2, length: number % 3 == 0 ? 64 : Self.placeBytes, from: number * Self.placeBytes,
                to: number * Self.placeBytes, immediate: 2, eighths: number % 5 == 0 ? 24 : 8)
            request.tag = RequestTag(rawValue: UInt64(number))
            return request
        }
    }

    /// Connects both ways.
    private func connect(_ pair: Pair) {
        pair.post([pair.request(1, length: 64), pair.request(1, length: Self.placeBytes)])
        #expect(pair.run { pair.a.ended[1] == 2 })
        pair.b.fill(seed: 7)
        pair.a.fill(seed: 8)
    }

    /// Whichever moment the connection breaks at: each write counts once, here or when it is sent again, and nothing of what is
    /// sent again lands late.
    @Test(arguments: kinds, [0, 1, 3, 10, 30, 60, 100, 200]) func countsOnce(
        _ options: LibfabricOptions, _ polls: Int
    ) throws {
        let pair = try Pair(options)
        connect(pair)
        let all = requests(pair)
        pair.post(all)
        for _ in 0..<polls {
            pair.b.poll()
            pair.a.poll()
        }
        for socket in pair.sockets(to: pair.b) { shutdown(socket, Int32(SHUT_RDWR)) }
        #expect(pair.run { pair.a.ended[2] == Self.places })
        let counted = try settle(pair)
        let lost = Set(pair.a.lost.map(\.tag.rawValue))
        #expect(lost.count == pair.a.lost.count, "each is reported once")
        let eighths = all.indices.reduce(0 as Int64) { sum, number in
            let isThere = !lost.contains(UInt64(number)) || counted.contains(UInt64(number))
            return isThere ? sum + Int64(all[number].eighths) : sum
        }
        #expect(pair.b.page.eighths(of: 2) == eighths)
        // What was not counted may be anything now, and must stay so.
        memset(pair.b.memory, 9, pair.b.length)
        let end = te_monotonic_nanoseconds() + 20_000_000
        _ = pair.run { te_monotonic_nanoseconds() > end }
        #expect(pair.b.isFilled(with: 9))
        pair.a.lost = []
        pair.post(all.filter { lost.contains($0.tag.rawValue) && !counted.contains($0.tag.rawValue) })
        #expect(pair.run { pair.b.page.eighths(of: 2) == all.reduce(0) { $0 + Int64($1.eighths) } })
        #expect(pair.a.lost.isEmpty)
    }

    /// The sender is silent, so that nothing proves what is under way: the receiver closes its endpoint, opens it again at the
    /// same address, and knows.
    @Test(arguments: kinds) func aDeadPathIsCutOff(_ options: LibfabricOptions) throws {
        let pair = try Pair(options)
        connect(pair)
        pair.b.domain.state.pointee.settlePatience = 1
        let all = requests(pair)
        pair.post(all)
        for _ in 0..<5 { pair.b.poll() }
        pair.a.domain.sever(UnsafePointer(pair.target))
        for _ in 0..<100 where pair.a.ended[2] != Self.places { pair.a.pollReports() }
        #expect(pair.a.ended[2] == Self.places)
        let asked = pair.a.lost.compactMap { lost -> (tag: UInt64, connection: UInt64, ordinal: UInt64)? in
            guard case .unsettled(let connection, let ordinal) = lost.delivery else { return nil }
            return (lost.tag.rawValue, connection, ordinal)
        }
        let fenced = try #require(asked.first { FabricConnection(rawValue: $0.connection).needsFence })
        let key = pair.b.key
        #expect(pair.b.domain.settle(connection: fenced.connection, from: pair.a.engine) == nil)
        #expect(pair.b.domain.settle(connection: fenced.connection, from: pair.a.engine) != nil)
        #expect(pair.b.domain.state.pointee.renewals == 1 && !pair.b.domain.state.pointee.isDown)
        let counted = Set(
            asked.filter {
                pair.b.domain.settle(connection: $0.connection, from: pair.a.engine)?.contains($0.ordinal)
                    == true
            }.map(\.tag))
        #expect(pair.b.domain.state.pointee.renewals == 1, "once for all")
        memset(pair.b.memory, 9, pair.b.length)
        let end = te_monotonic_nanoseconds() + 50_000_000
        _ = pair.run { te_monotonic_nanoseconds() > end }
        #expect(pair.b.isFilled(with: 9))
        #expect(pair.b.key.remote == key.remote)
        let lost = Set(pair.a.lost.map(\.tag.rawValue))
        let rest = all.filter { lost.contains($0.tag.rawValue) && !counted.contains($0.tag.rawValue) }
        try repeatUntilCounted(pair, rest)
        #expect(pair.b.page.eighths(of: 2) == all.reduce(0) { $0 + Int64($1.eighths) })
        for request in rest {
            let offset = Int(request.targetOffset)
            #expect(pair.isEqual(from: offset, to: offset, length: request.length))
        }
    }

    /// Sends requests until all have been counted: A may not have noticed yet that its connection broke.
    private func repeatUntilCounted(_ pair: Pair, _ requests: [WorkRequest]) throws {
        var left = requests
        for _ in 0..<20 where !left.isEmpty {
            pair.a.lost = []
            let before = pair.a.ended[2, default: 0]
            guard pair.post(left) == .success else { continue }
            #expect(pair.run { pair.a.ended[2, default: 0] == before + left.count })
            let counted = try settle(pair)
            let lost = Set(pair.a.lost.map(\.tag.rawValue)).subtracting(counted)
            left = left.filter { lost.contains($0.tag.rawValue) }
        }
        #expect(left.isEmpty)
    }

    /// A receiver that closes its endpoint, or itself, while a part of a large write is there, lives.
    @Test(arguments: kinds, [true, false]) func theEndInTheMiddleOfAWrite(
        _ options: LibfabricOptions, renews: Bool
    ) throws {
        for round in 0..<6 as Range<Int> {
            let pair = try Pair(options)
            connect(pair)
            // More than sockets hold, so that some of it is still to come.
            let long = pair.a.length
            pair.b.memory.storeBytes(of: 0, as: UInt64.self)
            pair.post((0..<4).map { _ in pair.request(2, length: long, immediate: 3) })
            // Until the first bytes are there, and some polls more.
            let source = pair.a.memory.load(as: UInt64.self)
            #expect(pair.run { pair.b.memory.load(as: UInt64.self) == source })
            for _ in 0..<round { pair.b.poll() }
            if !renews { continue }
            pair.b.domain.state.pointee.renew()
            #expect(pair.run { pair.a.ended[2] == 4 && !pair.b.domain.state.pointee.isDown })
            let counted = try settle(pair)
            #expect(pair.b.page.eighths(of: 3) == Int64(4 - pair.a.lost.count + counted.count) * 8)
            #expect(
                pair.run {
                    pair.post([pair.request(4, length: Self.placeBytes, immediate: 4)])
                    return pair.a.statuses[4] == .success
                }, "and it can be written to again")
        }
    }

    /// An endpoint that is opened again has the same address, and everybody starts over with it, also who had not asked.
    @Test(arguments: kinds) func othersGoOnAfterARenewal(_ options: LibfabricOptions) throws {
        let pair = try Pair(options)
        connect(pair)
        let address = pair.b.domain.address
        for round in 1...3 {
            pair.b.domain.state.pointee.renew()
            #expect(try pair.b.domain.state.pointee.handles.name(nic: "b") == address)
            pair.a.lost = []
            var sent = 0
            while sent < 5 {
                let before = pair.a.ended[3, default: 0]
                guard pair.post([pair.request(3, length: 100_000), pair.request(3, length: 8)]) == .success
                else {
                    continue
                }
                #expect(pair.run { pair.a.ended[3, default: 0] == before + 2 })
                if pair.a.statuses[3] == .success { sent += 1 }
            }
            #expect(pair.b.domain.state.pointee.renewals == round)
        }
    }

    /// Who has never been heard has counted nothing, and never will in that epoch.
    @Test func aStrangerHasCountedNothing() throws {
        let pair = try Pair(Self.kinds[0])
        pair.post([pair.request(1, length: 64)])
        pair.a.domain.sever(UnsafePointer(pair.target))
        pair.a.pollReports()
        let lost = try #require(pair.a.lost.first)
        guard case .unsettled(let connection, _) = lost.delivery else {
            #expect(lost.delivery == .never, "it may not have left yet")
            return
        }
        #expect(pair.b.domain.settle(connection: connection, from: pair.a.engine) == DeliveryLedger(base: 0))
        #expect(pair.b.domain.settle(connection: connection, from: pair.a.engine) == DeliveryLedger(base: 0))
        pair.post([pair.request(5, length: 64, immediate: 5)])
        #expect(pair.run { pair.a.ended[5] == 1 })
        #expect(pair.b.page.eighths(of: 1) == 0 && pair.b.page.eighths(of: 5) == 8)
    }

    /// Records that the receiver refused have not been counted, whether the sender heard of it or not.
    @Test func refusedRecordsAreNotCounted() throws {
        let pair = try Pair(Self.kinds[0])
        connect(pair)
        let stale = UnsafeMutablePointer<ImportedKey>.allocate(capacity: 1)
        stale.initialize(to: pair.target.pointee)
        defer { stale.deallocate() }
        stale.pointee.generation += 1
        pair.post(
            (0..<20).map { number in
                var request = pair.request(
                    6, length: 64, immediate: 6, target: number % 7 == 3 ? stale : nil)
                request.tag = RequestTag(rawValue: UInt64(number))
                return request
            })
        #expect(
            pair.run {
                pair.b.poll(); return pair.b.page.eighths(of: 6) == 17 * 8
            })
        pair.a.lost = []
        if pair.a.ended[6, default: 0] == 0 {
            pair.a.domain.sever(UnsafePointer(pair.target))
            pair.a.pollReports()
        }
        for (tag, delivery) in pair.a.lost {
            guard case .unsettled(let connection, let ordinal) = delivery else { continue }
            let ledger = pair.b.domain.settle(connection: connection, from: pair.a.engine)
            #expect(ledger?.contains(ordinal) == (tag.rawValue % 7 != 3))
        }
    }

    /// A frame whose messages find no room stays for the next poll. When its epoch is over by then, the rest is not carried
    /// out: its sender has been told so.
    @Test func whatIsLeftOfAFrameOfAClosedEpochIsDropped() throws {
        let pair = try Pair(Self.kinds[0])
        connect(pair)
        pair.b.domain.state.pointee.settlePatience = 1
        for number in 0..<50 {
            let sent = withUnsafeBytes(of: number) {
                pair.a.domain.send($0, to: UnsafePointer(pair.target), context: 4).accepted
            }
            try #require(sent == 1)
        }
        var request = pair.request(2, length: 64, immediate: 2)
        request.tag = RequestTag(rawValue: 7)
        pair.post([request])
        // Room for one message with every poll: all frames have come long before the last message is taken.
        let one = UnsafeMutableBufferPointer<Completion>.allocate(capacity: 1)
        defer { one.deallocate() }
        var taken = 0
        let deadline = te_monotonic_nanoseconds() + 10_000_000_000
        while taken < 40, te_monotonic_nanoseconds() < deadline {
            pair.a.poll()
            taken += pair.b.domain.poll(one)
        }
        try #require(taken == 40 && pair.b.domain.state.pointee.firstArrived >= 0)
        try #require(pair.b.page.eighths(of: 2) == 0)
        pair.a.domain.sever(UnsafePointer(pair.target))
        for _ in 0..<100 where pair.a.lost.isEmpty { pair.a.pollReports() }
        let lost = try #require(pair.a.lost.first { $0.tag.rawValue == 7 })
        guard case .unsettled(let connection, let ordinal) = lost.delivery else {
            Issue.record("\(lost)")
            return
        }
        var ledger: DeliveryLedger?
        while ledger == nil, te_monotonic_nanoseconds() < deadline {
            ledger = pair.b.domain.settle(connection: connection, from: pair.a.engine)
        }
        #expect(try !#require(ledger).contains(ordinal))
        let end = te_monotonic_nanoseconds() + 20_000_000
        _ = pair.run { te_monotonic_nanoseconds() > end }
        #expect(pair.b.page.eighths(of: 2) == 0, "told to be lost, and counted")
    }

    /// Names carry what they are made of.
    @Test(arguments: [0, 1, 77, (1 << 29) - 1, 1 << 29, 1 << 31] as [UInt32]) func names(_ epoch: UInt32) {
        for (isWrites, needsFence, isReverse) in [
            (true, true, false), (false, true, true), (false, false, false),
        ] {
            let name = FabricConnection(
                nic: 0xDEAD_BEEF, epoch: epoch, isWrites: isWrites, needsFence: needsFence,
                isReverse: isReverse)
            #expect(name.nic == 0xDEAD_BEEF && name.isWrites == isWrites)
            #expect(name.needsFence == needsFence && name.isReverse == isReverse)
            for distance in [-100, -1, 0, 1, 100] as [Int32] {
                #expect(name.ahead(of: epoch &- UInt32(bitPattern: distance)) == distance)
            }
        }
    }

    /// Ledgers of epochs that are over stay for a while, and are never guessed.
    @Test func ledgersAreKeptForAWhile() {
        let ledgers = EpochLedgers()
        #expect(ledgers.ledger(of: 1, 5, isWrites: true) == DeliveryLedger(base: 0))
        for epoch in 0..<20 as Range<UInt32> {
            ledgers.refuse(1, FrameFailure(sequence: epoch, first: 3, count: 2, status: 2))
            ledgers.save(1, epoch: epoch, frames: UInt64(epoch + 1) << 10, writes: UInt64(epoch))
        }
        #expect(ledgers.ledger(of: 1, 19, isWrites: true) == DeliveryLedger(base: 19))
        #expect(ledgers.ledger(of: 1, 0, isWrites: true) == nil, "it has been forgotten")
        let frames = ledgers.ledger(of: 1, 19, isWrites: false)
        #expect(frames?.contains(19 << 10 | 2) == true && frames?.contains(19 << 10 | 3) == false)
        #expect(frames?.contains(19 << 10 | 4) == false && frames?.contains(19 << 10 | 5) == true)
        #expect(frames?.contains(20 << 10) == false)
    }
}

extension Side {
    /// Whether every byte is the same.
    fileprivate func isFilled(with byte: UInt8) -> Bool {
        memory.load(as: UInt8.self) == byte && memcmp(memory, memory + 1, length - 1) == 0
    }

    /// Hands out what is known already, without giving the network a chance.
    fileprivate func pollReports() {
        let wasDown = domain.state.pointee.isDown
        domain.state.pointee.isDown = true
        domain.state.pointee.reopensAt = .max
        poll()
        domain.state.pointee.isDown = wasDown
        domain.state.pointee.reopensAt = 0
    }
}

extension Pair {
    /// The connections that were opened to a side's address.
    fileprivate func sockets(to side: Side) -> [Int32] {
        let port = Array(side.domain.address[2...3])
        return (3..<1024 as Range<Int32>).filter { descriptor in
            var bytes = [UInt8](repeating: 0, count: 64)
            var length = socklen_t(bytes.count)
            let found = bytes.withUnsafeMutableBytes {
                $0.withMemoryRebound(to: sockaddr.self) { getpeername(descriptor, $0.baseAddress, &length) }
            }
            return found == 0 && bytes[0] == UInt8(AF_INET) && Array(bytes[2...3]) == port
        }
    }
}
