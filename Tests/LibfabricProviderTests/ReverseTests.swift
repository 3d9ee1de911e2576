import CLibfabric
import CPlatform
import Glibc
@testable import LibfabricProvider
import Testing
import TransferCore

/// What goes back to a peer that sends large writes takes a connection of its own.
@Suite("libfabric reverse", .serialized, .enabled(if: LibfabricProvider.isLoaded), .timeLimit(.minutes(2)))
struct ReverseTests {
    static let kinds = LibfabricDomainTests.kinds.filter(\.frames)

    @Test(arguments: kinds) func nothingTravelsAgainstLargeWrites(_ options: LibfabricOptions) throws {
        let pair = try Pair(options)
        try pair.stream()
        let there = try #require(pair.socket(to: pair.b))
        let back = try #require(pair.socket(to: pair.a), "B has a connection to A")
        let before = (there: there.received, back: back.sent)
        for _ in 0..<20 {
            pair.post((0..<20).map { _ in pair.request(3, length: 100_000, immediate: 3) })
            withUnsafeBytes(of: 7) { bytes in
                #expect(pair.run { pair.b.domain.send(bytes, to: pair.back, context: 4).accepted == 1 })
            }
        }
        #expect(pair.run { pair.a.ended[3] == 400 && pair.b.ended[4] == 20 })
        #expect(pair.a.statuses[3] == .success)
        #expect(there.received == before.there)
        #expect(back.sent > before.back)
    }

    /// Where there are no frames, and so no acknowledgements of ours, there is no second endpoint either.
    @Test(arguments: LibfabricDomainTests.kinds) func onlyWithFrames(_ options: LibfabricOptions) throws {
        let side = try Side(1, options, length: 4096)
        let handles = side.domain.state.pointee.handles
        #expect((handles.reverse != nil) == options.frames)
        #expect((handles.reverseCompletions != nil) == options.frames)
    }

    /// The kernel looks after every connection, whoever has opened it, also after one has broken while nobody used it: see
    /// `keepConnectionsAlive`.
    @Test(arguments: LibfabricDomainTests.kinds.filter(\.isTCP)) func connectionsAreKeptAlive(
        _ options: LibfabricOptions
    ) throws {
        let pair = try Pair(options)
        if options.frames { try pair.stream() }
        // What finds its connection broken may fail.
        func exchange() -> Bool {
            (pair.a.ended[5], pair.b.ended[4]) = (0, 0)
            (pair.a.statuses[5], pair.b.statuses[4]) = (nil, nil)
            withUnsafeBytes(of: 7) { bytes in
                #expect(pair.run { pair.a.domain.send(bytes, to: pair.target, context: 5).accepted == 1 })
                #expect(pair.run { pair.b.domain.send(bytes, to: pair.back, context: 4).accepted == 1 })
            }
            #expect(pair.run { pair.b.ended[4] == 1 && pair.a.ended[5] == 1 })
            return pair.b.statuses[4] == .success && pair.a.statuses[5] == .success
        }
        func keepAll() {
            #expect(pair.run(until: exchange))
            #expect(pair.a.domain.pollDue < .max, "it wants to be polled for this although nothing happens")
            pair.a.domain.state.pointee.keepsAliveAt = 0
            pair.b.domain.state.pointee.keepsAliveAt = 0
            #expect(pair.run { pair.a.domain.pollDue == .max && pair.b.domain.pollDue == .max })
            let ends = pair.ends()
            #expect(ends.count >= (options.frames ? 4 : 2), "both ends of each connection")
            for socket in ends {
                var isKept: Int32 = 0
                var length = socklen_t(MemoryLayout<Int32>.size)
                #expect(getsockopt(socket, SOL_SOCKET, SO_KEEPALIVE, &isKept, &length) == 0 && isKept == 1)
            }
        }
        keepAll()
        let before = Set(pair.ends().map(Inode.init))
        for socket in pair.ends() {
            var listens: Int32 = 0
            var length = socklen_t(MemoryLayout<Int32>.size)
            getsockopt(socket, SOL_SOCKET, SO_ACCEPTCONN, &listens, &length)
            if listens == 0 { shutdown(socket, Int32(SHUT_RDWR)) }
        }
        keepAll()
        #expect(!Set(pair.ends().map(Inode.init)).isSubset(of: before), "there are new connections")
    }

