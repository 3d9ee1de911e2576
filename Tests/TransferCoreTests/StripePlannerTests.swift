import Testing
import TransferCore

@Suite struct StripePlannerTests {
    private func cut(
        _ length: Int, over rails: [Rail], sequence: UInt32, stripeBytes: Int = 65536
    ) -> [Piece] {
        let planner = StripePlanner(stripeBytes: stripeBytes)
        let pieces = Table(repeating: Piece(rail: -1, offset: -1, length: -1), count: Limits.railsPerRoute)
        let count = planner.cut(length: length, rails: rails.span, sequence: sequence, into: pieces)
        return (0..<count).map { pieces[$0] }
    }

    private func expectWellFormed(_ pieces: [Piece], length: Int, rails: Int) {
        #expect(pieces.count >= 1 && pieces.count <= rails)
        #expect(zip(pieces, pieces.dropFirst()).allSatisfy { $0.rail < $1.rail })
        #expect(pieces.allSatisfy { $0.rail >= 0 && $0.rail < rails })
        var offset = 0
        for piece in pieces {
            #expect(piece.offset == offset)
            #expect(piece.length > 0 || length == 0)
            offset += piece.length
        }
        #expect(offset == length)
        #expect(pieces.reduce(0) { $0 + $1.eighths } == Eighths.whole)
        let counting = pieces.drop { $0.eighths == 0 }
        #expect(counting.allSatisfy { [1, 2, 4, 8].contains($0.eighths) }, "silent pieces come first")
        #expect(pieces.count <= 8 ? counting.count == pieces.count : counting.count == 8)
    }

