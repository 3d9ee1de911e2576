internal import Synchronization
internal import TransferCore

/// A ring of `FrameRecord`s in shared memory, from one sending domain to one engine.
///
/// It carries messages, and writes into memory that the sender can neither map nor write by a system call. The
/// consumer leaves each record's fate in the record itself before it moves `head` past it; the producer reads it
/// there, so that errors need no way back.
@safe struct ByteRing {
    // SAFETY: `base` points to `byteCount` mapped bytes, until the owner of the ring unmaps them. Records are copied out
    // before they are looked at, because the other side may change them at any time, and never reach beyond the buffer.
    static let capacity: UInt64 = 1 << 20
    static let dataOffset = 4096
    static let byteCount = dataOffset + Int(capacity)
    /// Data of one record at most.
    static let recordBytes = 65536

    let base: UnsafeMutableRawPointer

    /// How far the two sides are.
    struct Ends: ~Copyable {
        /// Bytes consumed since the beginning; written by the consumer.
        let head: Atomic<UInt64>
        private let padding: InlineArray<15, UInt64>
        /// Bytes produced since the beginning; written by the producer.
        let tail: Atomic<UInt64>
    }

    var ends: Ends { unsafeAddress { unsafe UnsafePointer(base.assumingMemoryBound(to: Ends.self)) } }

    /// Where position `position` lies.
    func address(_ position: UInt64) -> UnsafeMutableRawPointer {
        unsafe base + Self.dataOffset + Int(position & (Self.capacity - 1))
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
                unsafe address(position).storeBytes(
                    of: FrameRecord(padding: untilWrap - FrameRecord.byteCount), as: FrameRecord.self)
            }
        }
        guard start + UInt64(stride) <= limit else { return nil }
        let target = unsafe address(start)
        unsafe target.storeBytes(of: record, as: FrameRecord.self)
        if let source = bytes.baseAddress, unsafe !bytes.isEmpty {
            unsafe (target + FrameRecord.byteCount).copyMemory(from: source, byteCount: bytes.count)
        }
        return (start, start + UInt64(stride))
    }

    /// The record at `position` and where the next one is; nil when what stands there cannot be one.
    func record(at position: UInt64, tail: UInt64) -> (record: FrameRecord, next: UInt64)? {
        let untilWrap = Self.untilWrap(position)
        if untilWrap < FrameRecord.byteCount {
            return (FrameRecord(padding: 0), position + UInt64(untilWrap))
        }
        let record = unsafe address(position).loadUnaligned(as: FrameRecord.self)
        if record.kind == FrameRecord.Kind.padding { return (record, position + UInt64(untilWrap)) }
        let stride = FrameRecord.stride(length: Int(record.length))
        guard Int(record.length) <= Self.recordBytes, stride <= untilWrap, position + UInt64(stride) <= tail
        else { return nil }
        return (record, position + UInt64(stride))
    }

    /// The data of a record that `record(at:tail:)` has returned for this position.
    func bytes(of record: FrameRecord, at position: UInt64) -> UnsafeRawBufferPointer {
        unsafe UnsafeRawBufferPointer(
            start: address(position) + FrameRecord.byteCount, count: Int(record.length))
    }

    /// The consumer's verdict on the write at `position`, left in the record's kind.
    func leave(_ status: WorkStatus, at position: UInt64) {
        unsafe address(position).storeBytes(of: UInt32(status.rawValue) << 8, as: UInt32.self)
    }

    /// What the consumer left.
    func verdict(at position: UInt64) -> WorkStatus {
        let kind = unsafe address(position).loadUnaligned(as: UInt32.self)
        return WorkStatus(rawValue: UInt8(truncatingIfNeeded: kind >> 8)) ?? .providerFailed
    }
}