    /// A peer that does not look is asked now and then, not with every poll: each question takes a buffer of 24 KiB there, which
    /// libfabric keeps. Here its second connection stays half open.
    @Test(arguments: kinds.filter(\.isTCP)) func whoDoesNotLookIsNotFlooded(
        _ options: LibfabricOptions
    ) throws {
        let pair = try Pair(options)
        try pair.stream()
        withUnsafeBytes(of: 7) { bytes in
            #expect(pair.run { pair.b.domain.send(bytes, to: pair.back, context: 4).accepted == 1 })
        }
        let peer = pair.b.domain.state.pointee.peers + pair.back.pointee.peer
        while peer.pointee.firstInFlight < 0 && peer.pointee.open >= 0 { pair.b.poll() }
        #expect(peer.pointee.usesReverse)
        let before = pair.sent
        shutdown(try #require(pair.socket(to: pair.a)).descriptor, Int32(SHUT_RDWR))
        func pollB(milliseconds: UInt64) {
            let end = te_monotonic_nanoseconds() + milliseconds * 1_000_000
            while te_monotonic_nanoseconds() < end { pair.b.poll() }
        }
        pollB(milliseconds: 50)
        pair.b.domain.sever(UnsafePointer(pair.back))
        pollB(milliseconds: 500)
        #expect(peer.pointee.provesSince != 0 && peer.pointee.provesReverse, "it is still to be asked")
        #expect(pair.sent < before + 8 * 1024, "a question is less than 256 bytes")
        #expect(pair.run { peer.pointee.provesSince == 0 }, "and answered once the peer looks")
    }

    private struct Inode: Hashable {
        let number: UInt
        init(_ descriptor: Int32) {
            var status = stat()
            number = fstat(descriptor, &status) == 0 ? UInt(status.st_ino) : 0
        }
    }

    /// A peer that never sends a frame by itself learns that it should acknowledge.
    @Test(arguments: kinds) func largeWritesAloneAreCounted(_ options: LibfabricOptions) throws {
        let pair = try Pair(options)
        let peer = pair.a.domain.state.pointee.peers + pair.target.pointee.peer
        var posted = 0
        #expect(
            pair.run {
                posted += 1
                pair.post([pair.request(1, length: 100_000)])
                return peer.pointee.countedWrites > 0
            })
        #expect(pair.run { pair.a.ended[1] == posted })
        #expect(pair.b.page.eighths(of: 1) == Int64(posted) * 8)
    }

