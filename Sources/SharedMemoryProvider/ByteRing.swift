internal import Synchronization
internal import TransferCore

/// A ring of `FrameRecord`s in shared memory, from one sending domain to one engine.
///
/// It carries messages, and writes into memory that the sender can neither map nor write by a system call. The
/// consumer leaves each record's fate in the record itself before it moves `head` past it; the producer reads it
/// there, so that errors need no way back.
struct ByteRing {
    static let capacity: UInt64 = 1 << 20
    static let dataOffset = 4096
    static let byteCount = dataOffset + Int(capacity)
    /// Data of one record at most.
    static let recordBytes = 65536

    let base: UnsafeMutableRawPointer

    /// Bytes consumed since the beginning; written by the consumer.
    var head: UnsafeMutablePointer<Atomic<UInt64>> { base.assumingMemoryBound(to: Atomic<UInt64>.self) }
    /// Bytes produced since the beginning; written by the producer.
    var tail: UnsafeMutablePointer<Atomic<UInt64>> {
        (base + 128).assumingMemoryBound(to: Atomic<UInt64>.self)
    }

    /// Where position `position` lies.
    func address(_ position: UInt64) -> UnsafeMutableRawPointer {
        base + Self.dataOffset + Int(position & (Self.capacity - 1))
    }

    /// Bytes from `position` to the end of the buffer, which no record crosses.
    static func untilWrap(_ position: UInt64) -> Int { Int(capacity - position & (capacity - 1)) }

    /// Appends a record at `position` (the producer's own tail) if it fits before `limit`, and returns where it lies.
    func append(
        _ record: FrameRecord, _ bytes: UnsafeRawBufferPointer, at position: UInt64, limit: UInt64
    ) -> (record: UInt64, end: UInt64)? {
        let stride = FrameRecord.stride(length: bytes.count)
        let untilWrap = Self.untilWrap(position)
        var start = position
        if untilWrap < stride {
            start += UInt64(untilWrap)
            guard start + UInt64(stride) <= limit else { return nil }
            // A remainder too small for a record is skipped without one.
            if untilWrap >= FrameRecord.byteCount {
                address(position).storeBytes(
                    of: FrameRecord(padding: untilWrap - FrameRecord.byteCount), as: FrameRecord.self)
            }
        }
        guard start + UInt64(stride) <= limit else { return nil }
        let target = address(start)
        target.storeBytes(of: record, as: FrameRecord.self)
        if let source = bytes.baseAddress, !bytes.isEmpty {
            (target + FrameRecord.byteCount).copyMemory(from: source, byteCount: bytes.count)
        }
        return (start, start + UInt64(stride))
    }

    /// The record at `position` and where the next one is; nil when what stands there cannot be one.
    func record(at position: UInt64, tail: UInt64) -> (record: FrameRecord, next: UInt64)? {
        let untilWrap = Self.untilWrap(position)
        if untilWrap < FrameRecord.byteCount {
            return (FrameRecord(padding: 0), position + UInt64(untilWrap))
        }
        let record = address(position).loadUnaligned(as: FrameRecord.self)
        if record.kind == FrameRecord.Kind.padding { return (record, position + UInt64(untilWrap)) }
        let stride = FrameRecord.stride(length: Int(record.length))
        guard Int(record.length) <= Self.recordBytes, stride <= untilWrap, position + UInt64(stride) <= tail
        else { return nil }
        return (record, position + UInt64(stride))
    }

    /// The consumer's verdict on the write at `position`, left in the record's kind.
    func leave(_ status: WorkStatus, at position: UInt64) {
        address(position).storeBytes(of: UInt32(status.rawValue) << 8, as: UInt32.self)
    }

    /// What the consumer left.
    func verdict(at position: UInt64) -> WorkStatus {
        let kind = address(position).loadUnaligned(as: UInt32.self)
        return WorkStatus(rawValue: UInt8(truncatingIfNeeded: kind >> 8)) ?? .providerFailed
    }
}