    @Test func everyByteIsInOnePiece() {
        var random = SeededGenerator(seed: 6)
        let stripes = [4096, 65536, 100_000, 1 << 20]
        for _ in 0..<4_000 {
            let rails = Rail.join(
                local: random.list(1...8, of: 1...16), remote: random.list(1...8, of: 1...16))
            let stripe = stripes[random.pick(0...3)]
            let length =
                switch random.pick(0...4) {
                case 0: random.pick(0...8192)
                case 1: stripe * random.pick(1...20) + random.pick(-1...1)
                case 2: random.pick(0...64 << 20)
                case 3: 4096 * random.pick(0...10_000)
                default: random.pick(0...1 << 44)
                }
            let sequence = UInt32(truncatingIfNeeded: random.next())
            let pieces = cut(length, over: rails, sequence: sequence, stripeBytes: stripe)
            expectWellFormed(pieces, length: length, rails: rails.count)
            if length < 2 * stripe { #expect(pieces.count == 1) }
            #expect(pieces.dropFirst().allSatisfy { $0.offset % 4096 == 0 || stripe % 4096 != 0 })
        }
    }

    @Test func edgesOfLength() {
        let rails = Rail.join(local: [1, 1], remote: [1, 1])
        #expect(cut(0, over: rails, sequence: 0) == [Piece(rail: 1, offset: 0, length: 0, eighths: 8)])
        #expect(cut(0, over: rails, sequence: 1) == [Piece(rail: 0, offset: 0, length: 0, eighths: 8)])
        #expect(cut(1, over: rails, sequence: 1) == [Piece(rail: 0, offset: 0, length: 1, eighths: 8)])
        #expect(cut(131_071, over: rails, sequence: 0).count == 1)
        #expect(cut(131_072, over: rails, sequence: 0).count == 2)
        #expect(cut(1 << 40, over: Rail.join(local: [1], remote: [1]), sequence: 3).count == 1)
    }

    @Test func fifteenRailsMakeSevenSilentPieces() {
        let rails = Rail.join(local: [2, 2, 2, 2, 2, 2, 2, 3], remote: [3, 2, 2, 2, 2, 2, 2, 2])
        #expect(rails.count == 15)
        let pieces = cut(64 << 20, over: rails, sequence: 0)
        #expect(pieces.map(\.eighths) == [UInt32](repeating: 0, count: 7) + [1, 1, 1, 1, 1, 1, 1, 1])
    }

    /// The worst deviation of a NIC's part from its share, as a fraction of the share.
    private func worst(_ amounts: [Int], speeds: [UInt32]) -> Double {
        let all = Double(amounts.reduce(0, +))
        let total = Double(speeds.reduce(0, +))
        return zip(amounts, speeds).map { abs(Double($0) / (all * Double($1) / total) - 1) }.max() ?? 0
    }

    @Test func longWritesFollowTheSpeeds() {
        var random = SeededGenerator(seed: 7)
        for _ in 0..<1_000 {
            let local = random.list(1...8, of: 1...16)
            let remote = random.list(1...8, of: 1...16)
            let rails = Rail.join(local: local, remote: remote)
            var ofLocal = local.map { _ in 0 }
            var ofRemote = remote.map { _ in 0 }
            let length = random.pick(16 << 20...256 << 20)
            let stripe = 4096 << random.pick(0...8)
            let sequence = UInt32(truncatingIfNeeded: random.next())
            for piece in cut(length, over: rails, sequence: sequence, stripeBytes: stripe) {
                ofLocal[rails[piece.rail].local] += piece.length
                ofRemote[rails[piece.rail].remote] += piece.length
            }
            #expect(worst(ofLocal, speeds: local) < 0.1)
            #expect(worst(ofRemote, speeds: remote) < 0.1)
        }
    }

    @Test func smallWritesFollowTheSpeeds() {
        var random = SeededGenerator(seed: 8)
        for round in 0..<40 {
            let local = random.list(1...8, of: 1...8)
            let remote = random.list(1...8, of: 1...8)
            let rails = Rail.join(local: local, remote: remote)
            var ofLocal = local.map { _ in 0 }
            var ofRemote = remote.map { _ in 0 }
            let first = round == 0 ? UInt32.max - 2000 : UInt32(truncatingIfNeeded: random.next())
            for number in 0..<4096 as Range<UInt32> {
                for piece in cut(256, over: rails, sequence: first &+ number) {
                    ofLocal[rails[piece.rail].local] += 1
                    ofRemote[rails[piece.rail].remote] += 1
                }
            }
            #expect(worst(ofLocal, speeds: local) < 0.1)
            #expect(worst(ofRemote, speeds: remote) < 0.1)
        }
    }

    @Test func pagesFollowTheSpeeds() {
        var random = SeededGenerator(seed: 9)
        for round in 0..<40 {
            let local = random.list(1...8, of: 1...8)
            let remote = random.list(1...8, of: 1...8)
            let rails = Rail.join(local: local, remote: remote)
            var ofLocal = local.map { _ in 0 }
            var ofRemote = remote.map { _ in 0 }
            let units = round % 2 == 0 ? random.pick(4096...1 << 24) : random.pick(1...8)
            let lists = round % 2 == 0 ? 1 : 4096
            for sequence in 0..<UInt32(lists) {
                let starts = (0...rails.count).map {
                    StripePlanner.start(ofRail: $0, units: units, rails: rails.span, sequence: sequence)
                }
                #expect(starts.first == 0 && starts.last == units)
                for (rail, (start, end)) in zip(rails, zip(starts, starts.dropFirst())) {
                    #expect(start <= end)
                    ofLocal[rail.local] += end - start
                    ofRemote[rail.remote] += end - start
                }
            }
            #expect(worst(ofLocal, speeds: local) < 0.1)
            #expect(worst(ofRemote, speeds: remote) < 0.1)
        }
    }

    @Test(arguments: [2, 4, 8]) func equalRailsRotateExactly(count: Int) {
        let speeds = [UInt32](repeating: 3, count: count)
        let rails = Rail.join(local: speeds, remote: speeds)
        let used = (0..<1024 as Range<UInt32>).map {
            cut(64, over: rails, sequence: (UInt32.max - 500) &+ $0)[0].rail
        }
        for begin in 0...used.count - count {
            #expect(Set(used[begin..<begin + count]).count == count, "each rail once in \(count) writes")
        }
        #expect(Array(used[0..<count]) == Array(used[count..<2 * count]))
    }

    @Test func theSamePlanForTheSameNumbers() {
        let rails = Rail.join(local: [1, 2, 3], remote: [4, 5])
        #expect(cut(5_000_000, over: rails, sequence: 77) == cut(5_000_000, over: rails, sequence: 77))
    }
}
