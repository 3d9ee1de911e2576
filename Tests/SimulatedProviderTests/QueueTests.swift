import SimulatedProvider
import Testing
import TransferCore

@Suite struct QueueTests {
    @Test func aFullQueueSaysAgain() throws {
        let pair = try Pair(left: SimulatedNIC(name: "left", queueDepth: 4))
        let base = try #require(UnsafeRawPointer(pair.source.bytes.baseAddress))
        let requests = (0..<6).map { index in
            WorkRequest(
                context: UInt64(index), source: base, length: 10, localKey: pair.source.key.local,
                target: pair.key, targetOffset: 0, immediate: 1, eighths: 8)
        }
        let result = requests.withUnsafeBufferPointer { pair.left.domain.post($0) }
        #expect(result.accepted == 4 && result.status == .again && !result.isComplete)
        #expect(pair.left.send([1], to: pair.key).status == .again)
        pair.settle()
        #expect(try pair.left.write(pair.source, 1, to: pair.key).status == .again, "not polled yet")
        #expect(pair.left.poll(limit: 1).requests == 1)
        #expect(try pair.left.write(pair.source, 1, to: pair.key, immediate: 1).accepted == 1)
        #expect(try pair.left.write(pair.source, 1, to: pair.key).status == .again)
        pair.settle()
        #expect(pair.left.poll().requests == 4)
        #expect(pair.right.page.eighths(of: 1) == 40)
    }

    @Test func aBadRequestStopsThePost() throws {
        let pair = try Pair()
        let base = try #require(UnsafeRawPointer(pair.source.bytes.baseAddress))
        let requests = (0..<3).map { index in
            WorkRequest(
                context: 0, source: base, length: 10, localKey: pair.source.key.local + UInt64(index),
                target: pair.key, targetOffset: 0, immediate: 1, eighths: 8)
        }
        let result = requests.withUnsafeBufferPointer { pair.left.domain.post($0) }
        #expect(result.accepted == 1 && result.status == .accessDenied)
        pair.settle()
        #expect(pair.left.poll().requests == 1)
        let none = pair.left.domain.post(UnsafeBufferPointer(start: nil, count: 0))
        #expect(none.accepted == 0 && none.status == .success)
    }

    @Test func messagesArrive() throws {
        let pair = try Pair()
        var payload = (0..<Limits.packetBytes).map { UInt8(truncatingIfNeeded: $0 * 7) }
        let original = payload
        #expect(pair.left.send(payload, to: pair.key, context: 5).accepted == 1)
        #expect(pair.left.send([], to: pair.key, context: 6).accepted == 1)
        for index in payload.indices { payload[index] = 0 }  // copied at send
        #expect(pair.right.poll().messages.isEmpty)
        pair.settle()
        let polled = pair.right.poll()
        #expect(polled.messages.sorted { $0.count > $1.count } == [original, []])
        #expect(polled.senders == [11, 11])
        #expect(Set(pair.left.poll().completions.map(\.context)) == [5, 6])
        let long = [UInt8](repeating: 0, count: Limits.packetBytes + 1)
        #expect(pair.left.send(long, to: pair.key).detail == SimulatedDetail.tooLong)
    }

    @Test func messagesStayUntilTheNextPoll() throws {
        let pair = try Pair()
        pair.left.send([1, 2, 3], to: pair.key)
        pair.settle()
        withUnsafeTemporaryAllocation(of: Completion.self, capacity: 8) { buffer in
            #expect(pair.right.domain.poll(buffer) == 1)
            let message = buffer[0].message
            pair.left.send([9, 9, 9], to: pair.key)
            pair.settle()
            #expect([UInt8](message) == [1, 2, 3])
        }
    }

    /// Beyond 1024 messages senders wait at the target, and go on in order when somebody polls.
    @Test(arguments: [true, false]) func fullInboxesPushBack(reorder: Bool) throws {
        let nic = SimulatedNIC(name: "left", queueDepth: 4096, reorder: reorder)
        let pair = try Pair(left: nic)
        for number in 0..<1500 {
            pair.left.send([UInt8(number & 255), UInt8(number >> 8)], to: pair.key)
        }
        pair.settle()
        #expect(pair.left.poll(limit: 4096).requests == 1024)
        pair.settle()
        #expect(pair.left.poll(limit: 4096).requests == 0, "nobody polls, nobody gets through")
        var messages = pair.right.poll(limit: 100).messages
        #expect(messages.count == 100)
        pair.settle()
        #expect(pair.left.poll(limit: 4096).requests == 100)
        while messages.count < 1500 {
            messages += pair.right.poll(limit: 4096).messages
            pair.settle()
        }
        #expect(pair.left.poll(limit: 4096).requests == 376)
        let numbers = messages.map { Int($0[0]) | Int($0[1]) << 8 }
        #expect(numbers.sorted() == (0..<1500).map { $0 })
        #expect((numbers == numbers.sorted()) == !reorder)
    }

    @Test func nobodyJumpsTheQueue() throws {
        let nic = SimulatedNIC(
            name: "left", latencyNanoseconds: 0, jitterNanoseconds: 0, queueDepth: 4096, reorder: false)
        let pair = try Pair(left: nic)
        for _ in 0..<1025 { pair.left.send([1], to: pair.key) }
        pair.settle()
        #expect(pair.right.poll(limit: 1024).messages.count == 1024)
        pair.left.send([2], to: pair.key)  // is there before the one that waits has tried again
        pair.settle()
        #expect(pair.right.poll().messages == [[1], [2]])
    }

    @Test func sendersToAFullInboxLearnThatItClosed() throws {
        let pair = try Pair(left: SimulatedNIC(name: "left", queueDepth: 4096))
        for _ in 0..<1030 { pair.left.send([1], to: pair.key) }
        pair.settle()
        pair.right.domain.close()
        pair.settle()
        let ends = pair.left.poll(limit: 4096).completions
        #expect(ends.filter { $0.status == .success }.reduce(0) { $0 + $1.count } == 1024)
        #expect(ends.filter { $0.status == .peerLost }.reduce(0) { $0 + $1.count } == 6)
    }

    @Test func attributesAndSleep() throws {
        let pair = try Pair(left: SimulatedNIC(name: "mlx5_0", megabitsPerSecond: 400_000))
        let attributes = pair.left.domain.attributes
        #expect(attributes.provider == "sim" && attributes.fabric == "sim" && attributes.name == "mlx5_0")
        #expect(attributes.megabitsPerSecond == 400_000 && !attributes.countsMany)
        #expect(pair.left.domain.address.count == 8)
        #expect(pair.left.domain.address != pair.right.domain.address)
        #expect(!pair.left.domain.prepareToSleep())
        #expect(pair.left.domain.wakeDescriptor == -1)
    }
}
