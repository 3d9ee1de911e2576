import Synchronization
import Testing
import TransferCore

@Suite struct IndexQueueTests {
    /// A queue that tasks can share and that #expect can copy.
    private final class Shared: Sendable {
        let taken = Atomic(0)
        private let queue: IndexQueue
        init(capacity: Int) { queue = IndexQueue(capacity: capacity) }

        var mayHaveItems: Bool { queue.mayHaveItems }
        func push(_ value: UInt32) -> Bool { queue.push(value) }
        func pop() -> UInt32? { queue.pop() }
    }

    @Test func firstInFirstOut() {
        let queue = Shared(capacity: 4)
        #expect(queue.pop() == nil)
        #expect(!queue.mayHaveItems)
        for value in 10..<14 as Range<UInt32> { #expect(queue.push(value)) }
        #expect(!queue.push(14), "full")
        #expect(queue.mayHaveItems)
        for value in 10..<14 as Range<UInt32> { #expect(queue.pop() == value) }
        #expect(queue.pop() == nil)
        #expect(!queue.mayHaveItems)
    }

    @Test(arguments: [2, 8, 64]) func behavesLikeAnArray(capacity: Int) {
        var random = SeededGenerator(seed: UInt64(capacity))
        let queue = Shared(capacity: capacity)
        var model: [UInt32] = []
        for _ in 0..<20_000 {
            if random.pick(0...1) == 0 {
                let value = UInt32(truncatingIfNeeded: random.next())
                let fits = model.count < capacity
                #expect(queue.push(value) == fits)
                if fits { model.append(value) }
            } else {
                #expect(queue.pop() == (model.isEmpty ? nil : model.removeFirst()))
            }
            #expect(queue.mayHaveItems == !model.isEmpty)
        }
    }

    @Test(arguments: [2, 64]) func everyValueArrivesOnce(capacity: Int) async {
        let shared = Shared(capacity: capacity)
        let producers = 3
        let perProducer = 70_000
        let total = producers * perProducer
        let lists = await withTaskGroup(of: [UInt32].self) { group in
            for producer in 0..<producers {
                group.addTask {
                    for value in 0..<perProducer {
                        while !shared.push(UInt32(producer * perProducer + value)) { await Task.yield() }
                    }
                    return []
                }
            }
            for _ in 0..<3 {
                group.addTask {
                    var values: [UInt32] = []
                    while shared.taken.load(ordering: .relaxed) < total {
                        guard let value = shared.pop() else {
                            await Task.yield()
                            continue
                        }
                        shared.taken.wrappingAdd(1, ordering: .relaxed)
                        values.append(value)
                    }
                    return values
                }
            }
            return await group.reduce(into: [[UInt32]]()) { $0.append($1) }
        }
        #expect(lists.joined().sorted() == (0..<UInt32(total)).map { $0 })
        for list in lists {  // one consumer sees each producer's values in their order
            var last = [Int](repeating: -1, count: producers)
            for value in list {
                let producer = Int(value) / perProducer
                guard Int(value) > last[producer] else {
                    Issue.record("\(value) came after \(last[producer])")
                    break
                }
                last[producer] = Int(value)
            }
        }
        #expect(!shared.mayHaveItems)
    }
}
