import CVerbs
import CVerbsStandIn
import Glibc
import Testing
import TransferCore

@testable import VerbsProvider

/// Connections over datagrams that are lost, late, doubled, forged.
@Suite struct HandshakeTests {
    @Test(arguments: [true, false]) func connects(_ isEthernet: Bool) throws {
        let network = Network(isEthernet: isEthernet)
        let (a, b) = (try network.open(0), try network.open(1))
        let target = unsafe try a.attach(b)
        // Importing does not wait, and nothing is taken before both sides are ready.
        #expect(unsafe a.post(0..<1, to: target).status == .targetBusy)
        #expect(network.run { a.isReady && b.isReady })
        #expect(unsafe a.post(0..<1, to: target).accepted == 1)
        #expect(network.run { a.ended[0] == 1 && b.count(of: 1) == 1 })
        #expect(a.statistics.connected == 1 && b.statistics.connected == 1)
    }

    @Test func bothBeginAtOnce() throws {
        let (network, a, b) = try Network.pair()
        let (there, back) = unsafe (try a.attach(b), try b.attach(a))
        #expect(network.run { a.isReady && b.isReady })
        network.run(500)
        #expect(a.statistics.connected == 1 && b.statistics.connected == 1)
        #expect(network.books.queue_pairs == 2 + 4)
        #expect(unsafe a.post(0..<1, to: there).accepted == 1 && b.post(0..<1, to: back).accepted == 1)
        #expect(network.run { a.count(of: 1) == 1 && b.count(of: 1) == 1 })
        #expect(a.statistics.broken == 0 && b.statistics.broken == 0)
    }

    /// One or both begin; the first `lost` datagrams, or a share of all by chance, do not arrive.
    @Test(arguments: 0..<8) func lostDatagrams(_ lost: UInt64) throws {
        for (percent, both) in [(0, false), (0, true), (50, false), (50, true), (70, true)]
            as [(UInt64, Bool)]
        {
            let (network, a, b) = try Network.pair()
            network.books.lose_datagrams = lost
            network.books.lose_percent = percent
            let there = unsafe try a.attach(b)
            if both { _ = unsafe try b.attach(a) }
            #expect(network.run { a.isReady && b.isReady }, "lost \(lost), \(percent) %, both \(both)")
            #expect(unsafe a.post(0..<3, to: there).accepted == 3)
            #expect(network.run { a.ended.count == 3 && b.count(of: 1) == 3 })
            #expect(a.statistics.broken == 0 && b.statistics.broken == 0)
        }
    }

    /// A side that can receive does not know that the other one can, until it is told.
    @Test func nothingIsSentBeforeThePeerCanReceive() throws {
        let (network, a, b) = try Network.pair()
        _ = unsafe try a.attach(b)
        network.books.lose_percent = 100
        b.poll()
        #expect(b.connections(.bound).count == 1, "A's hello was on its way, B's answer is lost")
        let back = unsafe try b.attach(a)
        #expect(unsafe b.post(0..<1, to: back).status == .targetBusy)
        #expect(unsafe b.send([1], to: back, context: 1).status == .targetBusy)
        network.books.lose_percent = 0
        #expect(network.run { unsafe b.post(0..<1, to: back).accepted == 1 })
        #expect(network.run { b.statuses[0] == .success && a.count(of: 1) == 1 })
        #expect(b.statistics.broken == 0)
    }

    /// What has come through a connection proves that the peer is ready, if its datagrams are lost.
    @Test func arrivalsMakeReady() throws {
        let (network, a, b) = try Network.pair()
        let there = unsafe try a.attach(b)
        b.poll()
        // A hears B's answer and is ready; B does not hear that.
        network.books.lose_percent = 100
        a.poll()
        #expect(a.isReady && !b.isReady)
        #expect(unsafe a.post(0..<1, to: there).accepted == 1)
        b.poll()
        #expect(b.isReady && b.count(of: 1) == 1)
    }

