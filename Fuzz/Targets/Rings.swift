import Glibc
import Platform
@testable import SharedMemoryProvider
import Synchronization
import TransferCore

extension Target {
    /// Both ends of a ring in shared memory whose other side writes what it likes.
    static let rings = Target(
        name: "rings",
        seeds: {
            // A write of 16 bytes that is aimed, a message, a drain, a collection.
            var write: [UInt8] = [0, 1]
            write += RingFuzz.bytes(FrameRecord(messageOf: 16, from: 7)) + [16]
            write += [UInt8](repeating: 0xAA, count: 16)
            var atTheEnd = FrameRecord(messageOf: 16, from: 7)
            atTheEnd.generation = 8
            let last = [0, 1] + RingFuzz.bytes(atTheEnd) + [16] + [UInt8](repeating: 0xAA, count: 16)
            var message: [UInt8] = [0, 0]
            message += RingFuzz.bytes(FrameRecord(messageOf: 5, from: 9)) + [5, 1, 2, 3, 4, 5]
            let wrap: [UInt8] = [4, 0xF0, 0xFF, 0x0F, 0]
            return [
                write + [1, 9], last + [1, 9], message + [1, 9], wrap + write + [1, 1],
                [2, 40, 2, 40, 3, 1, 5, 4],
            ]
        },
        run: { bytes in RingFuzz.shared.run(copy bytes) })
}

/// One ring in memory, the hostile side's view of it, and our two ends.
private final class RingFuzz {
    // SAFETY: a fuzzer and the replay have one thread.
    nonisolated(unsafe) static let shared = RingFuzz()

    private let memory = FuzzMemory(engine: 1)
    private let mapping: SharedMapping
    private let output = UnsafeMutableBufferPointer<Completion>.allocate(capacity: 16)

    private init() {
        guard let made = try? SharedMapping.create(name: "te-fuzz", byteCount: ByteRing.byteCount) else {
            fatalError("no memory file")
        }
        mapping = made
    }

    static func bytes(_ record: FrameRecord) -> [UInt8] { withUnsafeBytes(of: record) { Array($0) } }

    func run(_ bytes: [UInt8]) {
        mapping.base.initializeMemory(as: UInt8.self, repeating: 0, count: ByteRing.dataOffset + 65536)
        let ring = ByteRing(base: mapping.base)
        var incoming = IncomingRing(mapping)
        var outgoing = OutgoingRing(mapping)
        var choices = Choices(bytes)
        var tail: UInt64 = 0
        var waiting = 0
        var steps = 0
        while !choices.isEmpty, steps < 200 {
            steps += 1
            switch choices.byte() % 6 {
            case 0:
                tail = produce(ring, tail, &choices)
            case 1:
                drain(&incoming, Int(choices.byte() % 16))
            case 2:
                let payload = [UInt8](repeating: 7, count: Int(choices.byte()) * 8)
                let taken = payload.withUnsafeBytes {
                    outgoing.append(FrameRecord(messageOf: $0.count, from: 1), $0, context: 5)
                }
                if taken { waiting += 1 }
            case 3:
                // The consumer says how far it is, and leaves verdicts, right or not.
                ring.ends.head.store(choices.integer(UInt32.self).asPosition, ordering: .relaxed)
                ring.leave(.outOfRange, at: UInt64(choices.byte()) * 8)
            case 4:
                tail = choices.integer(UInt32.self).asPosition
                ring.ends.tail.store(tail, ordering: .relaxed)
            default:
                var count = 0
                outgoing.collect(into: UnsafeMutableBufferPointer(rebasing: output[..<8]), &count)
                waiting -= count
                Target.require(count <= 8 && waiting >= 0, "more verdicts than records")
            }
        }
    }

    /// A record of the hostile producer, at its tail: aimed at the region or not.
    private func produce(_ ring: ByteRing, _ tail: UInt64, _ choices: inout Choices) -> UInt64 {
        let isAimed = choices.byte() & 1 != 0
        let header = choices.take(FrameRecord.byteCount)
        var record = FrameRecord(padding: 0)
        withUnsafeMutableBytes(of: &record) { $0.copyBytes(from: header) }
        if isAimed { record.aim() }
        let untilWrap = ByteRing.untilWrap(tail)
        guard untilWrap >= FrameRecord.byteCount else { return tail }
        ring.address(tail).storeBytes(of: record, as: FrameRecord.self)
        let room = untilWrap - FrameRecord.byteCount
        let payload = choices.take(min(room, Int(choices.byte())))
        (ring.address(tail) + FrameRecord.byteCount).copyMemory(from: payload, byteCount: payload.count)
        let next = tail &+ UInt64(FrameRecord.stride(length: Int(record.length)))
        ring.ends.tail.store(next, ordering: .relaxed)
        return next
    }

    private func drain(_ incoming: inout IncomingRing, _ capacity: Int) {
        var count = 0
        incoming.drain(
            into: UnsafeMutableBufferPointer(rebasing: output[..<capacity]), &count, page: memory.page)
        Target.require(count <= capacity, "more messages than room")
        for completion in output.prefix(count) {
            Target.require(completion.count == 0, "no message")
            Target.require(completion.message.count <= ByteRing.recordBytes, "a message that is too long")
            // Every byte of it can be read.
            var sum: UInt8 = 0
            for byte in completion.message { sum &+= byte }
            Target.require(sum == sum &+ 0, "")
        }
    }
}

extension UInt32 {
    /// Positions around the beginning, the wrap, and far away.
    fileprivate var asPosition: UInt64 {
        self >> 31 == 0
            ? UInt64(self & 0x3F_FFFF) : UInt64(self & 0xFFFF) &* 0x1_0001_0001_0000 &+ UInt64(self & 0xFF)
    }
}
