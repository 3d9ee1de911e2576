import Foundation
import KVCacheTransfer
import TransferEngine

/// A process that computes prompts: one after the other, each layer written to its decoder as soon as it is computed.
final class PrefillerProcess: Sendable {
    private let model: Llama
    private let cache: Cache

    init(_ name: String, _ model: Llama) throws {
        self.model = model
        cache = try Cache(name, model.shape)
    }

    func run(_ name: String) throws {
        let jobs = Queue<KVJob>()
        let role = try KVPrefiller(Cache.configuration(name), layout: cache.layout, ranks: [cache.rank]) {
            jobs.append($0)
        }
        Task { try await role.run() }
        say("address \(hexadecimal(role.address.encoded()))")
        Thread.detachNewThread {
            while readLine() != nil {}
            exit(0)
        }
        // This thread is the model; heartbeats do not wait for it.
        var finished: UInt64 = 0
        while true { try compute(jobs.next(), role, &finished) }
    }

    private func compute(_ job: KVJob, _ role: KVPrefiller, _ finished: inout UInt64) throws {
        let tokens = numbers(job.input)
        guard tokens.count == job.span.end, job.tailBytes == Tail.byteCount(model.shape),
            let room = cache.take(tokens: tokens.count)
        else { return role.refuse(job.id, KVError(.refused, "no pages, or no such request")) }
        role.accept(job.id, sources: [PageTable(pages: room.pages)]) { [self] event in
            if event == .released { cache.give(room) }
        }
        role.begin(forward: [KVChunk(job: job.id, tokens: 0..<tokens.count)])
        var computed: [UInt64] = []
        let hidden = model.forward(tokens, first: 0, cache.memory, room.pages) { _ in
            computed.append(now())
            finished += 1
            role.computed(layers: finished)
        }
        computed.append(now())
        Tail(hidden: hidden, computed: computed).write(to: cache.tail(room.slot))
        role.writeTail(job.id, rank: 0, region: 1, offset: room.slot * Cache.slotBytes)
    }
}

/// Values that one thread waits for.
final class Queue<Value: Sendable>: @unchecked Sendable {
    // SAFETY: `values` is guarded by the condition's lock.
    private let condition = NSCondition()
    private var values: [Value] = []

    func append(_ value: Value) {
        condition.lock()
        values.append(value)
        condition.signal()
        condition.unlock()
    }

    func next() -> Value {
        condition.lock()
        defer { condition.unlock() }
        while values.isEmpty { condition.wait() }
        return values.removeFirst()
    }
}

/// Nanoseconds of a clock that all processes of a machine share.
func now() -> UInt64 { DispatchTime.now().uptimeNanoseconds }

/// A line to whoever started the process.
func say(_ line: String) { FileHandle.standardOutput.write(Data((line + "\n").utf8)) }

func hexadecimal(_ bytes: [UInt8]) -> String { bytes.map { String(format: "%02x", $0) }.joined() }

func bytes(hexadecimal text: Substring) -> [UInt8] {
    stride(from: 0, to: text.utf8.count - 1, by: 2).compactMap { index in
        UInt8(text.dropFirst(index).prefix(2), radix: 16)
    }
}

/// Token numbers as they travel with a request.
func input(_ tokens: [Int32]) -> [UInt8] {
    tokens.flatMap { token in (0..<4).map { UInt8(truncatingIfNeeded: token >> (8 * Int32($0))) } }
}

func numbers(_ input: [UInt8]) -> [Int32] {
    stride(from: 0, to: input.count - 3, by: 4).map { start in
        (0..<4).reduce(0) { $0 | Int32(input[start + $1]) << (8 * Int32($1)) }
    }
}
