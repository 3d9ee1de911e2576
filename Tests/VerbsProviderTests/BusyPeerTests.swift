import CVerbsStandIn
import Glibc
import Platform
import Testing
import TransferEngine

@testable import VerbsProvider

/// A peer that takes no more holds up what is for it, and nothing else.
@Suite(.serialized, .bothPostings) struct BusyPeerTests {
    /// A sender and receivers on stand-in NICs, of which each is polled only when a test says so.
    private struct Engines {
        let network: Network
        let all: [TransferEngine]
        let source: MemoryRegion
        let targets: [RemoteMemory]

        init(receivers: Int, _ change: (inout VerbsOptions) -> Void) throws {
            let network = Network(devices: receivers + 1)
            self.network = network
            all = try (0...receivers).map { device in
                var options = network.options(device)
                change(&options)
                let chosen = options
                return try TransferEngine(
                    Configuration(name: "engine\(device)", progress: .manual, timeout: .seconds(60)),
                    clock: SystemClock(), random: SystemRandomNumberGenerator()
                ) { page throws(TransferError) in
                    unsafe [try VerbsDomain(chosen, page: page, engine: page.engine, api: te_standin_api())]
                }
            }
            let sender = all[0]
            source = try sender.allocate(byteCount: 1 << 16)
            targets = try all.dropFirst().map { receiver in
                try sender.attach(receiver.descriptor(of: receiver.allocate(byteCount: 1 << 16)))
            }
        }

        /// Progress of some until `done`.
        func run(_ engines: [Int], until done: () -> Bool) -> Bool {
            for _ in 0..<5000 {
                if done() { return true }
                for engine in engines { all[engine].progress() }
                usleep(10)
            }
            return done()
        }

        func close() { for engine in all { engine.close() } }
    }

    /// The last of four receivers does not poll: it runs out of credit in the middle of a scatter in which it comes first.
    @Test(.timeLimit(.minutes(1))) func threeOfFourTargetsComplete() throws {
        let engines = try Engines(receivers: 4) { $0.immediateReceives = 256 }
        defer { engines.close() }
        let sender = engines.all[0]
        // Connected beforehand.
        for target in engines.targets {
            let transfer = try sender.send(immediate: 1, to: target)
            #expect(engines.run(Array(0...4)) { !sender.isPending(transfer) })
        }
        let slow = [Int](repeating: 3, count: 40)
        let members = slow + [0] + slow + [1, 2, 0]
        let slices = members.indices.map {
            ScatterSlice(sourceOffset: $0 * 100, byteCount: 100, targetOffset: $0 * 100)
        }
        let scatter = try sender.scatter(
            from: engines.source, slices, to: PeerGroup(members.map { engines.targets[$0] }), immediate: 7)
        func counts(_ expected: [Int]) -> Bool {
            zip(engines.all.dropFirst(), expected).allSatisfy { $0.count(of: 7) == $1 }
        }
        #expect(engines.run([0, 1, 2, 3]) { counts([2, 1, 1, 0]) })
        #expect(sender.isPending(scatter), "80 immediates are more than the slow one's share")
        // Others come through at once, also to a receiver of the same scatter.
        let other = try sender.write(
            from: engines.source, byteCount: 100, to: engines.targets[0], immediate: 8)
        #expect(engines.run([0, 1, 2, 3]) { !sender.isPending(other) && engines.all[1].count(of: 8) == 1 })
        #expect(sender.isPending(scatter))
        #expect(engines.run(Array(0...4)) { !sender.isPending(scatter) })
        #expect(sender.status(of: scatter) == .complete)
        #expect(engines.run(Array(0...4)) { counts([2, 1, 1, 80]) })
        #expect(engines.network.books.not_ready == 0)
    }

