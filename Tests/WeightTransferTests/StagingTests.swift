import Testing
@testable import WeightTransfer

@Suite struct StagingTests {
    @Test func theLowestFreePlaceIsTakenFirst() {
        var space = StagingSpace(capacity: 1000)
        #expect(space.capacity == 960)
        #expect(space.take(100) == 0)
        #expect(space.take(1) == 128)
        #expect(space.take(64) == 192)
        space.giveBack(128)
        #expect(space.take(65) == 256)
        #expect(space.take(64) == 128)
        space.giveBack(0)
        #expect(space.take(128) == 0)
        #expect(space.take(960) == nil)
        #expect(space.take(10_000) == nil)
    }

    @Test(arguments: 1...20) func whatIsTakenNeverOverlaps(seed: UInt64) {
        var state = seed
        func draw(_ limit: Int) -> Int {
            state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
            return Int(state >> 33) % limit
        }
        var space = StagingSpace(capacity: 1 << 16)
        var taken: [Range<Int>] = []
        for _ in 0..<2000 {
            if !taken.isEmpty, draw(2) == 0 {
                let index = draw(taken.count)
                space.giveBack(taken.remove(at: index).lowerBound)
            } else if case let bytes = 1 + draw(9000), let place = space.take(bytes) {
                #expect(place % Staging.alignment == 0 && place + bytes <= space.capacity)
                #expect(!taken.contains { $0.overlaps(place..<place + bytes) })
                taken.append(place..<place + bytes)
            }
        }
        for range in taken { space.giveBack(range.lowerBound) }
        #expect(space.isEmpty && space.take(1 << 16) == 0)
    }
}