    /// The last writes of a burst are asked for, and need not wait until the receiver has been calm for long.
    @Test(arguments: kinds) func theEndOfABurstIsAskedFor(_ options: LibfabricOptions) throws {
        let pair = try Pair(options)
        try pair.stream()
        for round in 0..<10 {
            pair.post((0..<5).map { _ in pair.request(3, length: 40_000) })
            var polls: UInt32 = 0
            #expect(
                pair.run {
                    polls += 1
                    return pair.a.ended[3] == 5 * (round + 1)
                })
            #expect(polls < Tuning.calmPolls / 2)
        }
    }

    /// Frames and writes change over to the second connection, and back, without overtaking each other.
    @Test(arguments: kinds) func orderSurvivesTheChange(_ options: LibfabricOptions) throws {
        let pair = try Pair(options)
        let peer = pair.b.domain.state.pointee.peers + pair.back.pointee.peer
        var changes = 0
        var number = 0
        for round in 0..<6 {
            let streams = round & 1 == 0
            var usedReverse = peer.pointee.usesReverse
            let end = number + 400
            while number < end {
                if streams { pair.post([pair.request(1, length: 100_000, immediate: 1)]) }
                withUnsafeBytes(of: number) { bytes in
                    #expect(pair.run { pair.b.domain.send(bytes, to: pair.back, context: 4).accepted == 1 })
                }
                pair.answer(5, length: number % 3 == 0 ? 50_000 : 64, eighths: number % 5 == 0 ? 24 : 8)
                number += 1
                if number % 8 == 0 { #expect(pair.run { pair.b.ended[5] == number }) }
                if peer.pointee.usesReverse != usedReverse { changes += 1 }
                usedReverse = peer.pointee.usesReverse
            }
            #expect(pair.run { pair.b.ended[5] == number && pair.b.ended[4] == number })
            if streams {
                for _ in 0...Tuning.streamPolls {
                    pair.a.poll()
                    pair.b.poll()
                }
            }
        }
        #expect(changes >= 3, "there and back")
        #expect(pair.b.statuses == [4: .success, 5: .success])
        let numbers = pair.a.messages.map { $0.bytes.withUnsafeBytes { $0.loadUnaligned(as: Int.self) } }
        #expect(numbers == Array(0..<number))
        let odd = (number + 4) / 5
        #expect(pair.run { pair.a.page.eighths(of: 2) == Int64(odd * 24 + (number - odd) * 8) })
    }

    /// While anything is on its way, what follows it takes the same connection, although another one is wanted.
    @Test(arguments: kinds) func nothingChangesOverWhileDataIsOnItsWay(_ options: LibfabricOptions) throws {
        let pair = try Pair(options)
        try pair.stream()
        let peer = pair.b.domain.state.pointee.peers + pair.back.pointee.peer
        func leavesFromReverse() -> Bool { pair.b.domain.state.pointee.usesReverse(peer) }
        pair.answer(5, length: 64, eighths: 8)
        #expect(pair.run { pair.b.ended[5] == 1 })
        try #require(peer.pointee.usesReverse)
        for (context, length) in [(6 as UInt64, 100_000), (7, 64)] {
            peer.pointee.isStreaming = true
            peer.pointee.streamedAt = pair.b.domain.state.pointee.polls
            pair.answer(context, length: length, eighths: 8)
            try #require(peer.pointee.usesReverse)
            pair.b.poll()
            peer.pointee.isStreaming = false
            #expect(leavesFromReverse(), "\(length) bytes are on their way")
            #expect(pair.run { pair.b.ended[context] == 1 })
            #expect(!leavesFromReverse())
            peer.pointee.isStreaming = true
            peer.pointee.streamedAt = pair.b.domain.state.pointee.polls
            #expect(leavesFromReverse())
        }
    }

    /// When the second connection breaks with nothing but acknowledgements on it, the writes go on.
    @Test(arguments: kinds) func acknowledgementsSurviveTheirConnection(_ options: LibfabricOptions) throws {
        let pair = try Pair(options)
        try pair.stream()
        for round in 0..<4 {
            let back = try #require(pair.socket(to: pair.a))
            shutdown(back.descriptor, Int32(SHUT_RDWR))
            pair.post((0..<50).map { _ in pair.request(3, length: 100_000, immediate: 3) })
            #expect(pair.run { pair.a.ended[3] == 50 * (round + 1) })
            #expect(pair.a.statuses[3] == .success)
            try pair.stream()
        }
        #expect(pair.b.page.eighths(of: 3) == 4 * 50 * 8)
    }

    /// When the first one breaks, what was on it is lost or confirmed, and what comes later works.
    @Test(arguments: kinds) func writesDoNotSurviveTheirConnection(_ options: LibfabricOptions) throws {
        let pair = try Pair(options)
        try pair.stream()
        let there = try #require(pair.socket(to: pair.b))
        shutdown(there.descriptor, Int32(SHUT_RDWR))
        var confirmed = 0
        var context: UInt64 = 100
        repeat {
            context += 1
            guard pair.post([pair.request(context, length: 100_000, immediate: 3)]) == .success else {
                continue
            }
            #expect(pair.run { pair.a.ended[context] == 1 })
            if pair.a.statuses[context] == .success { confirmed += 1 }
            let pause = te_monotonic_nanoseconds() + 10_000_000
            _ = pair.run { te_monotonic_nanoseconds() > pause }
        } while confirmed < 5 && context < 500
        #expect(confirmed == 5)
        let arrived = pair.b.page.eighths(of: 3)
        #expect(arrived >= Int64(confirmed) * 8 && arrived <= Int64(context - 100) * 8)
    }
}