    @Test func doubledAndReorderedDatagrams() throws {
        for backwards in [0, 1] as [Int32] {
            let (network, a, b) = try Network.pair()
            network.books.double_datagrams = 1
            network.books.hold_datagrams = 1
            let there = unsafe try a.attach(b)
            _ = unsafe try b.attach(a)
            var rounds = 0
            #expect(
                network.run {
                    rounds += 1
                    if rounds % 40 == 0 { unsafe te_standin_release(network.standIn, backwards) }
                    return a.isReady && b.isReady
                })
            // Late copies of everything that was ever sent change nothing.
            for _ in 0..<5 {
                network.run(50)
                unsafe te_standin_release(network.standIn, backwards)
            }
            #expect(a.connections(.ready).count == 1 && b.connections(.ready).count == 1)
            #expect(a.statistics.broken == 0 && b.statistics.broken == 0)
            #expect(unsafe a.post(0..<3, to: there).accepted == 3)
            #expect(network.run { a.ended.count == 3 })
            #expect(Set(a.statuses.values) == [.success])
        }
    }

    @Test func deadlineIsAnErrorAndLaterAttemptsWork() throws {
        let (network, a, b) = try Network.pair { $0.connectTimeout = .milliseconds(300) }
        network.books.lose_percent = 100
        let target = unsafe try a.attach(b)
        #expect(network.run { unsafe a.post(0..<1, to: target).status != .targetBusy })
        let refused = unsafe a.post(0..<1, to: target)
        #expect(refused.status == .peerLost && refused.detail == -ETIMEDOUT)
        #expect(a.statistics.handshakesFailed == 1 && a.statistics.datagramsSent > 3)
        #expect(a.connections(.calling).isEmpty)
        network.books.lose_percent = 0
        // For a moment everything for that peer fails, then it is tried again.
        #expect(network.run { unsafe a.post(1..<2, to: target).accepted == 1 })
        #expect(network.run { a.ended[1] == 1 && a.statuses[1] == .success })
    }

    /// A handshake that nobody waits for ends without a word; one in which nobody polled does not fail.
    @Test func deadlineCountsFromTheFirstRequest() throws {
        let (network, a, b) = try Network.pair { $0.connectTimeout = .milliseconds(300) }
        network.books.lose_percent = 100
        let target = unsafe try a.attach(b)
        #expect(network.run { a.connections(.calling).isEmpty })
        #expect(a.statistics.handshakesFailed == 0)
        network.books.lose_percent = 0
        #expect(unsafe a.post(0..<1, to: target).status == .targetBusy)
        a.domain.advanceClock(by: 10_000_000_000)
        #expect(network.run { unsafe a.post(0..<1, to: target).status != .targetBusy })
        #expect(network.run { a.statuses[0] == .success })
        #expect(a.statistics.handshakesFailed == 0)
    }

    /// The first datagrams of both sides are late: they arrive when a connection has been made and used by later ones.
    @Test func helloOfAnEarlierAttemptIsIgnored() throws {
        let (network, a, b) = try Network.pair { $0.connectTimeout = .milliseconds(50) }
        network.books.hold_datagrams = 1
        let target = unsafe try a.attach(b)
        #expect(network.run { unsafe a.post(0..<1, to: target).status == .peerLost })
        network.books.hold_datagrams = 0
        #expect(network.run { unsafe a.post(0..<1, to: target).accepted == 1 })
        let ignored = b.statistics.datagramsIgnored
        unsafe te_standin_release(network.standIn, 0)
        network.run(100)
        #expect(b.statistics.datagramsIgnored > ignored)
        #expect(unsafe a.post(1..<2, to: target).accepted == 1)
        #expect(network.run { a.statuses[1] == .success })
        #expect(b.statistics.broken == 0)
    }

    /// A side that was broken starts over, and the other one follows.
    @Test func peerThatStartsOverIsFollowed() throws {
        let (network, a, b) = try Network.pair()
        let target = unsafe try a.attach(b)
        #expect(network.run { a.isReady && b.isReady })
        // The goodbye is lost: B learns of it only from the next hello.
        network.books.lose_datagrams = 1
        network.books.fail_status = IBV_WC_RETRY_EXC_ERR
        unsafe a.post(0..<1, to: target)
        #expect(network.run { a.ended[0] == 1 })
        #expect(a.statuses[0] == .peerLost && b.isReady)
        #expect(network.run { unsafe a.post(1..<2, to: target).accepted == 1 })
        #expect(network.run { a.statuses[1] == .success && b.count(of: 1) == 1 })
        #expect(b.statistics.broken == 1 && b.statistics.connected == 2)
        network.run(200)
        #expect(network.books.queue_pairs == 2 + 4, "the old queue pairs are gone")
    }

    /// A new process at the place of an old one: told apart by the epoch, refused at once, and not confused with it.
    @Test func restartedPeer() throws {
        let (network, a, b) = try Network.pair()
        var old = b.descriptor
        // The same place with another epoch, and the name of an engine that is not there.
        var address = b.address
        address.epoch ^= 1
        old.nics[0].address = address.encoded
        let stale = UnsafeMutablePointer<ImportedKey>.allocate(capacity: 1)
        defer { unsafe stale.deallocate() }
        unsafe stale.initialize(to: try a.domain.importRegion(old, nic: 0))
        var rounds = 0
        #expect(
            network.run {
                rounds += 1
                return unsafe a.post(0..<1, to: stale).status != .targetBusy
            })
        let refused = unsafe a.post(0..<1, to: stale)
        #expect(refused.status == .peerLost && refused.detail == -ECONNREFUSED)
        #expect(rounds < 100, "not by the deadline")
        let target = unsafe try a.attach(b)
        #expect(network.run { unsafe a.post(1..<2, to: target).accepted == 1 })
        #expect(network.run { a.statuses[1] == .success })
    }

    @Test func predecessorAtTheSamePlaceEnds() throws {
        let (network, a, b) = try Network.pair()
        let target = unsafe try a.attach(b)
        #expect(network.run { a.isReady && b.isReady })
        network.books.hold_requests = 1
        #expect(unsafe a.post(0..<4, to: target).accepted == 4)
        // Somebody with another epoch says hello from B's place.
        var hello = Hello()
        hello.source = b.address
        hello.source.epoch ^= 0xFF
        hello.sourceEngine = 77
        hello.targetEngine = a.page.engine.rawValue
        hello.targetEpoch = a.address.epoch
        (hello.attempt, hello.writeQP, hello.messageQP) = (1, 0x99, 0x98)
        (hello.immediateWindow, hello.messageWindow) = (1, 1)
        deliver(hello, to: a, network)
        #expect(network.run { a.ended.count == 4 })
        #expect(Set(a.statuses.values) == [.peerLost])
    }

    @Test func goodbyeEndsWhatIsInFlight() throws {
        let (network, a, b) = try Network.pair()
        let target = unsafe try a.attach(b)
        #expect(network.run { a.isReady && b.isReady })
        network.books.hold_requests = 1
        #expect(unsafe a.post(0..<4, to: target).accepted == 4)
        b.close()
        #expect(network.run { a.ended.count == 4 })
        #expect(Set(a.statuses.values) == [.peerLost])
    }

    /// What peers that died without a word were granted is granted again.
    @Test func sharesOfDeadPeersComeBack() throws {
        let network = Network(devices: 12)
        let receiver = try network.open(0) { $0.immediateReceives = 512 }
        let all = unsafe receiver.domain.state.pointee.unsharedImmediates
        for device in 1...8 {
            let sender = try network.open(device)
            _ = unsafe try sender.attach(receiver)
            #expect(network.run { sender.isReady })
        }
        network.run(200)
        #expect(unsafe receiver.domain.state.pointee.unsharedImmediates < all / 2)
        network.books.lose_percent = 100
        for end in network.ends.dropFirst() { end.close() }
        network.books.lose_percent = 0
        network.run(200)
        #expect(receiver.connections(.ready).count == 8, "nobody has said goodbye")
        let sender = try network.open(9)
        _ = unsafe try sender.attach(receiver)
        #expect(network.run { sender.isReady && receiver.connections(.ready).count == 1 })
        network.run(200)
        let left = unsafe receiver.domain.state.pointee.unsharedImmediates
        #expect(left == all - Int(receiver.connections(.ready)[0].grantedImmediates))
    }

    /// Nothing that arrives traps, and only what is right changes anything.
    @Test func damagedDatagrams() throws {
        let (network, a, b) = try Network.pair()
        let target = unsafe try a.attach(b)
        #expect(network.run { a.isReady && b.isReady })
        var generator = SystemRandomNumberGenerator()
        let connection = a.connections(.ready)[0]
        var good = Hello()
        good.source = b.address
        good.sourceEngine = b.page.engine.rawValue
        good.targetEngine = a.page.engine.rawValue
        good.targetEpoch = a.address.epoch
        (good.attempt, good.echo) = (connection.remoteAttempt, connection.attempt)
        (good.writeQP, good.messageQP, good.immediateWindow, good.messageWindow) = (5, 6, 7, 8)
        let bytes = encode(good)
        for number in 0..<3000 {
            var bad = bytes
            switch number % 3 {
            // Magic, version, names, epoch.
            case 0:
                bad[[0, 1, 2, 3, 4, 8, 11, 15, 16, 23, 24, 31].randomElement(using: &generator) ?? 0] ^=
                    UInt8.random(in: 1...255, using: &generator)
            case 1: bad.removeLast(Int.random(in: 1...128, using: &generator))
            default: bad = (0..<Int.random(in: 1...200)).map { _ in .random(in: 0...255, using: &generator) }
            }
            deliver(bad, to: a, network)
            a.poll()
        }
        #expect(unsafe a.post(0..<1, to: target).accepted == 1)
        #expect(network.run { a.statuses[0] == .success })
        #expect(a.statistics.datagramsIgnored >= 1000)
    }

    @Test func addressesAndHellosSurviveTheWire() throws {
        let (_, a, _) = try Network.pair()
        let address = a.address
        #expect(address.encoded == a.domain.address && a.domain.address.count == 40)
        for length in 0..<40 {
            let part = Array(a.domain.address.prefix(length))
            let short = unsafe NICAddress(part.span.bytes)
            #expect(short == nil)
        }
        var hello = Hello()
        hello.source = address
        (hello.attempt, hello.echo, hello.writeQP, hello.messageQP) = (3, 4, 5, 6)
        (hello.immediateWindow, hello.messageWindow, hello.wantsAnswer) = (7, 8, true)
        let copy = try #require(decode(encode(hello)))
        #expect(copy.attempt == 3 && copy.echo == 4 && copy.writeQP == 5 && copy.wantsAnswer)
        #expect(copy.immediateWindow == 7 && copy.source == address)
    }

    private func encode(_ hello: Hello) -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: Hello.byteCount)
        var span = bytes.mutableSpan
        var raw = unsafe span.mutableBytes
        hello.write(to: &raw)
        return bytes
    }

    private func decode(_ bytes: [UInt8]) -> Hello? { unsafe Hello(bytes.span.bytes) }

    private func deliver(_ hello: Hello, to end: End, _ network: Network) {
        deliver(encode(hello), to: end, network)
    }

    private func deliver(_ bytes: [UInt8], to end: End, _ network: Network) {
        unsafe te_standin_datagram(network.standIn, Int32(end.device), bytes, bytes.count)
    }
}
