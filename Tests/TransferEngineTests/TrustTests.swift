#if Authentication
    import Glibc
    import Synchronization
    import Testing

    @testable import TransferEngine

    /// The contract's promise 8 against those who lie: what is forged, replayed, widened, expired or cut off is refused,
    /// each with its own code, and nothing is written.
    @Suite struct TrustTests {
        static let key = try? ClusterKey(bytes: 0..<32)
        static let otherKey = try? ClusterKey(bytes: 1..<33)

        /// An engine on a scripted NIC, and what its receive pool got.
        private final class Side: Sendable {
            let engine: TransferEngine
            nonisolated(unsafe) let domain: ScriptedDomain  // SAFETY: one test, one thread
            private let inbox = Inbox()
            var received: [[UInt8]] { inbox.messages.withLock { $0 } }

            private final class Inbox: Sendable { let messages = Mutex<[[UInt8]]>([]) }

            init(_ name: String, key: ClusterKey?) throws {
                let domain = ScriptedDomain(name)
                engine = try TransferEngine(
                    Configuration(name: name, progress: .manual, clusterKey: key), clock: Frozen(),
                    random: SystemRandomNumberGenerator()
                ) { _ in [domain] }
                self.domain = domain
                try engine.receive { [inbox] bytes, _ in inbox.messages.withLock { $0.append(Array(bytes)) } }
            }

            /// What goes out when a message is sent to `other`.
            func message(_ payload: String, to other: Side) throws -> [UInt8] {
                let peer = try engine.connect(to: other.engine.address)
                try engine.wait(for: engine.send(Array(payload.utf8), to: peer))
                return try #require(domain.sent.last)
            }

            /// Gets a message; returns the codes of those refused meanwhile.
            func get(_ message: [UInt8], from sender: EngineID) -> [TransferError.Code: Int] {
                let before = engine.refusedMessages.counts
                domain.deliver(message, from: sender)
                engine.progress()
                return engine.refusedMessages.counts.filter { before[$0.key] != $0.value }
            }
        }

        /// A clock that the test moves.
        private final class Frozen: TransferClock {
            let time = Atomic<UInt64>(1_000)
            var nowNanoseconds: UInt64 { time.load(ordering: .relaxed) }
        }

        @Test func thereIsAKey() throws { try #require(Self.key != nil && Self.otherKey != nil) }

        // MARK: Messages

        @Test func messagesAreSealedAndTakenOnce() throws {
            let (a, b) = (try Side("a", key: Self.key), try Side("b", key: Self.key))
            let first = try a.message("one", to: b)
            let second = try a.message("two", to: b)
            #expect(first.count == ControlMessage.headerBytes + 3 + Authenticator.trailerBytes)
            #expect(b.get(second, from: a.engine.id).isEmpty, "messages overtake each other")
            #expect(b.get(first, from: a.engine.id).isEmpty)
            #expect(b.get(first, from: a.engine.id).keys.elementsEqual([.replayed]))
            #expect(b.get(second, from: a.engine.id).keys.elementsEqual([.replayed]))
            #expect(b.received == [Array("two".utf8), Array("one".utf8)])
        }

        @Test func whatWasAlteredIsForged() throws {
            let (a, b) = (try Side("a", key: Self.key), try Side("b", key: Self.key))
            let message = try a.message("pay 10", to: b)
            for place in message.indices {
                for bit in 0..<8 {
                    var altered = message
                    altered[place] ^= 1 << UInt8(bit)
                    let refusals = b.get(altered, from: a.engine.id)
                    // Magic, kind and version; whether it is sealed; everything else.
                    let wanted: [TransferError.Code] =
                        place < 3
                        ? [.malformedDescriptor, .forged] : place == 3 ? [.unauthenticated] : [.forged]
                    #expect(refusals.count == 1 && refusals.keys.allSatisfy(wanted.contains), "byte \(place)")
                }
            }
            for count in 0..<message.count {
                let refusals = b.get(Array(message.prefix(count)), from: a.engine.id)
                let isShort = count < ControlMessage.headerBytes + Authenticator.trailerBytes
                #expect(refusals.keys.elementsEqual([isShort ? .malformedDescriptor : .forged]))
            }
            #expect(b.received.isEmpty)
        }

        @Test func aMessageIsGoodForItsSenderAndReceiverOnly() throws {
            let (a, b, c) = (
                try Side("a", key: Self.key), try Side("b", key: Self.key), try Side("c", key: Self.key)
            )
            let message = try a.message("hello", to: b)
            #expect(b.get(message, from: c.engine.id).keys.elementsEqual([.forged]), "another sender")
            #expect(c.get(message, from: a.engine.id).keys.elementsEqual([.forged]), "another receiver")
            let restarted = try Side("b", key: Self.key)
            #expect(restarted.get(message, from: a.engine.id).keys.elementsEqual([.forged]))
            let stranger = try Side("b", key: Self.otherKey)
            #expect(stranger.get(message, from: a.engine.id).keys.elementsEqual([.forged]))
            #expect(b.get(message, from: a.engine.id).isEmpty, "what was refused elsewhere is good here")
        }

        @Test func aKeyOnOneSideOnlyIsSaid() throws {
            let (keyed, open) = (try Side("keyed", key: Self.key), try Side("open", key: nil))
            let plain = try open.message("plain", to: open)
            #expect(
                plain == [0x54, 0, 1, 0, 1, 0, 0, 0] + Array("plain".utf8), "without a key nothing changes")
            #expect(keyed.get(plain, from: open.engine.id).keys.elementsEqual([.unauthenticated]))
            let sealed = try keyed.message("sealed", to: keyed)
            #expect(open.get(sealed, from: keyed.engine.id).keys.elementsEqual([.unauthenticated]))
            #expect(keyed.engine.refusedMessages.latest?.message.contains("give it the same key") == true)
            #expect(keyed.received.isEmpty && open.received.isEmpty)
            // Engines of before gave their messages no numbers.
            let before: [UInt8] = [0x54, 0, 1, 0, 0, 0, 0, 0] + Array("plain".utf8)
            #expect(open.get(before, from: keyed.engine.id).isEmpty && open.received.count == 1)
        }

        /// Without a key anybody may ask; with one, a stranger's ping attaches nothing and is not answered.
        @Test func strangersAreNotAnswered() throws {
            for key in [nil, Self.key] {
                let (a, b) = (try Side("a", key: nil), try Side("b", key: key))
                let ping = ControlMessage.ping(.init(from: 0, to: 0), address: a.engine.address.encoded())
                let refusals = b.get(ping.encoded, from: a.engine.id)
                let isKnown = b.engine.group.links.peers[a.engine.id] != nil
                #expect(refusals.isEmpty == (key == nil))
                #expect(isKnown == (key == nil) && b.domain.sent.isEmpty == (key != nil))
            }
        }

        @Test func theSealIsWhatTheFormatSays() throws {
            let authenticator = Authenticator(key: try #require(Self.key), engine: EngineID(rawValue: 0x1122))
            let message: [UInt8] = [0x54, 0, 1, 1, 0, 0, 0, 0] + Array("hello".utf8)
            let trailer = authenticator.trailer(of: message.span, to: EngineID(rawValue: 0x3344))
            #expect(trailer.prefix(8).elementsEqual([1, 0, 0, 0, 0, 0, 0, 0]))
            #expect(
                hexadecimal(trailer.dropFirst(8))
                    == "ad0e90761a4a377d3116b63a910347084eaed4f33379f8d83a88eead2e83378e")
        }

        // MARK: Descriptors

        private static func code(_ body: () throws -> Void) -> TransferError.Code? {
            do {
                try body()
                return nil
            } catch { return (error as? TransferError)?.code }
        }

        @Test func alteredDescriptorsAreForged() throws {
            let (a, b) = (try Side("a", key: Self.key), try Side("b", key: Self.key))
            let region = try b.engine.allocate(byteCount: 4096)
            let good = b.engine.descriptor(of: region, validFor: .seconds(1))
            var altered: [RemoteRegion] = Array(repeating: good, count: 12)
            altered[0].length *= 2  // widened
            altered[1].access = .init(rawValue: 255)
            altered[2].base += 1
            altered[3].secret ^= 1
            altered[4].generation += 1
            altered[5].index += 1
            altered[6].engine = a.engine.id
            altered[7].device = 1
            altered[8].nics[0].key ^= 1
            altered[9].nics.append(altered[9].nics[0])
            altered[10].expires += 1
            altered[11].signature[31] ^= 1
            for region in altered {
                #expect(Self.code { _ = try a.engine.attach(region) } == .forged)
                let bytes = region.encoded()
                #expect(Self.code { _ = try a.engine.attach(decoding: bytes) } == .forged)
            }
            var unsigned = good
            unsigned.signature = []
            #expect(Self.code { _ = try a.engine.attach(unsigned) } == .unauthenticated)
            let bytes = good.encoded()
            for count in 0..<bytes.count {
                #expect(
                    Self.code { _ = try a.engine.attach(decoding: bytes.prefix(count)) }
                        == .malformedDescriptor)
            }
            #expect(Self.code { _ = try a.engine.attach(decoding: bytes) } == nil)
            let stranger = try Side("c", key: Self.otherKey)
            #expect(Self.code { _ = try stranger.engine.attach(decoding: bytes) } == .forged)
            #expect(Self.code { _ = try stranger.engine.connect(to: b.engine.address) } == .forged)
            let open = try Side("d", key: nil)
            #expect(Self.code { _ = try open.engine.attach(decoding: bytes) } == nil, "no key, no question")
            #expect(a.domain.taken == 0 && stranger.domain.taken == 0)
        }

        /// Before its time, at its time, and for what was attached before.
        @Test(arguments: [true, false]) func descriptorsExpire(_ isSigned: Bool) throws {
            let clock = Frozen()
            let domain = ScriptedDomain("a")
            let engine = try TransferEngine(
                Configuration(progress: .manual, clusterKey: isSigned ? Self.key : nil), clock: clock,
                random: SystemRandomNumberGenerator()
            ) { _ in [domain] }
            let region = try engine.allocate(byteCount: 4096)
            let descriptor = engine.descriptor(of: region, validFor: .nanoseconds(500))
            #expect(descriptor.expires == 1_500)
            let remote = try engine.attach(decoding: descriptor.encoded())
            let begun = try engine.write(from: region, byteCount: 8, to: remote)
            #expect(engine.tick() <= 1_500, "somebody looks when its time is over")
            clock.time.store(1_500, ordering: .relaxed)
            _ = engine.tick()
            #expect(Self.code { _ = try engine.attach(descriptor) } == .expired, "known or not")
            let taken = domain.taken
            #expect(Self.code { _ = try engine.write(from: region, byteCount: 8, to: remote) } == .expired)
            #expect(Self.code { _ = try engine.send(immediate: 1, to: remote) } == .expired)
            #expect(Self.code { _ = try engine.barrier(PeerGroup([remote]), immediate: 1) } == .expired)
            #expect(domain.taken == taken, "nothing goes out")
            #expect(engine.isPending(begun), "what had begun goes on")
            try engine.detach(remote)
            #expect(
                Self.code { _ = try engine.write(from: region, byteCount: 8, to: remote) } == .staleRegion)
        }

        /// Two engines of one host, really: what is refused leaves the memory as it was.
        @Test func nothingIsWrittenWithAForgedDescriptor() throws {
            let engines = try [Self.key, Self.key, nil].map {
                try TransferEngine(Configuration(progress: .manual, clusterKey: $0))
            }
            defer { for engine in engines { engine.close() } }
            let target = try engines[0].allocate(byteCount: 8192)
            for index in 0..<8192 { target.bytes[index] = 0xA5 }
            let source = try engines[1].allocate(byteCount: 8192)
            let good = engines[0].descriptor(of: target)
            var wide = good
            wide.length *= 2
            #expect(Self.code { _ = try engines[1].attach(wide) } == .forged)
            // Whoever has no key does not check it; the owner's table does.
            let mine = try engines[2].allocate(byteCount: 8192)
            let write = Self.code {
                let remote = try engines[2].attach(wide)
                try engines[2].wait(
                    for: engines[2].write(from: mine, byteCount: 8192, to: remote, targetOffset: 8192))
            }
            #expect(write == .outOfRange)
            #expect(target.bytes.allSatisfy { $0 == 0xA5 })
            let known = try engines[1].attach(good)
            try engines[1].wait(for: engines[1].write(from: source, byteCount: 8192, to: known, immediate: 3))
            #expect(engines[0].count(of: 3) == 1 && target.bytes.allSatisfy { $0 == 0 })
        }

        /// The heartbeats and settlements of engines with a key: a peer is asked, answers, and counts as alive.
        @Test func keyedEnginesAnswerEachOther() throws {
            let (a, b) = (try Side("a", key: Self.key), try Side("b", key: Self.key))
            let peer = try a.engine.connect(to: b.engine.address)
            let link = try #require(a.engine.group.links.peers[peer.engine]?.links.first)
            a.engine.group.post(
                .ping(a.engine.group.route(of: link), address: a.engine.group.ownAddress), over: link)
            let ping = try #require(a.domain.sent.last)
            #expect(b.get(ping, from: a.engine.id).isEmpty)
            let pong = try #require(b.domain.sent.last)
            #expect(a.get(pong, from: b.engine.id).isEmpty)
            #expect(a.get(pong, from: b.engine.id).keys.elementsEqual([.replayed]))
            #expect(b.get(ping, from: a.engine.id).keys.elementsEqual([.replayed]))
        }
    }

    /// Where a key comes from, and that it does not come out.
    @Suite struct ClusterKeyTests {
        private static let digits = String(repeating: "a7", count: 32)

        private func withFile(_ content: String, mode: mode_t, _ body: (String) throws -> Void) throws {
            var path = Array(("/tmp/te-key-" + String(repeating: "X", count: 6)).utf8CString)
            let file = mkstemp(&path)
            try #require(file >= 0)
            let name = String(decoding: path.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
            defer { unlink(name) }
            _ = write(file, content, content.utf8.count)
            fchmod(file, mode)
            close(file)
            try body(name)
        }

        private func code(_ body: () throws -> Void) -> TransferError.Code? {
            do {
                try body()
                return nil
            } catch { return (error as? TransferError)?.code }
        }

        @Test func comesFromBytesFilesAndTheEnvironment() throws {
            let wanted = [UInt8](repeating: 0xA7, count: 32)
            #expect(try ClusterKey(bytes: wanted).bytes == wanted)
            try withFile(Self.digits + "\n", mode: 0o600) { path in
                let key = try ClusterKey(file: path)
                #expect(key.bytes == wanted)
            }
            setenv("TE_TEST_KEY", Self.digits.uppercased(), 1)
            #expect(try ClusterKey(environment: "TE_TEST_KEY").bytes == wanted)
        }

        @Test func whatIsNoKeyIsSaid() throws {
            #expect(code { _ = try ClusterKey(bytes: [1, 2, 3]) } == .invalidArgument)
            #expect(code { _ = try ClusterKey(file: "/nowhere/key") } == .unavailable)
            #expect(code { _ = try ClusterKey(environment: "TE_NO_SUCH_KEY") } == .unavailable)
            try withFile(Self.digits, mode: 0o640) { path in
                #expect(code { _ = try ClusterKey(file: path) } == .accessDenied)
            }
            for bad in ["", "a7", Self.digits + "a", Self.digits + "zz"] {
                try withFile(bad, mode: 0o600) { path in
                    #expect(code { _ = try ClusterKey(file: path) } == .invalidArgument)
                }
            }
        }

        @Test func isNotShown() throws {
            let key = try ClusterKey(bytes: [UInt8](repeating: 0xA7, count: 32))
            let configuration = Configuration(clusterKey: key)
            var text = "\(key) \(configuration)" + String(reflecting: key) + String(reflecting: configuration)
            dump(configuration, to: &text)
            dump(key, to: &text)
            for secret in ["167", "a7", "A7"] { #expect(!text.contains(secret), "\(text)") }
            #expect(text.contains("not shown"))
        }
    }

    @Suite struct ReplayWindowTests {
        /// Against a set that remembers everything, for numbers in any order and with jumps.
        @Test func takesEachNumberOnce() {
            var random = SeededGenerator(seed: 9)
            var window = ReplayWindow()
            var taken = Set<UInt64>()
            var largest: UInt64 = 0
            for round in 0..<200_000 {
                let step = round % 1000 == 0 ? 20_000 : 300
                let low = largest > 9_000 ? largest - 9_000 : 0
                let near = Bool.random(using: &random) ? largest : low
                let number = UInt64.random(in: near...largest + UInt64(step), using: &random)
                let isOld = largest >= ReplayWindow.width && number <= largest - ReplayWindow.width
                let isNew = number > 0 && !isOld && !taken.contains(number)
                guard window.take(number) == isNew else {
                    Issue.record("number \(number) after \(largest)")
                    return
                }
                if isNew { taken.insert(number) }
                if isNew { largest = max(largest, number) }
            }
            #expect(!window.take(0) && !window.take(.max))
            #expect(taken.count > 10_000)
        }
    }

    private func hexadecimal(_ bytes: some Sequence<UInt8>) -> String {
        bytes.map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }.joined()
    }
#endif
