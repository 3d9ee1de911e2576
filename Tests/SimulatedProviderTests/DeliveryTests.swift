import SimulatedProvider
import Testing
import TransferCore

@Suite struct DeliveryTests {
    @Test(arguments: [true, false], [true, false]) func dataIsRight(reorder: Bool, cuts: Bool) throws {
        let nic = SimulatedNIC(name: "left", queueDepth: 4096, reorder: reorder, cutsWrites: cuts)
        let pair = try Pair(seed: 3, left: nic)
        var random = SeededGenerator(seed: 4)
        var offset = 0
        var writes = 0
        while offset < pair.source.bytes.count {
            let length = min(Int.random(in: 0...40_000, using: &random), pair.source.bytes.count - offset)
            let place = UInt64(offset)
            try pair.left.write(pair.source, from: offset, length, to: pair.key, at: place, immediate: 9)
            offset += length
            writes += 1
        }
        pair.settle()
        #expect(pair.target.bytes.elementsEqual(pair.source.bytes))
        #expect(pair.right.page.eighths(of: 9) == Int64(8 * writes))
        #expect(pair.left.poll().requests == writes)
    }

    @Test func edgesOfARegion() throws {
        let pair = try Pair(bytes: 1000)
        let last = pair.source.bytes.count - 1
        try pair.left.write(pair.source, 0, to: pair.key, immediate: 1)
        try pair.left.write(pair.source, from: 1000, 0, to: pair.key, at: 1000, immediate: 1)
        try pair.left.write(pair.source, from: last, 1, to: pair.key, at: UInt64(last), immediate: 1)
        pair.settle()
        #expect(pair.right.page.eighths(of: 1) == 24)
        #expect(pair.target.bytes[last] == pair.source.bytes[last])
        #expect(pair.target.bytes[..<last].allSatisfy { $0 == 0 })
    }

    /// At the moment when a count appears, all of that write is there, whatever came before and after it.
    @Test func countsNeverComeBeforeData() throws {
        let nic = SimulatedNIC(name: "left", jitterNanoseconds: 40_000)
        let pair = try Pair(seed: 5, left: nic)
        let length = 150_000
        for write in 0..<6 {
            let offset = write * length
            try pair.left.write(
                pair.source, from: offset, length, to: pair.key, at: UInt64(offset), immediate: UInt32(write))
        }
        var seen: [Int] = []
        var sawPartOfOne = false
        while pair.network.step() {
            for write in 0..<6 where !seen.contains(write) {
                let range = write * length..<(write + 1) * length
                let isHere = pair.target.bytes[range].elementsEqual(pair.source.bytes[range])
                if pair.right.page.eighths(of: UInt32(write)) > 0 {
                    seen.append(write)
                    #expect(isHere)
                } else {
                    #expect(!isHere, "the count comes with the last byte")
                    // The source has no zero bytes: what landed at the end before the start was out of order.
                    sawPartOfOne = sawPartOfOne || pair.target.bytes[range.upperBound - 1] != 0
                }
            }
        }
        #expect(seen.count == 6)
        #expect(sawPartOfOne, "parts of a write land one by one")
    }

    /// Without jitter as well: whoever waits for the last byte of a write is wrong on some seeds.
    @Test(arguments: [true, false]) func partsLandInAnyOrder(reorder: Bool) throws {
        var lastCameFirst = 0
        for seed in 0..<20 as Range<UInt64> {
            let nic = SimulatedNIC(name: "left", jitterNanoseconds: 0, reorder: reorder)
            let pair = try Pair(seed: seed, left: nic)
            try pair.left.write(pair.source, 500_000, to: pair.key)
            while pair.target.bytes[0] == 0, pair.target.bytes[499_999] == 0 {
                #expect(pair.network.step())
            }
            if pair.target.bytes[0] == 0 { lastCameFirst += 1 }
        }
        #expect(reorder ? (3...17).contains(lastCameFirst) : lastCameFirst == 0)
    }

    private func ends(_ nic: SimulatedNIC) throws -> (landed: [UInt32], completed: [UInt64]) {
        let pair = try Pair(seed: 6, left: nic)
        for write in 0..<100 as Range<UInt32> {
            try pair.left.write(
                pair.source, 10_000, to: pair.key, immediate: write, context: UInt64(write))
        }
        var landed: [UInt32] = []
        while pair.network.step() {
            for write in 0..<100 as Range<UInt32> where pair.right.page.eighths(of: write) > 0 {
                if !landed.contains(write) { landed.append(write) }
            }
        }
        return (landed, pair.left.poll().completions.map(\.context))
    }

    @Test func anyOrderMeansAnyOrder() throws {
        let found = try ends(SimulatedNIC(name: "left", jitterNanoseconds: 20_000))
        #expect(found.landed.count == 100 && found.completed.count == 100)
        #expect(found.landed != found.landed.sorted())
        #expect(found.completed != found.completed.sorted())
        #expect(found.completed != found.landed.map(UInt64.init), "acknowledgements overtake, too")
    }

    @Test func orderedNICsKeepOrder() throws {
        let nic = SimulatedNIC(name: "left", jitterNanoseconds: 20_000, reorder: false)
        let found = try ends(nic)
        #expect(found.landed == (0..<100).map { $0 })
        #expect(found.completed == (0..<100).map { $0 })
    }

    @Test func completionsComeAfterDelivery() throws {
        let pair = try Pair(seed: 7)
        try pair.left.write(pair.source, 5_000, to: pair.key, immediate: 3)
        var counted: UInt64?
        while pair.left.poll().requests == 0 {
            #expect(pair.network.step())
            if counted == nil, pair.right.page.eighths(of: 3) == 8 { counted = pair.network.nowNanoseconds }
        }
        #expect(try pair.network.nowNanoseconds >= #require(counted) + 2_000)
    }

    /// What a buffer holds when its bytes land is what arrives, not what it held when it was posted.
    @Test func earlyReuseOfABufferShows() throws {
        let pair = try Pair(seed: 8)
        let before = [UInt8](pair.source.bytes)
        try pair.left.write(pair.source, pair.source.bytes.count, to: pair.key, immediate: 1)
        while pair.target.bytes.allSatisfy({ $0 == 0 }) { #expect(pair.network.step()) }
        pair.source.bytes.initializeMemory(as: UInt8.self, repeating: 0)
        pair.settle()
        #expect(pair.right.page.eighths(of: 1) == 8)
        let wrong = zip(pair.target.bytes, before).count { $0 != $1 }
        #expect(wrong > 0 && wrong < before.count)
    }

    @Test func neighboursOfOneContextAreOneCompletion() throws {
        let pair = try Pair()
        for _ in 0..<10 { try pair.left.write(pair.source, 10, to: pair.key, context: 7) }
        try pair.left.write(pair.source, 10, to: pair.key, at: .max, context: 7)
        pair.settle()
        let polled = pair.left.poll()
        #expect(polled.requests == 11)
        #expect(polled.completions.count <= 3)
        #expect(polled.completions.filter { $0.status != .success }.map(\.count) == [1])
    }

    @Test func aNICReachesItself() throws {
        let network = SimulatedNetwork(seed: 1)
        let node = try Node(network, SimulatedNIC(name: "only"))
        let one = try node.memory(100, access: .localOnly)
        let two = try node.memory(100)
        one.fill(seed: 1)
        try node.write(one, 100, to: try node.key(two.remote), immediate: 4)
        while network.step() {}
        #expect(one.bytes.elementsEqual(two.bytes))
        #expect(node.page.eighths(of: 4) == 8)
    }
}
