import Synchronization
import Testing
import TransferCore

@Suite struct IndexStackTests {
    /// A stack and a note for each index whether somebody has it.
    private final class Shared: @unchecked Sendable {
        // SAFETY: `isOut` never changes, and what it points to are atomics.
        let stack: IndexStack
        let isOut: UnsafeMutablePointer<Atomic<Bool>>
        let conflicts = Atomic(0)
        let capacity: Int

        init(capacity: Int) {
            self.capacity = capacity
            stack = IndexStack(capacity: capacity)
            isOut = .allocate(capacity: capacity)
            for index in 0..<capacity { (isOut + index).initialize(to: Atomic(false)) }
        }

        deinit {
            isOut.deinitialize(count: capacity)
            isOut.deallocate()
        }

        func take() -> UInt32? {
            guard let index = stack.pop() else { return nil }
            if isOut[Int(index)].exchange(true, ordering: .relaxed) {
                conflicts.wrappingAdd(1, ordering: .relaxed)
            }
            return index
        }

        func give(_ index: UInt32) {
            if !isOut[Int(index)].exchange(false, ordering: .relaxed) {
                conflicts.wrappingAdd(1, ordering: .relaxed)
            }
            stack.push(index)
        }
    }

    @Test(arguments: [1, 2, 100]) func zeroComesFirst(capacity: Int) {
        let stack = IndexStack(capacity: capacity)
        for index in 0..<UInt32(capacity) { #expect(stack.pop() == index) }
        #expect(stack.pop() == nil)
        #expect(stack.pop() == nil)
        stack.push(0)
        #expect(stack.pop() == 0)
    }

    @Test func behavesLikeAnArray() {
        var random = SeededGenerator(seed: 10)
        let stack = IndexStack(capacity: 16)
        var model = Array((0..<16 as Range<UInt32>).reversed())
        var out: [UInt32] = []
        for _ in 0..<20_000 {
            if random.pick(0...1) == 0 {
                let index = stack.pop()
                #expect(index == model.popLast())
                if let index { out.append(index) }
            } else if !out.isEmpty {
                let index = out.remove(at: random.pick(0...out.count - 1))
                stack.push(index)
                model.append(index)
            }
        }
    }

    @Test(arguments: [3, 64]) func nobodyGetsWhatAnotherHas(capacity: Int) {
        let shared = Shared(capacity: capacity)
        onThreads(8) { _ in
            var held: [UInt32] = []
            for round in 0..<100_000 {
                if held.count < 2, let index = shared.take() { held.append(index) }
                // The older one first, so that the order of the list changes.
                if round % 3 != 0, !held.isEmpty { shared.give(held.removeFirst()) }
            }
            for index in held { shared.give(index) }
        }
        #expect(shared.conflicts.load(ordering: .relaxed) == 0)
        var left: [UInt32] = []
        while left.count <= capacity, let index = shared.stack.pop() { left.append(index) }
        #expect(left.sorted() == (0..<UInt32(capacity)).map { $0 })
    }
}
