import Testing

@testable import TransferCore

@Suite struct ImmediateLeasesTests {
    @Test func leasesAreDisjointAndInTheUpperHalf() throws {
        let mapping = try #require(PageMapping(engine: 1))
        var leases = ImmediateLeases()
        var seen = Set<UInt32>()
        for count in [1, 3, 64, 1, ImmediateLeases.longest] {
            let lease = try leases.lease(count: count, page: mapping.page)
            #expect(lease.count == count && lease.first.value >= 1 << 29)
            for number in 0..<min(count, 100) { #expect(seen.insert(lease[number].value).inserted) }
        }
        #expect(throws: TransferError.self) { _ = try leases.lease(count: 0, page: mapping.page) }
        #expect(throws: TransferError.self) {
            _ = try leases.lease(count: ImmediateLeases.longest + 1, page: mapping.page)
        }
    }

    @Test func whatComesLateIsSeenAndCountedNowhere() throws {
        let mapping = try #require(PageMapping(engine: 1))
        var leases = ImmediateLeases(capacity: 2)
        let lease = try leases.lease(count: 2, page: mapping.page)
        mapping.page.add(eighths: 8, to: lease[1].value)
        #expect(mapping.page.consume(eighths: 8, from: lease[1].value))
        try leases.end(lease, isQuiet: false, page: mapping.page)
        #expect(throws: TransferError.self) { try leases.end(lease, isQuiet: true, page: mapping.page) }
        for eighths in [8, 4, 2, 2] as [UInt32] { mapping.page.add(eighths: eighths, to: lease[1].value) }
        #expect(!mapping.page.consume(eighths: 8, from: lease[1].value))
        #expect(try leases.lateArrivals(of: lease, page: mapping.page) == 2)
        #expect(throws: TransferError.self) { _ = try leases.lease(count: 2, page: mapping.page) }
        #expect(try leases.reclaim(lease, page: mapping.page) == 2)
        let next = try leases.lease(count: 2, page: mapping.page)
        #expect(next.first == lease.first && next.epoch != lease.epoch)
        #expect(mapping.page.eighths(of: next[1].value) == 0)
        #expect(throws: TransferError.self) { _ = try leases.reclaim(lease, page: mapping.page) }
    }

    /// One step of a small world with two immediates.
    private enum Step: CaseIterable {
        case lease, arriveAtFirst, arriveAtLast, consume, endQuiet, endInDoubt, reclaim
    }

    /// What a lease of the small world should be like.
    private struct Model {
        var lease: ImmediateLease
        var count = 0
        var late = 0
        var isOpen = true
        var isReturned = false
    }

    /// Every sequence of five steps: a counter is never shared by two uses that are not over, and holds what arrived since its
    /// lease began, and nothing of before.
    @Test func everyInterleavingKeepsUsesApart() throws {
        let mapping = try #require(PageMapping(engine: 1))
        let page = mapping.page
        var sequences = 0
        var steps: [Step] = []
        func play() throws {
            var leases = ImmediateLeases(capacity: 2)
            for immediate in ImmediateLeases.begin..<ImmediateLeases.begin + 2 { _ = page.open(immediate) }
            var models: [Model] = []
            for step in steps {
                // Steps speak of the oldest lease that they fit.
                switch step {
                case .lease:
                    let isFull = models.count { !$0.isReturned } == 2
                    let lease = try? leases.lease(count: 1, page: page)
                    try #require((lease == nil) == isFull)
                    if let lease {
                        try #require(!models.contains { !$0.isReturned && $0.lease.first == lease.first })
                        models.append(Model(lease: lease))
                    }
                case .arriveAtFirst, .arriveAtLast:
                    let place =
                        step == .arriveAtFirst
                        ? models.firstIndex { !$0.isReturned } : models.lastIndex { !$0.isReturned }
                    guard let place else { continue }
                    page.add(eighths: 8, to: models[place].lease.first.value)
                    if models[place].isOpen { models[place].count += 1 } else { models[place].late += 1 }
                case .consume:
                    guard let place = models.lastIndex(where: \.isOpen) else { continue }
                    let didConsume = page.consume(eighths: 8, from: models[place].lease.first.value)
                    try #require(didConsume == (models[place].count > 0))
                    if didConsume { models[place].count -= 1 }
                case .endQuiet, .endInDoubt:
                    guard let place = models.firstIndex(where: \.isOpen) else { continue }
                    try leases.end(models[place].lease, isQuiet: step == .endQuiet, page: page)
                    models[place].isOpen = false
                    models[place].isReturned = step == .endQuiet
                case .reclaim:
                    guard let place = models.firstIndex(where: { !$0.isOpen && !$0.isReturned }) else {
                        continue
                    }
                    try #require(try leases.reclaim(models[place].lease, page: page) == models[place].late)
                    models[place].isReturned = true
                }
                for model in models where model.isOpen {
                    try #require(page.eighths(of: model.lease.first.value) == Int64(model.count * 8))
                }
            }
            try #require(leases.openCount == models.count(where: \.isOpen))
            try #require(leases.quarantinedCount == models.count { !$0.isOpen && !$0.isReturned })
        }
        func extend(_ depth: Int) throws {
            if depth == 0 {
                sequences += 1
                return try play()
            }
            for step in Step.allCases {
                steps.append(step)
                try extend(depth - 1)
                steps.removeLast()
            }
        }
        try extend(5)
        #expect(sequences == 16_807)
    }
}
