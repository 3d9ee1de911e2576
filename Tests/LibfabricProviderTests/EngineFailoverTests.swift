#if Libfabric
    import CPlatform
    import Glibc
    import Testing

    @testable import LibfabricProvider
    @testable import TransferEngine

    /// Engines with two NICs over TCP, one of which fails in the middle of transfers: with an error, or silently.
    @Suite(
        "libfabric engines failover", .serialized, .enabled(if: LibfabricProvider.isLoaded),
        .timeLimit(.minutes(2))
    )
    struct EngineFailoverTests {
        private struct Engines {
            let sender: TransferEngine
            let receiver: TransferEngine
            let source: MemoryRegion
            let target: MemoryRegion
            let remote: RemoteMemory
            /// The NICs have addresses of their own, so that suites do not meet.
            let addresses: [String]

            init(_ number: Int, interval: Duration = .milliseconds(200)) throws {
                let addresses = [1, 2].map { "127.0.\(number).\($0)" }
                func engine(_ name: String) throws -> TransferEngine {
                    var configuration = Configuration(
                        name: name,
                        nics: addresses.map { .libfabric(LibfabricOptions(provider: "tcp", nic: $0)) },
                        progress: .manual, stripeBytes: 64 << 10, timeout: .seconds(20))
                    configuration.liveness = Liveness(interval: interval)
                    return try TransferEngine(configuration)
                }
                self.addresses = addresses
                sender = try engine("sender")
                receiver = try engine("receiver")
                source = try sender.allocate(byteCount: 16 << 20)
                target = try receiver.allocate(byteCount: 16 << 20)
                remote = try sender.attach(receiver.descriptor(of: target))
                fill(1)
            }

            /// Fills each KiB with a byte of its own, and begins it with its number.
            func fill(_ seed: UInt64) {
                for place in 0..<source.byteCount / 1024 {
                    let kilobyte = source.baseAddress + place * 1024
                    memset(kilobyte, Int32(truncatingIfNeeded: (UInt64(place) &* 31 &+ seed) & 255), 1024)
                    kilobyte.storeBytes(of: UInt64(place) ^ seed << 32, as: UInt64.self)
                }
            }

            @discardableResult func run(seconds: Double = 15, until done: () -> Bool) -> Bool {
                let end = ContinuousClock.now + .seconds(seconds)
                while ContinuousClock.now < end {
                    if done() { return true }
                    for _ in 0..<50 {
                        sender.progress()
                        receiver.progress()
                    }
                    _ = sender.tick()
                    _ = receiver.tick()
                }
                return done()
            }

            /// One large write, many pages, and many small writes; as many counts of `immediate` as the last number says.
            func work(_ immediate: Immediate) throws -> ([Transfer], count: Int) {
                var transfers = [
                    try sender.write(from: source, byteCount: 8 << 20, to: remote, immediate: immediate)
                ]
                let pages = (0..<64).map { UInt32(64 + $0) }
                transfers.append(
                    try pages.withUnsafeBufferPointer { pages in
                        let pages = Pages(pages, stride: 64 << 10)
                        return try sender.write(
                            pageBytes: 64 << 10, from: source, pages: pages, to: remote, pages: pages,
                            immediate: immediate)
                    })
                let offset = 12 << 20
                for number in 0..<200 {
                    transfers.append(
                        try sender.write(
                            from: source, sourceOffset: offset + number * 1000, byteCount: 1000, to: remote,
                            targetOffset: offset + number * 1000, immediate: immediate))
                }
                return (transfers, 1 + 64 + 200)
            }

            /// Whether everything that `work` wrote is there.
            func isThere() -> Bool {
                let ranges = [(0, 8 << 20), (64 * (64 << 10), 64 * (64 << 10)), (12 << 20, 200_000)]
                return ranges.allSatisfy {
                    memcmp(source.baseAddress + $0.0, target.baseAddress + $0.0, $0.1) == 0
                }
            }

            /// Descriptors of the connections, and of the listening sockets, of an address.
            func sockets(_ address: String, listening: Bool) -> [Int32] {
                let wanted = address.split(separator: ".").compactMap { UInt8($0) }
                func isIt(
                    _ descriptor: Int32,
                    _ name: (Int32, UnsafeMutablePointer<sockaddr>?, UnsafeMutablePointer<socklen_t>?) ->
                        Int32
                ) -> Bool {
                    var bytes = [UInt8](repeating: 0, count: 64)
                    var length = socklen_t(bytes.count)
                    let found = bytes.withUnsafeMutableBytes {
                        $0.withMemoryRebound(to: sockaddr.self) { name(descriptor, $0.baseAddress, &length) }
                    }
                    return found == 0 && bytes[0] == UInt8(AF_INET) && Array(bytes[4...7]) == wanted
                }
                return (3..<1024 as Range<Int32>).filter { descriptor in
                    isIt(descriptor) { getpeername($0, $1, $2) }
                        || listening && isIt(descriptor) { getsockname($0, $1, $2) }
                }
            }

            /// Lets nothing through between the sockets of an address, or everything again.
            ///
            /// What they send is marked, and what is marked they drop. A socket that is closed meanwhile answers again, as it
            /// would once a path is back, when its peer's packets lose the mark: filters alone would stay with it.
            func setSilent(_ address: String, _ isSilent: Bool) {
                let marked: UInt64 = 0x10
                // The kernel's sock_filter: load the type of service, compare, drop, keep.
                let load: UInt64 = 0x30 | UInt64(UInt32(bitPattern: -0x100000 + 1)) << 32
                let instructions: [UInt64] = [load, 0x15 | 1 << 24 | marked << 32, 0x06, 0x06 | 0xFFFF << 32]
                let connected = sockets(address, listening: false)
                instructions.withUnsafeBufferPointer { instructions in
                    for descriptor in sockets(address, listening: true) {
                        // Nobody connects: what listens drops everything.
                        let first = connected.contains(descriptor) ? 0 : 2
                        var program = (
                            count: UInt64(instructions.count - first),
                            first: instructions.baseAddress.map { $0 + first }
                        )
                        var service: Int32 = isSilent ? Int32(marked) : 0
                        _ = setsockopt(
                            descriptor, Int32(IPPROTO_IP), IP_TOS, &service,
                            socklen_t(MemoryLayout<Int32>.size))
                        _ = setsockopt(
                            descriptor, SOL_SOCKET, isSilent ? SO_ATTACH_FILTER : SO_DETACH_FILTER, &program,
                            socklen_t(MemoryLayout.size(ofValue: program)))
                    }
                }
            }

            func close() {
                sender.close()
                receiver.close()
            }
        }

        /// Connections break again and again, at moments that move through the transfers; everything arrives and counts once.
        @Test func brokenConnectionsLoseAndRepeatNothing() throws {
            let engines = try Engines(11)
            defer { engines.close() }
            var broken = 0
            for round in 0..<30 {
                engines.fill(UInt64(round))
                let immediate = Immediate(truncatingIfNeeded: UInt32(100 + round))
                let (transfers, count) = try engines.work(immediate)
                for _ in 0..<(round * 7 % 60) {
                    engines.sender.progress()
                    engines.receiver.progress()
                }
                for descriptor in engines.sockets(engines.addresses[1], listening: false) {
                    shutdown(descriptor, Int32(SHUT_RDWR))
                    broken += 1
                }
                #expect(
                    engines.run { transfers.allSatisfy { !engines.sender.isPending($0) } }, "round \(round)")
                for transfer in transfers {
                    #expect(engines.sender.status(of: transfer) == .complete, "round \(round)")
                }
                #expect(engines.receiver.count(of: immediate) == count, "round \(round)")
                #expect(engines.isThere(), "round \(round)")
                #expect(engines.run { engines.sender.usage == .init() }, "the NIC is used again")
            }
            #expect(broken > 30)
        }

        /// A NIC falls silent, with no error anywhere: what was on it goes over the other one once the receiver has cut it off,
        /// and the NIC is used again when it is back.
        @Test func aSilentNICIsLeftAndComesBack() throws {
            let engines = try Engines(12)
            defer { engines.close() }
            let warm = try engines.work(1)
            #expect(engines.run { warm.0.allSatisfy { !engines.sender.isPending($0) } })
            for round in 0..<2 {
                engines.fill(UInt64(50 + round))
                let immediate = Immediate(truncatingIfNeeded: UInt32(2 + round))
                let (transfers, count) = try engines.work(immediate)
                for _ in 0..<(3 + 10 * round) {
                    engines.sender.progress()
                    engines.receiver.progress()
                }
                #expect(
                    engines.run {
                        engines.setSilent(engines.addresses[1], true)
                        return transfers.allSatisfy { !engines.sender.isPending($0) }
                    })
                for transfer in transfers { #expect(engines.sender.status(of: transfer) == .complete) }
                #expect(engines.receiver.count(of: immediate) == count)
                #expect(engines.isThere())
                let silent = try #require(engines.receiver.group.domains[1].fabric as? LibfabricDomain)
                #expect(silent.state.pointee.renewals > 0, "the receiver has cut it off")
                engines.setSilent(engines.addresses[1], false)
                #expect(engines.run(seconds: 30) { engines.sender.usage.downLinks == 0 }, "it is back")
            }
        }

        /// Cancelling over TCP waits for what is on its way and no longer: no question is asked while the peer lives.
        @Test func cancellingTakesARoundTrip() throws {
            let engines = try Engines(13, interval: .seconds(10))
            defer { engines.close() }
            let warm = try engines.work(1)
            #expect(engines.run { warm.0.allSatisfy { !engines.sender.isPending($0) } })
            for round in 0..<10 {
                let before = engines.sender.group.hot.value.controlMessages
                let (transfers, _) = try engines.work(2)
                for _ in 0..<round {
                    engines.sender.progress()
                    engines.receiver.progress()
                }
                var receipts: [CancelReceipt] = []
                for transfer in transfers {
                    try engines.sender.cancel(transfer, timeout: .seconds(20)) { receipt in
                        Unchecked.receipts.append(receipt)
                    }
                }
                #expect(engines.run { Unchecked.receipts.count == transfers.count })
                receipts = Unchecked.receipts
                Unchecked.receipts = []
                #expect(receipts.allSatisfy { $0 == .quiescent })
                #expect(
                    engines.sender.group.hot.value.controlMessages == before,
                    "quiet without asking: the answers to what was posted")
                memset(engines.target.baseAddress, 3, engines.target.byteCount)
                let end = ContinuousClock.now + .milliseconds(20)
                engines.run { ContinuousClock.now > end }
                let start = engines.target.baseAddress
                let isSame = memcmp(start, start + 1, engines.target.byteCount - 1) == 0
                #expect(isSame && start.load(as: UInt8.self) == 3, "nothing lands after a receipt")
            }
        }

        /// With the last NIC gone transfers fail with the reason.
        @Test func theLastNICGone() throws {
            let engines = try Engines(14)
            defer { engines.close() }
            let warm = try engines.work(1)
            #expect(engines.run { warm.0.allSatisfy { !engines.sender.isPending($0) } })
            let (transfers, _) = try engines.work(2)
            for _ in 0..<5 {
                engines.sender.progress()
                engines.receiver.progress()
            }
            engines.receiver.close()
            #expect(engines.run { transfers.allSatisfy { !engines.sender.isPending($0) } })
            var reasons: Set<String> = []
            for transfer in transfers {
                if case .failed(let error) = engines.sender.status(of: transfer) {
                    #expect(error.code == .peerLost)
                    reasons.insert(error.message)
                }
            }
            let names = ["has not answered sender", "127.0.14."]
            #expect(
                !reasons.isEmpty && reasons.allSatisfy { reason in names.contains { reason.contains($0) } },
                "\(reasons)")
        }
    }

    /// Receipts come on the one thread of these tests.
    private enum Unchecked {
        // SAFETY: manual engines call back on the thread that makes progress, which is the test's.
        nonisolated(unsafe) static var receipts: [CancelReceipt] = []
    }
#endif
