import Testing
import TransferCore

@Suite struct RailTests {
    /// How much of the scale each of `count` NICs carries.
    private func shares(_ rails: [Rail], count: Int, by side: KeyPath<Rail, Int>) -> [Double] {
        var result = [Double](repeating: 0, count: count)
        var begin: UInt32 = 0
        for rail in rails {
            result[rail[keyPath: side]] += Double(rail.end - begin) / Double(Rail.scale)
            begin = rail.end
        }
        return result
    }

    private func expectShares(_ found: [Double], follow speeds: [UInt32]) {
        let weights = speeds.map { Double(max(1, $0)) }
        let total = weights.reduce(0, +)
        for (share, weight) in zip(found, weights) {
            #expect(abs(share - weight / total) <= 1.0 / Double(Rail.scale))
        }
    }

    @Test func anyTwoGroupsAreJoined() {
        var random = SeededGenerator(seed: 5)
        for round in 0..<2_000 {
            let speeds: ClosedRange<UInt32> = round % 2 == 0 ? 1...16 : 0...800
            let local = random.list(1...8, of: speeds)
            let remote = random.list(1...8, of: speeds)
            let rails = Rail.join(local: local, remote: remote)
            #expect(rails.count <= local.count + remote.count - 1)
            #expect(rails.count <= Limits.railsPerRoute)
            #expect(rails.last?.end == Rail.scale)
            #expect(zip(rails, rails.dropFirst()).allSatisfy { $0.end < $1.end }, "no rail is empty")
            #expect(rails.first.map { $0.end > 0 } == true)
            #expect(Set(rails.map { [$0.local, $0.remote] }).count == rails.count, "no pair twice")
            expectShares(shares(rails, count: local.count, by: \.local), follow: local)
            expectShares(shares(rails, count: remote.count, by: \.remote), follow: remote)
        }
    }

    @Test func equalGroupsPairUp() {
        for count in 1...8 {
            let speeds = [UInt32](repeating: 400_000, count: count)
            let rails = Rail.join(local: speeds, remote: speeds)
            #expect(rails.map(\.local) == Array(0..<count))
            #expect(rails.map(\.remote) == Array(0..<count))
        }
    }

    @Test func oneNICMeetsMany() {
        let rails = Rail.join(local: [100], remote: [25, 25, 50])
        #expect(rails.map(\.local) == [0, 0, 0])
        #expect(rails.map(\.end) == [Rail.scale / 4, Rail.scale / 2, Rail.scale])
    }

    @Test func fastNICsDoNotOverflow() {
        let fast = [UInt32](repeating: .max, count: 8)
        #expect(Rail.join(local: fast, remote: [UInt32.max]).count == 8)
    }

    @Test func withoutNICsThereIsNoRail() {
        #expect(Rail.join(local: [], remote: [1]).isEmpty)
        #expect(Rail.join(local: [1], remote: []).isEmpty)
    }
}
