import CVerbs
import CVerbsStandIn
import Glibc
import Testing
import TransferCore

@testable import VerbsProvider

/// What goes wrong: every request ends exactly once, and the next ones find a new connection.
@Suite(.bothPostings) struct ErrorTests {
    private func connected(
        _ change: (inout VerbsOptions) -> Void = { _ in }
    ) throws -> (Network, End, End, UnsafeMutablePointer<ImportedKey>) {
        let (network, a, b) = try Network.pair(change)
        let target = unsafe try a.attach(b)
        #expect(network.run { a.isReady && b.isReady })
        return unsafe (network, a, b, target)
    }

    static let outcomes: [(UInt32, WorkStatus)] = [
        (IBV_WC_REM_ACCESS_ERR.rawValue, .accessDenied), (IBV_WC_RETRY_EXC_ERR.rawValue, .peerLost),
        (IBV_WC_RNR_RETRY_EXC_ERR.rawValue, .peerLost), (IBV_WC_WR_FLUSH_ERR.rawValue, .peerLost),
        (IBV_WC_REM_OP_ERR.rawValue, .providerFailed), (IBV_WC_LOC_PROT_ERR.rawValue, .providerFailed),
        (IBV_WC_LOC_QP_OP_ERR.rawValue, .providerFailed), (IBV_WC_GENERAL_ERR.rawValue, .providerFailed),
    ]

    /// The failed one has its own error, those before it succeeded, those after it end with their connection.
    @Test(arguments: outcomes) func failedRequest(_ code: UInt32, _ status: WorkStatus) throws {
        for position in [0, 1, 15, 16, 37, 39] {
            let (network, a, b, target) = unsafe try connected()
            network.books.hold_requests = 1
            #expect(unsafe a.post(0..<40, to: target).accepted == 40)
            #expect(unsafe te_standin_run(network.standIn, Int32(position)) == position)
            network.books.fail_vendor = 0x51
            network.books.fail_status = ibv_wc_status(rawValue: code)
            unsafe te_standin_run(network.standIn, 1)
            #expect(network.run { a.ended.count == 40 })
            network.run(30)
            #expect(a.ended.values.allSatisfy { $0 == 1 })
            for context in 0..<40 {
                let expected = context < position ? .success : context == position ? status : .peerLost
                #expect(a.statuses[UInt64(context)] == expected, "\(context) of \(position)")
            }
            #expect(a.details[UInt64(position)] == Int32(0x51 << 8 | code))
            #expect(b.count(of: 1) == position)
            network.books.hold_requests = 0
            #expect(network.run { unsafe a.post(100..<101, to: target).accepted == 1 })
            #expect(network.run { a.statuses[100] == .success && b.count(of: 1) == position + 1 })
            network.run(100)
            #expect(network.books.queue_pairs == 2 + 4)
            #expect(unsafe a.domain.state.pointee.requestsInFlight == 0)
        }
    }

    @Test func wrongKeyIsDenied() throws {
        let (network, a, b, target) = unsafe try connected()
        let key = unsafe target.pointee.key
        unsafe target.pointee.key ^= 0x5500
        unsafe a.post(0..<3, to: target)
        #expect(network.run { a.ended.count == 3 })
        #expect(a.statuses[0] == .accessDenied && a.statuses[1] == .peerLost && b.count(of: 1) == 0)
        unsafe target.pointee.key = key
        #expect(network.run { unsafe a.post(5..<6, to: target).accepted == 1 })
        #expect(network.run { a.statuses[5] == .success })
    }

