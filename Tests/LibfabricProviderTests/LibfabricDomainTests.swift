import CLibfabric
import CPlatform
import Glibc
@testable import LibfabricProvider
import Synchronization
import Testing
import TransferCore

@Suite("libfabric domain", .serialized, .enabled(if: LibfabricProvider.isLoaded), .timeLimit(.minutes(2)))
struct LibfabricDomainTests {
    static let kinds: [LibfabricOptions] = {
        var kinds: [LibfabricOptions] = []
        for provider in ["tcp", "tcp;ofi_rxm", "net"] {
            kinds.append(LibfabricOptions(provider: provider, nic: "127.0.0.1"))
            kinds.append(LibfabricOptions(provider: provider, nic: "127.0.0.1", framing: .never))
        }
        kinds.append(LibfabricOptions(provider: "shm"))
        // Which providers there are depends on how libfabric was built: net became part of tcp.
        let present = Set(LibfabricProvider.available().map(\.provider))
        return kinds.filter { $0.provider.hasPrefix("tcp") || present.contains($0.provider) }
    }()

    @Test(arguments: kinds) func writesOfAllLengths(_ options: LibfabricOptions) throws {
        let pair = try Pair(options)
        var offset = 0
        for (number, length) in [0, 1, 7, 48, 1021, 4096, 16384, 16385, 65536, 1 << 20].enumerated() {
            let context = UInt64(100 + number)
            #expect(
                pair.post([
                    pair.request(context, length: length, from: offset, to: offset, immediate: UInt32(number))
                ]) == .success)
            #expect(pair.run { pair.a.ended[context] == 1 })
            #expect(pair.a.statuses[context] == .success)
            #expect(pair.isEqual(from: offset, to: offset, length: length))
            #expect(pair.run { pair.b.page.eighths(of: UInt32(number)) == 8 })
            offset += length
        }
    }

    @Test(arguments: kinds) func sharesOfACount(_ options: LibfabricOptions) throws {
        let pair = try Pair(options)
        pair.post([1, 2, 4, 8, 0].map { pair.request(9, length: 64, eighths: $0) })
        #expect(pair.run { pair.a.ended[9] == 5 && pair.b.page.eighths(of: 1) == 15 })
        guard pair.a.domain.attributes.countsMany else { return }
        pair.post([
            pair.request(10, length: 512, immediate: 2, eighths: 24),
            pair.request(10, length: 1 << 20, immediate: 2, eighths: 80),
        ])
        #expect(pair.run { pair.a.ended[10] == 2 })
        #expect(pair.b.page.eighths(of: 2) == 104)
        #expect(pair.isEqual(from: 0, to: 0, length: 1 << 20))
    }

    @Test(arguments: kinds) func manyPages(_ options: LibfabricOptions) throws {
        let pair = try Pair(options)
        var generator = SeededGenerator(seed: 4)
        let sources = Array(0..<1024).shuffled(using: &generator)
        let targets = Array(0..<1024).shuffled(using: &generator)
        pair.post(
            (0..<1024).map { pair.request(7, length: 1024, from: sources[$0] * 1024, to: targets[$0] * 1024) }
        )
        #expect(pair.run { pair.a.ended[7] == 1024 && pair.b.page.eighths(of: 1) == 8192 })
        #expect(
            (0..<1024).allSatisfy {
                pair.isEqual(from: sources[$0] * 1024, to: targets[$0] * 1024, length: 1024)
            })
    }

    @Test func refusesWhatTheRegionDoesNotAllow() throws {
        let pair = try Pair(Self.kinds[0])
        let wrong = UnsafeMutablePointer<ImportedKey>.allocate(capacity: 3)
        defer { wrong.deallocate() }
        wrong.initialize(repeating: pair.target.pointee, count: 3)
        wrong[0].secret ^= 1
        wrong[1].generation += 1
        wrong[2].index = .max
        let before = [UInt8](UnsafeRawBufferPointer(start: pair.b.memory, count: 64))
        // In one frame, among good ones: each ends its own way.
        pair.post([
            pair.request(1, length: 8, to: 4096),
            pair.request(2, length: 8, immediate: 5, target: wrong),
            pair.request(3, length: 8, to: 4104),
            pair.request(4, length: 8, immediate: 5, target: wrong + 1),
            pair.request(5, length: 8, to: pair.b.length - 4, immediate: 5),
            pair.request(6, length: 8, immediate: 5, target: wrong + 2),
            pair.request(7, length: 8, to: 4112),
        ])
        #expect(pair.run { pair.a.ended.count == 7 })
        let expected: [UInt64: WorkStatus] = [
            1: .success, 2: .accessDenied, 3: .success, 4: .staleRegion, 5: .outOfRange, 6: .staleRegion,
            7: .success,
        ]
        #expect(pair.a.statuses == expected)
        #expect(pair.b.page.eighths(of: 1) == 24)
        #expect(pair.b.page.eighths(of: 5) == 0)
        #expect(before == [UInt8](UnsafeRawBufferPointer(start: pair.b.memory, count: 64)))
    }

    @Test func reportsManyFailuresOfManyFrames() throws {
        let pair = try Pair(Self.kinds[0])
        let wrong = UnsafeMutablePointer<ImportedKey>.allocate(capacity: 1)
        defer { wrong.deallocate() }
        wrong.initialize(to: pair.target.pointee)
        wrong.pointee.secret ^= 1
        // Alternating, so that no two failures can be told as one.
        pair.post(
            (0..<20_000).map {
                pair.request(UInt64($0 & 1), length: 16, target: $0 & 1 == 1 ? wrong : nil)
            })
        #expect(pair.run { pair.a.ended[0] == 10_000 && pair.a.ended[1] == 10_000 })
        #expect(pair.a.statuses == [0: .success, 1: .accessDenied])
        #expect(pair.b.page.eighths(of: 1) == 80_000)
    }

    @Test(arguments: kinds) func messagesBothWays(_ options: LibfabricOptions) throws {
        let pair = try Pair(options)
        let back = UnsafeMutablePointer<ImportedKey>.allocate(capacity: 1)
        defer { back.deallocate() }
        back.initialize(to: try pair.b.domain.importRegion(pair.a.descriptor, nic: 0))
        let lengths = [0, 1, 5, 1000, Limits.packetBytes]
        for (number, length) in lengths.enumerated() {
            let bytes = (0..<length).map { UInt8(truncatingIfNeeded: $0 &+ number) }
            for (side, other, key) in [(pair.a, pair.b, pair.target), (pair.b, pair.a, back)] {
                var accepted = 0
                _ = pair.run {
                    accepted = bytes.withUnsafeBytes {
                        side.domain.send($0, to: UnsafePointer(key), context: UInt64(number)).accepted
                    }
                    return accepted == 1
                }
                #expect(pair.run { side.ended[UInt64(number)] == 1 && other.messages.count == number + 1 })
                #expect(other.messages.last?.bytes == bytes)
                #expect(other.messages.last?.sender == side.engine.rawValue)
            }
        }
        let tooLong = [UInt8](repeating: 0, count: Limits.packetBytes + 1)
        let result = tooLong.withUnsafeBytes {
            pair.a.domain.send($0, to: UnsafePointer(pair.target), context: 1)
        }
        #expect(result.status == .outOfRange && result.accepted == 0)
    }

    @Test func messagesInTheOrderSent() throws {
        let pair = try Pair(Self.kinds[0])
        for number in 0..<3000 {
            withUnsafeBytes(of: number) { bytes in
                #expect(
                    pair.run {
                        pair.a.domain.send(bytes, to: UnsafePointer(pair.target), context: 4).accepted == 1
                    })
            }
        }
        #expect(pair.run { pair.a.ended[4] == 3000 && pair.b.messages.count == 3000 })
        let numbers = pair.b.messages.map { $0.bytes.withUnsafeBytes { $0.loadUnaligned(as: Int.self) } }
        #expect(numbers == Array(0..<3000))
    }

    @Test(arguments: kinds[0...1]) func aFloodPushesBackAndLosesNothing(_ options: LibfabricOptions) throws {
        let pair = try Pair(options)
        let count = 100_000
        pair.post((0..<count).map { pair.request(UInt64($0 % 3), length: 8, to: $0 * 8, immediate: 2) })
        #expect(pair.run { pair.a.ended.values.reduce(0, +) == count })
        #expect(pair.a.statuses.values.allSatisfy { $0 == .success })
        #expect(pair.run { pair.b.page.eighths(of: 2) == Int64(count) * 8 })
    }

    @Test func bothWaysAtOnce() throws {
        let pair = try Pair(Self.kinds[0])
        let back = UnsafeMutablePointer<ImportedKey>.allocate(capacity: 1)
        defer { back.deallocate() }
        back.initialize(to: try pair.b.domain.importRegion(pair.a.descriptor, nic: 0))
        let there = (0..<64).map { pair.request(1, length: 1 << ($0 % 18), immediate: 3) }
        let here = (0..<64).map {
            WorkRequest(
                context: 2, source: pair.b.memory, length: 1 << ($0 % 18), localKey: pair.b.key.local,
                target: UnsafePointer(back), targetOffset: 1 << 20, immediate: 4, eighths: 8)
        }
        for round in 0..<50 {
            var sent = (0, 0)
            let finished = pair.run {
                if sent.0 < 64 {
                    sent.0 += there.withUnsafeBufferPointer {
                        pair.a.domain.post(UnsafeBufferPointer(rebasing: $0[sent.0...])).accepted
                    }
                }
                if sent.1 < 64 {
                    sent.1 += here.withUnsafeBufferPointer {
                        pair.b.domain.post(UnsafeBufferPointer(rebasing: $0[sent.1...])).accepted
                    }
                }
                return pair.a.ended[1] == 64 * (round + 1) && pair.b.ended[2] == 64 * (round + 1)
            }
            #expect(finished)
        }
        #expect(
            pair.run {
                pair.b.page.eighths(of: 3) == 64 * 50 * 8 && pair.a.page.eighths(of: 4) == 64 * 50 * 8
            })
    }

    @Test func aPeerThatGoesAwayIsLost() throws {
        let pair: Pair = try Pair(Self.kinds[0])
        pair.post([pair.request(1, length: 64), pair.request(1, length: 1 << 20)])
        #expect(pair.run { pair.a.ended[1] == 2 })
        pair.b.domain.close()
        let requests = (0..<8).map { pair.request(2, length: $0 & 1 == 0 ? 64 : 1 << 20) }
        let end = te_monotonic_nanoseconds() + 15_000_000_000
        var accepted = 0
        var refused = WorkStatus.success
        while te_monotonic_nanoseconds() < end {
            if accepted < requests.count && refused != .peerLost {
                let result = requests.withUnsafeBufferPointer {
                    pair.a.domain.post(UnsafeBufferPointer(rebasing: $0[accepted...]))
                }
                accepted += result.accepted
                refused = result.status
            }
            pair.a.poll()
            let isOver = accepted == requests.count || refused == .peerLost
            if isOver && pair.a.ended[2, default: 0] == accepted { break }
        }
        #expect(pair.a.ended[2, default: 0] == accepted)
        #expect(accepted == 0 || pair.a.statuses[2] == .peerLost)
        #expect(accepted == requests.count || refused == .peerLost)
    }

    @Test func sleepsAndWakes() throws {
        let pair = try Pair(Self.kinds[0])
        pair.post([pair.request(1, length: 64)])
        #expect(pair.run { pair.a.ended[1] == 1 })
        #expect(pair.b.domain.wakeDescriptor >= 0)
        #expect(pair.run { pair.b.domain.prepareToSleep() })
        var waiter = pollfd(fd: pair.b.domain.wakeDescriptor, events: Int16(POLLIN), revents: 0)
        pair.post([pair.request(2, length: 64)])
        #expect(Glibc.poll(&waiter, 1, 5000) == 1)
        #expect(pair.run { pair.a.ended[2] == 1 })
    }

    /// Writes that the receiver's acknowledgement ends: if one of them never came - a connection that broke behind its
    /// back - none after it is confirmed, nor counted.
    @Test func lostWritesAreNotConfirmed() throws {
        let pair = try Pair(Self.kinds[0])
        let number = pair.target.pointee.peer
        // The first exchange tells the sender its place in the receiver's table.
        pair.post([pair.request(1, length: 64)])
        #expect(pair.run { pair.a.ended[1] == 1 })
        pair.post([pair.request(2, length: 100_000, immediate: 5)])
        #expect(pair.run { pair.a.ended[2] == 1 })
        #expect(pair.a.statuses[2] == .success)
        let sent = pair.a.domain.state.pointee.peers[number].countedWrites
        #expect(sent == 1, "large writes are counted")
        // As if one more had been posted and been lost.
        pair.a.domain.state.pointee.peers[number].countedWrites += 1
        pair.post([pair.request(3, length: 100_000, immediate: 5)])
        #expect(pair.run { pair.a.ended[3] == 1 })
        #expect(pair.a.statuses[3] == .peerLost)
        #expect(pair.b.page.eighths(of: 5) == 8, "a write that its sender is told is lost is not counted")
        // Both sides start over.
        for context in 4..<8 as Range<UInt64> {
            pair.post([pair.request(context, length: 100_000, from: 4096, to: 8192, immediate: 6)])
            #expect(pair.run { pair.a.ended[context] == 1 })
            #expect(pair.a.statuses[context] == .success)
        }
        #expect(pair.isEqual(from: 4096, to: 8192, length: 100_000))
        #expect(pair.b.page.eighths(of: 6) == 32)
    }

    /// What a counted write ends with comes out again, and its last byte says that it is there.
    @Test func countedWritesEndWithTheirCount() {
        for (eighths, epoch, asks) in [(8, 0, false), (1, 65535, true), (0, 1 << 29, true)]
            as [(UInt32, UInt32, Bool)]
        {
            let write = CountedWrite(Immediate.max.value, eighths: eighths, epoch: epoch, asks: asks)
            #expect(write.isThere && write.hasImmediate == (eighths > 0) && write.asks == asks)
            #expect(write.isOf(epoch: epoch) && !write.isOf(epoch: epoch &+ 1))
            #expect(!write.isOf(epoch: epoch &- 1))
            if eighths > 0 {
                let wire = WireImmediate(rawValue: UInt32(truncatingIfNeeded: write.rawValue))
                #expect(wire.eighths == eighths && wire.immediate == Immediate.max.value)
            }
            for bytes in 0..<8 as Range<UInt64> {
                #expect(!CountedWrite(rawValue: write.rawValue & (1 << (bytes * 8) - 1)).isThere)
            }
        }
    }

    /// What arrives late of an epoch that is over, its sender may have sent again: it is cleared and not counted.
    @Test func aWriteOfAnEpochThatIsOver() throws {
        let pair = try Pair(Self.kinds[0])
        pair.post([pair.request(1, length: 100_000, immediate: 5)])
        #expect(pair.run { pair.a.ended[1] == 1 })
        let state = pair.b.domain.state
        let index = try #require(
            (0..<state.pointee.peerCount).first { state.pointee.peers[$0].engine == pair.a.engine.rawValue })
        let peer = state.pointee.peers + index
        let ring = state.pointee.rings + index * Int(CountedWrite.sequences)
        state.pointee.startEpoch(peer.pointee.inEpoch + 1, of: Int32(index))
        let now = peer.pointee.inEpoch
        for (epoch, eighths) in [(now - 1, 8), (now, 16)] as [(UInt32, Int64)] {
            ring.pointee = CountedWrite(5, eighths: 8, epoch: epoch, asks: false).rawValue
            pair.b.poll()
            #expect(ring.pointee == 0)
            #expect(pair.b.page.eighths(of: 5) == eighths)
        }
    }

    @Test func aWrongKeyFailsAndTheNextWriteWorks() throws {
        let pair = try Pair(Self.kinds[1])
        let wrong = UnsafeMutablePointer<ImportedKey>.allocate(capacity: 1)
        defer { wrong.deallocate() }
        wrong.initialize(to: pair.target.pointee)
        wrong.pointee.key ^= 1
        pair.post([pair.request(1, length: 64), pair.request(2, length: 64, to: 4096, target: wrong)])
        #expect(pair.run { pair.a.ended[1] == 1 && pair.a.ended[2] == 1 })
        #expect(pair.a.statuses[1] == .success)
        #expect(pair.a.statuses[2] == .accessDenied || pair.a.statuses[2] == .peerLost)
        #expect(!pair.isEqual(from: 0, to: 4096, length: 64))
        // libfabric drops the connection, with whatever was given to it until it noticed; then it opens
        // another.
        var tries: UInt64 = 0
        repeat {
            tries += 1
            #expect(pair.post([pair.request(2 + tries, length: 64, from: 64, to: 8192)]) == .success)
            #expect(pair.run { pair.a.ended[2 + tries] == 1 })
            if pair.a.statuses[2 + tries] != .peerLost { break }
            let pause = te_monotonic_nanoseconds() + 50_000_000
            _ = pair.run { te_monotonic_nanoseconds() > pause }
        } while tries < 60
        #expect(pair.a.statuses[2 + tries] == .success)
        #expect(pair.isEqual(from: 64, to: 8192, length: 64))
    }

    /// Whatever a peer sends, nothing traps, nothing is written outside a region, and others are served.
    @Test func survivesRandomFrames() throws {
        let pair = try Pair(Self.kinds[0])
        let honest = try Side(33, Self.kinds[0])
        let honestKey = UnsafeMutablePointer<ImportedKey>.allocate(capacity: 1)
        defer { honestKey.deallocate() }
        honestKey.initialize(to: try honest.domain.importRegion(pair.b.descriptor, nic: 0))
        let state = pair.a.domain.state
        let address = state.pointee.peers[pair.target.pointee.peer].address
        let contexts = UnsafeMutablePointer<fi_context2>.allocate(capacity: 4000)
        let bytes = UnsafeMutableRawPointer.allocate(byteCount: 1024, alignment: 8)
        defer {
            contexts.deallocate()
            bytes.deallocate()
        }
        var generator = SeededGenerator(seed: 99)
        for number in 0..<4000 {
            let length = Int.random(in: 1...1024, using: &generator)
            for offset in stride(from: 0, to: 1024, by: 8) {
                bytes.storeBytes(of: generator.next(), toByteOffset: offset, as: UInt64.self)
            }
            // Mostly headers that are nearly right, so that what lies behind the checks is reached.
            if number % 8 != 0 {
                let small = { (limit: UInt32) in UInt32.random(in: 0...limit, using: &generator) }
                let hello = number % 5 == 0
                let header = FrameHeader(
                    flags: UInt16(small(31)) & ~1 | (hello ? 1 : 0),
                    start: hello ? 136 : UInt16(64 + small(3) * 8),
                    length: UInt32(length), to: hello ? .max : small(2), from: small(1), epoch: small(2),
                    sequence: small(20), ackEpoch: small(1), ack: small(20), failures: small(2), sender: 11,
                    receiver: 22, writes: small(2), writesAck: small(2))
                bytes.storeBytes(of: header, as: FrameHeader.self)
                if hello {
                    bytes.storeBytes(
                        of: UInt64(pair.a.domain.address.count), toByteOffset: 64, as: UInt64.self)
                    for (offset, byte) in pair.a.domain.address.enumerated() {
                        bytes.storeBytes(of: byte, toByteOffset: 72 + offset, as: UInt8.self)
                    }
                }
            }
            #expect(
                pair.run {
                    fi_send(state.pointee.handles.endpoint, bytes, length, nil, address, contexts + number)
                        == 0
                })
            // The bytes are reused: wait until they are out.
            for _ in 0..<20 {
                pair.a.poll()
                pair.b.poll()
            }
        }
        let good = WorkRequest(
            context: 8, source: honest.memory, length: 4096, localKey: honest.key.local,
            target: UnsafePointer(honestKey), targetOffset: 0, immediate: 77, eighths: 8)
        var accepted = 0
        let served = pair.run {
            honest.poll()
            if accepted == 0 {
                accepted = withUnsafePointer(to: good) {
                    honest.domain.post(UnsafeBufferPointer(start: $0, count: 1)).accepted
                }
            }
            return honest.ended[8] == 1
        }
        #expect(served && honest.statuses[8] == .success)
    }
}