/// One end of a TCP connection of this process.
private struct Socket {
    var descriptor: Int32

    /// Bytes that the kernel has received, and those that it was given to send: acknowledgements may come much later.
    var received: UInt64 { counter(at: 128) }
    var sent: UInt64 { counter(at: 200) + counter(at: 144) & UInt64(UInt32.max) }

    /// A field of Linux's tcp_info, which is longer than the C library's.
    private func counter(at offset: Int) -> UInt64 {
        var bytes = [UInt8](repeating: 0, count: 256)
        var length = socklen_t(bytes.count)
        guard getsockopt(descriptor, Int32(IPPROTO_TCP), TCP_INFO, &bytes, &length) == 0 else { return 0 }
        return bytes.withUnsafeBytes { $0.loadUnaligned(fromByteOffset: offset, as: UInt64.self) }
    }
}

extension Pair {
    /// What B sends to A.
    fileprivate func answer(_ context: UInt64, length: Int, eighths: UInt32) {
        let request = WorkRequest(
            context: context, source: b.memory, length: length, localKey: b.key.local, target: back,
            targetOffset: 1 << 20, immediate: 2, eighths: eighths)
        _ = run {
            withUnsafePointer(to: request) {
                b.domain.post(UnsafeBufferPointer(start: $0, count: 1)).accepted == 1
            }
        }
    }

    /// Sends large writes until the second connection is there.
    fileprivate func stream() throws {
        let peer = b.domain.state.pointee.peers + back.pointee.peer
        var posted = a.ended[900, default: 0] + 50
        let opened = run {
            post([request(900, length: 100_000, immediate: 9)])
            posted += 1
            return peer.pointee.isReverseOpen && socket(to: a) != nil
        }
        try #require(opened)
        post((0..<50).map { _ in request(900, length: 100_000, immediate: 9) })
        try #require(run { a.ended[900] == posted })
    }

    /// Bytes that have gone over all connections between the sides.
    fileprivate var sent: UInt64 { ends().reduce(0) { $0 + Socket(descriptor: $1).sent } }

    /// Both ends of all connections between the sides.
    fileprivate func ends() -> [Int32] {
        let ports = [a, b].map { Array($0.domain.address[2...3]) }
        return (3..<1024 as Range<Int32>).filter { descriptor in
            [getpeername, getsockname].contains { name in
                var bytes = [UInt8](repeating: 0, count: 64)
                var length = socklen_t(bytes.count)
                let found = bytes.withUnsafeMutableBytes {
                    $0.withMemoryRebound(to: sockaddr.self) { name(descriptor, $0.baseAddress, &length) }
                }
                return found == 0 && bytes[0] == UInt8(AF_INET) && ports.contains(Array(bytes[2...3]))
            }
        }
    }

    /// The connection that was opened to a side's address and is up.
    fileprivate func socket(to side: Side) -> Socket? {
        let port = Array(side.domain.address[2...3])
        for descriptor in 3..<1024 as Range<Int32> {
            var bytes = [UInt8](repeating: 0, count: 64)
            var length = socklen_t(bytes.count)
            let found = bytes.withUnsafeMutableBytes {
                $0.withMemoryRebound(to: sockaddr.self) { getpeername(descriptor, $0.baseAddress, &length) }
            }
            if found == 0, bytes[0] == UInt8(AF_INET), Array(bytes[2...3]) == port {
                return Socket(descriptor: descriptor)
            }
        }
        return nil
    }
}