    /// What users are told: the message of a transfer that failed.
    @Test func failuresAreSaidInWords() throws {
        let (network, a, _, target) = unsafe try connected()
        unsafe target.pointee.key ^= 0x5500
        unsafe a.post(0..<2, to: target)
        #expect(network.run { a.ended.count == 2 })
        func words(_ status: WorkStatus, _ detail: Int32?, peer: Int? = 0) -> String {
            a.domain.describe(status, detail: detail ?? 0, peer: peer) ?? "nothing"
        }
        let denied = words(.accessDenied, a.details[0])
        #expect(
            denied.contains("remote access error (vendor 0x88) at peer 10.1.0.2: the region was deregistered")
        )
        #expect(denied.contains("attach its new descriptor"))
        #expect(words(.accessDenied, 0) == "nothing", "then the status says it all")
        #expect(words(.peerLost, -ECONNREFUSED).contains("(ECONNREFUSED): it was started over"))
        #expect(words(.peerLost, -ECONNRESET, peer: nil).hasPrefix("a peer has closed the connection"))
        #expect(words(.peerLost, -ECONNRESET, peer: 99).hasPrefix("a peer has closed"))
        #expect(words(.providerFailed, -ENODEV).contains("device is gone"))
        #expect(words(.providerFailed, -EIO).contains("Input/output error (5)"))
        #expect(words(.peerLost, VerbsError.detail(event: IBV_EVENT_QP_FATAL)).contains("(event 1)"))
        let statuses = Self.outcomes.map { ($0.1, Int32(bitPattern: $0.0)) }
        #expect(Set(statuses.map { words($0.0, $0.1) }).count == statuses.count, "each has its own")
        for (status, code) in statuses { #expect(!words(status, code).contains("completion error")) }
        #expect(words(.providerFailed, 99).contains("work completion error 99"))
    }

    /// A request that only came back because its connection was broken says why that was.
    @Test func flushedRequestsHaveTheReason() throws {
        let (network, a, b, target) = unsafe try connected()
        network.books.hold_requests = 1
        unsafe a.post(0..<3, to: target)
        #expect(unsafe a.send([1], to: target, context: 3).accepted == 1)
        b.close()
        #expect(network.run { a.ended.count == 4 })
        #expect(Set(a.statuses.values) == [.peerLost] && Set(a.details.values) == [-ECONNRESET])
    }

    @Test func messagesInFlightEndToo() throws {
        let (network, a, _, target) = unsafe try connected()
        network.books.hold_requests = 1
        for context in 0..<5 as Range<UInt64> {
            #expect(unsafe a.send([1, 2, 3], to: target, context: context).accepted == 1)
        }
        unsafe a.post(10..<15, to: target)
        network.books.fail_status = IBV_WC_RETRY_EXC_ERR
        unsafe te_standin_run(network.standIn, 1)
        #expect(network.run { a.ended.count == 10 })
        network.run(50)
        #expect(a.ended.values.allSatisfy { $0 == 1 } && Set(a.statuses.values) == [.peerLost])
        #expect(unsafe a.domain.state.pointee.freeMessages.count == Tuning.messageSends)
    }

    @Test(arguments: [0, 1, 15, 20] as [UInt64]) func driverRefuses(_ after: UInt64) throws {
        let (network, a, b, target) = unsafe try connected()
        network.books.refuse_error = EIO
        network.books.refuse_after = after
        let result = unsafe a.post(0..<40, to: target)
        #expect(result.status == .providerFailed && result.detail == -EIO)
        // Calls are taken all or none, for each chain.
        #expect(result.accepted == Int(Network.posting == .lists ? after : after / 16 * 16))
        #expect(network.run { a.ended.count == result.accepted })
        network.run(50)
        #expect(a.ended.values.allSatisfy { $0 == 1 })
        // What was in a chain that reported is known to have succeeded.
        let before = b.count(of: 1)
        #expect(network.run { unsafe a.post(100..<101, to: target).accepted == 1 })
        #expect(network.run { b.count(of: 1) == before + 1 })
    }

