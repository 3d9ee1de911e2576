import CVerbs
import CVerbsStandIn
import Glibc
import Platform
import Testing
import TransferEngine

@testable import VerbsProvider

/// A queue pair that breaks in the middle of a transfer: its pages go over the other NIC, and each is counted once, whether the
/// sender had heard of it or not.
@Suite(.serialized, .bothPostings) struct FailoverTests {
    private struct Engines {
        let network = Network(devices: 4)
        let sender: TransferEngine
        let receiver: TransferEngine
        let source: MemoryRegion
        let target: MemoryRegion
        let remote: RemoteMemory
        static let pageCount = 300

        init() throws {
            func engine(_ name: String, _ devices: Range<Int>, _ network: Network) throws -> TransferEngine {
                let options = devices.map { device in
                    var options = network.options(device)
                    options.drainTimeout = .milliseconds(200)
                    return options
                }
                return try TransferEngine(
                    Configuration(name: name, progress: .manual, timeout: .seconds(20)),
                    clock: SystemClock(), random: SystemRandomNumberGenerator()
                ) { page throws(TransferError) in
                    var domains: [any FabricDomain] = []
                    for options in options {
                        domains.append(
                            unsafe try VerbsDomain(
                                options, page: page, engine: page.engine, api: te_standin_api()))
                    }
                    return domains
                }
            }
            sender = try engine("sender", 0..<2, network)
            receiver = try engine("receiver", 2..<4, network)
            source = try sender.allocate(byteCount: 1 << 20)
            target = try receiver.allocate(byteCount: 1 << 20)
            remote = try sender.attach(receiver.descriptor(of: target))
            for place in 0..<source.byteCount / 8 {
                unsafe source.bytes.storeBytes(
                    of: UInt64(place) &* 0x9E37_79B9, toByteOffset: place * 8, as: UInt64.self)
            }
        }

        func run(seconds: Double = 5, until done: () -> Bool) -> Bool {
            let end = ContinuousClock.now + .seconds(seconds)
            while ContinuousClock.now < end {
                if done() { return true }
                sender.progress()
                receiver.progress()
            }
            return done()
        }

        /// Pages of 2000 bytes, in reverse order at the target.
        func writePages(_ immediate: Immediate) throws -> Transfer {
            let sources = (0..<UInt32(Self.pageCount)).map { $0 }
            let targets = Array(sources.reversed())
            return unsafe try sources.withUnsafeBufferPointer { sources in
                unsafe try targets.withUnsafeBufferPointer { targets in
                    try sender.write(
                        pageBytes: 2000, from: source, pages: unsafe Pages(sources, stride: 2000),
                        to: remote, pages: unsafe Pages(targets, stride: 2000), immediate: immediate)
                }
            }
        }

        func areThere() -> Bool {
            (0..<Self.pageCount).allSatisfy { page in
                let there = (Self.pageCount - 1 - page) * 2000
                return unsafe memcmp(source.baseAddress + page * 2000, target.baseAddress + there, 2000) == 0
            }
        }

        /// Sends once over both NICs, so that they are connected.
        func connect() throws {
            let transfer = try writePages(1)
            #expect(run { !sender.isPending(transfer) && receiver.count(of: 1) == Self.pageCount })
            unsafe memset(target.baseAddress, 0, target.byteCount)
        }

        func close() {
            sender.close()
            receiver.close()
        }
    }

    /// The NIC says that one request failed, after so many have been carried out.
    @Test(.timeLimit(.minutes(1)), arguments: [0, 1, 40, 130])
    func aBrokenQueuePairMovesItsPages(_ carriedOut: Int) throws {
        let engines = try Engines()
        defer { engines.close() }
        try engines.connect()
        engines.network.books.hold_requests = 1
        let transfer = try engines.writePages(2)
        _ = unsafe te_standin_run(engines.network.standIn, Int32(carriedOut))
        engines.network.books.fail_status = IBV_WC_RETRY_EXC_ERR
        engines.network.books.hold_requests = 0
        _ = unsafe te_standin_run(engines.network.standIn, 1)
        #expect(
            engines.run {
                _ = unsafe te_standin_run(engines.network.standIn, 1000)
                return !engines.sender.isPending(transfer)
            })
        #expect(engines.sender.status(of: transfer) == .complete)
        #expect(engines.receiver.count(of: 2) == Engines.pageCount)
        #expect(engines.areThere())
    }

    /// The NIC had delivered and never heard so: the receiver knows.
    @Test(.timeLimit(.minutes(1)), arguments: [1, 37, 100])
    func whatArrivedUnheardIsNotCountedTwice(_ unheard: Int) throws {
        let engines = try Engines()
        defer { engines.close() }
        try engines.connect()
        engines.network.books.hold_requests = 1
        let transfer = try engines.writePages(2)
        let queuePair = unsafe te_standin_last_qp(engines.network.standIn, 0)
        #expect(
            unsafe te_standin_deafen(engines.network.standIn, queuePair, Int32(unheard)) == unheard)
        for _ in 0..<100 { engines.receiver.progress() }
        #expect(engines.receiver.count(of: 2) == unheard)
        engines.network.books.hold_requests = 0
        #expect(
            engines.run {
                _ = unsafe te_standin_run(engines.network.standIn, 1000)
                return !engines.sender.isPending(transfer)
            })
        #expect(engines.sender.status(of: transfer) == .complete)
        #expect(engines.receiver.count(of: 2) == Engines.pageCount)
        #expect(engines.areThere())
    }
}