    /// A peer that is never reached: the others of the scatter have theirs long before it fails.
    @Test(.timeLimit(.minutes(1))) func nobodyWaitsForAHandshake() throws {
        let engines = try Engines(receivers: 3) { $0.connectTimeout = .milliseconds(400) }
        defer { engines.close() }
        engines.all[1].close()
        let sender = engines.all[0]
        let slices = (0..<3).map { ScatterSlice(sourceOffset: $0, byteCount: 100, targetOffset: 0) }
        let scatter = try sender.scatter(
            from: engines.source, slices, to: PeerGroup(engines.targets), immediate: 7)
        #expect(engines.run([0, 2, 3]) { engines.all[2].count(of: 7) + engines.all[3].count(of: 7) == 2 })
        #expect(sender.isPending(scatter))
        let end = ContinuousClock.now + .seconds(10)
        while sender.isPending(scatter), ContinuousClock.now < end { sender.progress() }
        guard case .failed(let error) = sender.status(of: scatter) else {
            Issue.record("the scatter has not failed")
            return
        }
        #expect(error.code == .peerLost)
        let words =
            "peer 10.1.0.2 did not answer the handshake within 0.4 seconds (ETIMEDOUT): is its engine running"
        #expect(error.message.contains(words), "\(error)")
    }

    /// Peers that do not answer at all keep what they were given, and never all that the domain may have in flight.
    @Test func silentPeersLeaveRoom() throws {
        let network = Network(devices: 10)
        let ends = try (0..<10).map { try network.open($0) { $0.requests = 256 } }
        let targets = unsafe try (1..<10).map { unsafe try ends[0].attach(ends[$0]) }
        #expect(network.run { ends[0].connections(.ready).count == 9 })
        network.books.hold_requests = 1
        var accepted: [Int] = []
        for number in unsafe 0..<targets.count - 1 {
            let target = unsafe targets[number]
            accepted.append(unsafe ends[0].post(0..<300, to: target).accepted)
            #expect(unsafe ends[0].post(300..<301, to: target).status == .targetBusy)
        }
        #expect(accepted[0] >= 100 && accepted.allSatisfy { $0 > 0 })
        #expect(unsafe ends[0].post(0..<1, to: targets[8]).accepted == 1)
        network.books.hold_requests = 0
        unsafe te_standin_run(network.standIn, 1000)
        #expect(network.run { ends[0].ended.values.reduce(0, +) == accepted.reduce(1, +) })
        #expect(network.books.completion_overruns == 0 && network.books.queue_overruns == 0)
    }

    /// Also the buffers for messages are shared.
    @Test func silentPeersLeaveMessageBuffers() throws {
        let network = Network(devices: 6)
        let ends = try (0..<6).map { try network.open($0) }
        let targets = unsafe try (1..<6).map { unsafe try ends[0].attach(ends[$0]) }
        #expect(network.run { ends[0].connections(.ready).count == 5 })
        network.books.hold_requests = 1
        var sent: UInt64 = 0
        for number in unsafe 0..<targets.count - 1 {
            let target = unsafe targets[number]
            while unsafe ends[0].send([1], to: target, context: sent).accepted == 1 { sent += 1 }
        }
        #expect(sent < Tuning.messageSends)
        #expect(unsafe ends[0].send([1], to: targets[4], context: 100).accepted == 1)
        network.books.hold_requests = 0
        unsafe te_standin_run(network.standIn, 1000)
        #expect(network.run { ends[0].ended.count == Int(sent) + 1 })
    }

    /// The provider's side: what follows a busy target is taken when it is offered again without that target.
    @Test func busyTargetsAreNamed() throws {
        let network = Network(devices: 3)
        let ends = try (0..<3).map { try network.open($0) { $0.immediateReceives = 256 } }
        let (slow, fast) = unsafe (try ends[0].attach(ends[1]), try ends[0].attach(ends[2]))
        #expect(network.run { ends[0].connections(.ready).count == 2 })
        let window = Int(ends[1].connections(.ready)[0].grantedImmediates)
        #expect(unsafe ends[0].post(0..<UInt64(window), to: slow).accepted == window)
        let requests = unsafe [
            ends[0].request(1000, to: fast), ends[0].request(1001, to: slow), ends[0].request(1002, to: fast),
        ]
        let result = ends[0].post(requests)
        #expect(result.accepted == 1 && result.status == .targetBusy)
        #expect(ends[0].post([requests[2]]).accepted == 1)
        #expect(ends[0].post([requests[1]]).status == .targetBusy)
        for _ in 0..<20 {
            ends[0].poll()
            ends[2].poll()
        }
        #expect(ends[2].count(of: 1) == 2 && ends[1].count(of: 1) == 0)
        #expect(network.run { ends[0].post([requests[1]]).accepted == 1 })
        #expect(network.run { ends[1].count(of: 1) == window + 1 })
    }
}