    /// What lies behind in a batch may have been handed over already: so all that was accepted ends, that of the peer whose
    /// queue pair refused with the error.
    @Test(arguments: [0, 5, 20, 37] as [UInt64], [EIO, ENOMEM])
    func driverRefusesAmongOthers(_ after: UInt64, _ error: Int32) throws {
        let network = Network(devices: 4)
        let ends = try (0..<4).map { try network.open($0) }
        let targets = unsafe try (1..<4).map { unsafe try ends[0].attach(ends[$0]) }
        #expect(network.run { ends[0].connections(.ready).count == 3 })
        network.books.hold_requests = 1
        network.books.refuse_error = error
        network.books.refuse_after = after
        let requests = (0..<60).map { unsafe ends[0].request(UInt64($0), to: targets[$0 % 3]) }
        let result = ends[0].post(requests)
        #expect(result.accepted == 60 && result.status == .success)
        network.books.hold_requests = 0
        unsafe te_standin_run(network.standIn, 1000)
        // Well before the deadline for draining: nothing is waited for that the NIC never had.
        #expect(network.run(300) { ends[0].ended.count == 60 })
        network.run(50)
        #expect(ends[0].ended.values.allSatisfy { $0 == 1 })
        let broken = Int(after) / 20
        for number in 0..<60 {
            let status = ends[0].statuses[UInt64(number)]
            #expect(
                (status == .success) == (number % 3 != broken), "\(number): \(String(describing: status))")
        }
        #expect(unsafe ends[0].domain.state.pointee.requestsInFlight == 0)
        #expect(network.run { unsafe ends[0].post(100..<101, to: targets[broken]).accepted == 1 })
        #expect(network.run { ends[0].statuses[100] == .success })
    }

    @Test func driverWithAFullQueuePushesBack() throws {
        let (network, a, _, target) = unsafe try connected()
        network.books.hold_requests = 1
        unsafe a.post(0..<4, to: target)
        network.books.refuse_error = ENOMEM
        network.books.refuse_after = 0
        let result = unsafe a.post(4..<8, to: target)
        #expect(result.status == .targetBusy && result.accepted == 0)
        network.books.hold_requests = 0
        unsafe te_standin_run(network.standIn, 100)
        #expect(unsafe a.post(4..<8, to: target).accepted == 4)
        #expect(network.run { a.ended.count == 8 })
        #expect(Set(a.statuses.values) == [.success])
    }

    /// A `wr_id` is looked up and never believed.
    @Test func strayCompletions() throws {
        let (network, a, b, target) = unsafe try connected()
        network.books.hold_requests = 1
        unsafe a.post(0..<4, to: target)
        var generator = SystemRandomNumberGenerator()
        let connection = a.connections(.ready)[0]
        let wrong = WorkID(.write, connection: 0, generation: connection.generation &+ 1, sequence: 0)
        let late = WorkID(.write, connection: 0, generation: connection.generation, sequence: 4)
        for id in [wrong.rawValue, late.rawValue, 0, .max] {
            unsafe te_standin_stray(network.standIn, 0, id, IBV_WC_RETRY_EXC_ERR)
        }
        for _ in 0..<2000 {
            // Not the kinds of receives and datagrams, whose numbers would be right by chance.
            let id =
                UInt64.random(in: 0..<1 << 61, using: &generator) | UInt64(
                    [1, 2, 7, 0][Int.random(in: 0..<4, using: &generator)]) << 61
            if WorkID(rawValue: id).connection == 0 { continue }
            unsafe te_standin_stray(network.standIn, 0, id, IBV_WC_SUCCESS)
            a.poll()
        }
        #expect(a.statistics.strayCompletions >= 2000)
        #expect(a.ended.isEmpty && a.isReady)
        network.books.hold_requests = 0
        unsafe te_standin_run(network.standIn, 100)
        #expect(network.run { a.ended.count == 4 && b.count(of: 1) == 4 })
    }

    // MARK: Asynchronous events

    /// Looked for now and then, and before sleeping.
    private func notice(_ network: Network) { network.run(Int(Tuning.eventPolls) + 10) }

    @Test(arguments: [IBV_EVENT_QP_FATAL, IBV_EVENT_QP_REQ_ERR, IBV_EVENT_QP_ACCESS_ERR].map(\.rawValue))
    func queuePairEvent(_ event: UInt32) throws {
        let (network, a, b, target) = unsafe try connected()
        network.books.hold_requests = 1
        unsafe a.post(0..<4, to: target)
        network.raise(0, ibv_event_type(rawValue: event), qp: a.connections(.ready)[0].queuePair)
        notice(network)
        #expect(a.ended.count == 4 && a.ended.values.allSatisfy { $0 == 1 })
        #expect(Set(a.statuses.values) == [.peerLost])
        network.books.hold_requests = 0
        #expect(network.run { unsafe a.post(5..<6, to: target).accepted == 1 })
        #expect(network.run { b.count(of: 1) == 1 })
    }

    @Test func deviceThatIsGone() throws {
        let (network, a, _, target) = unsafe try connected()
        network.books.is_mute = 1
        unsafe a.post(0..<40, to: target)
        for context in 50..<53 as Range<UInt64> { _ = unsafe a.send([1], to: target, context: context) }
        network.run(20)
        #expect(a.ended.isEmpty)
        network.raise(0, IBV_EVENT_DEVICE_FATAL)
        notice(network)
        #expect(a.ended.count == 43 && a.ended.values.allSatisfy { $0 == 1 })
        #expect(Set(a.statuses.values) == [.providerFailed])
        let refused = unsafe a.post(60..<61, to: target)
        #expect(refused.status == .providerFailed && refused.detail == -ENODEV)
        #expect(unsafe a.send([1], to: target, context: 61).status == .providerFailed)
        #expect(a.domain.prepareToSleep())
    }

    @Test func portEventsAreNoted() throws {
        let (network, a, _, target) = unsafe try connected()
        network.raise(0, IBV_EVENT_PORT_ERR)
        notice(network)
        #expect(a.statistics.portEvents == 1 && !a.statistics.isPortUp)
        network.raise(0, IBV_EVENT_PORT_ACTIVE)
        notice(network)
        #expect(a.statistics.portEvents == 2 && a.statistics.isPortUp)
        // What was on its way is repeated by the NIC: a connection outlives its port.
        #expect(unsafe a.post(0..<1, to: target).accepted == 1)
        #expect(network.run { a.statuses[0] == .success })
    }

    @Test func lowReceivesAreNotedAndReplaced() throws {
        let (network, a, b, target) = unsafe try connected { $0.messageReceives = 16 }
        var sent: UInt64 = 0
        #expect(
            network.run {
                if sent < 100, unsafe a.send([9], to: target, context: sent).accepted == 1 { sent += 1 }
                return b.messages.count == 100
            })
        network.raise(1, IBV_EVENT_SRQ_LIMIT_REACHED)
        notice(network)
        #expect(b.statistics.lowReceives >= 1)
    }

    // MARK: The end

    /// A queue pair that does not report in time is destroyed with its requests.
    @Test func drainingHasADeadline() throws {
        let (network, a, b, target) = unsafe try connected { $0.drainTimeout = .milliseconds(200) }
        network.books.hold_requests = 1
        unsafe a.post(0..<40, to: target)
        b.close()
        // The goodbye has been delivered; from now on the NIC says nothing.
        network.books.is_mute = 1
        var rounds = 0
        #expect(
            network.run {
                rounds += 1
                return a.ended.count == 40
            })
        #expect(rounds < 400 && Set(a.statuses.values) == [.peerLost])
        #expect(network.books.queue_pairs == 1)
    }

    @Test(arguments: [false, true]) func everythingIsDestroyed(_ isBusy: Bool) throws {
        let (network, a, b, target) = unsafe try connected()
        if isBusy {
            network.books.hold_requests = 1
            unsafe a.post(0..<40, to: target)
            _ = unsafe a.send([1], to: target, context: 50)
            _ = unsafe try b.attach(a)
        }
        #expect(network.living > 20)
        a.close()
        b.close()
        #expect(network.living == 0)
    }

    /// Whatever cannot be made while a domain is opened, what was made before is destroyed.
    @Test func openingThatFailsLeavesNothing() throws {
        let network = Network()
        var failures = 0
        for position in 1..<40 as Range<Int32> {
            network.books.refuse_creation = position
            do {
                try network.open(0).close()
            } catch let error as TransferError {
                failures += 1
                #expect([.limitReached, .providerFailed, .unavailable].contains(error.code))
                #expect(error.message.contains("standin"), "\(error)")
            }
            network.books.refuse_creation = 0
            #expect(network.living == 0, "at object \(position)")
        }
        // One more object where calls are insisted on, to see whether the device takes them.
        #expect(failures == (Network.posting == .calls ? 10 : 9))
    }

    /// A connection that cannot be made is an error of the request, and is tried again later.
    @Test func connectingThatFailsIsAnError() throws {
        for position in [1, 2] as [Int32] {
            let (network, a, b) = try Network.pair()
            network.books.refuse_creation = position
            let target = unsafe try a.attach(b)
            network.books.refuse_creation = position
            #expect(unsafe a.post(0..<1, to: target).status == .providerFailed)
            #expect(unsafe a.post(0..<1, to: target).status == .peerLost)
            #expect(network.run { unsafe a.post(1..<2, to: target).accepted == 1 })
            #expect(network.run { a.statuses[1] == .success })
        }
    }

    @Test func deviceThatCopiesNothing() throws {
        let network = Network()
        network.books.refuse_inline = 1
        let (a, b) = (try network.open(0), try network.open(1))
        let target = unsafe try a.attach(b)
        #expect(network.run { unsafe a.post(0..<300, to: target).accepted == 300 })
        #expect(network.run { b.count(of: 1) == 300 })
    }

    @Test func missingDevicesAreNamed() throws {
        let network = Network()
        do {
            try network.open(0) { $0.device = "mlx5_99" }
            Issue.record("a device that is not there was opened")
        } catch let error as TransferError {
            #expect(error.code == .unavailable && error.message.contains("mlx5_99"))
        }
        do {
            try network.open(0) { $0.subnet = "192.168.0.0/16" }
            Issue.record("an address that is not there was used")
        } catch let error as TransferError {
            #expect(
                error.code == .unavailable && error.message.contains("no RoCE v2 address in 192.168.0.0/16"))
        }
        do {
            try network.open(0) { $0.port = 2 }
            Issue.record("a port that is not there was opened")
        } catch let error as TransferError {
            #expect(error.code == .unavailable && error.message.contains("port 2"))
        }
    }

    @Test func deviceMemoryThatIsNotSupportedIsSaid() throws {
        let (_, a, _, _) = unsafe try connected()
        let region = unsafe LocalRegion(
            index: 9, generation: 1, access: .remoteWrite, secret: 0, base: a.memory, length: 4096,
            memoryFile: -1, isPopulated: false)
        do {
            _ = try a.domain.registerDMABuf(region, file: 0, offset: 0)
            Issue.record("a DMA-BUF was registered")
        } catch {
            #expect(error.code == .unavailable && error.message.contains("DMA-BUF"))
        }
    }

    @Test func descriptorsOfOtherFabricsAreRefused() throws {
        let (_, a, b, _) = unsafe try connected()
        func refused(_ change: (inout RemoteRegion) -> Void) -> TransferError.Code? {
            var region = b.descriptor
            change(&region)
            do {
                _ = try a.domain.importRegion(region, nic: 0)
                return nil
            } catch {
                return error.code
            }
        }
        #expect(refused { $0.nics[0].fabric = "infiniband" } == .unreachable)
        #expect(refused { $0.nics[0].address.removeLast() } == .malformedDescriptor)
        #expect(refused { $0.nics[0].address[0] = 9 } == .malformedDescriptor)
        #expect(refused { $0.nics[0].key = 1 << 40 } == .malformedDescriptor)
        #expect(refused { $0.nics = [] } == .invalidArgument)
        #expect(refused { _ in } == nil)
    }

    // MARK: Sleep

    @Test func arrivalsWake() throws {
        let (network, a, b, target) = unsafe try connected()
        network.run(100)
        func isReadable(_ end: End) -> Bool {
            var file = pollfd(fd: end.domain.wakeDescriptor, events: Int16(POLLIN), revents: 0)
            return unsafe poll(&file, 1, 0) == 1
        }
        // Armed by the first call; the second one sees that nothing has come since.
        var calls = 0
        while !b.domain.prepareToSleep(), calls < 10 {
            b.poll()
            calls += 1
        }
        #expect(calls > 0 && calls < 10)
        #expect(!isReadable(b))
        unsafe a.post(0..<1, to: target)
        #expect(isReadable(b))
        b.poll()
        #expect(b.count(of: 1) == 1 && !b.domain.prepareToSleep())
        b.poll()
        #expect(b.domain.prepareToSleep() && !isReadable(b))
        network.raise(1, IBV_EVENT_PORT_ERR)
        #expect(isReadable(b))
    }

    /// What came between the last poll and the arming is not slept over.
    @Test func nothingIsMissedWhileFallingAsleep() throws {
        let (network, a, b, target) = unsafe try connected()
        network.run(100)
        _ = b.domain.prepareToSleep()
        b.poll()
        unsafe a.post(0..<1, to: target)
        let sleeps = b.domain.prepareToSleep()
        var file = pollfd(fd: b.domain.wakeDescriptor, events: Int16(POLLIN), revents: 0)
        let isAwake = unsafe poll(&file, 1, 0) == 1
        #expect(!sleeps || isAwake)
    }

    @Test func handshakesWakeByTimer() throws {
        let (network, a, b) = try Network.pair()
        network.books.lose_percent = 100
        _ = unsafe try a.attach(b)
        for _ in 0..<10 where !a.domain.prepareToSleep() { a.poll() }
        var file = pollfd(fd: a.domain.wakeDescriptor, events: Int16(POLLIN), revents: 0)
        #expect(unsafe poll(&file, 1, 1000) == 1, "the hello is due again in a few milliseconds")
    }
}
