internal import TransferEngine

/// Cuts messages into what an engine sends at once, and joins them again. Fragments come in any order.
///
/// A fragment is a 32-bit number of the message, its own 16-bit number, how many there are, and bytes.
struct Fragments {
    static let headerBytes = 8
    static let payloadBytes = Limits.messageBytes - headerBytes

    private struct Partial {
        var parts: [[UInt8]?]
        var missing: Int
    }

    private var partial: [UInt32: Partial] = [:]
    /// Numbers in the order in which their first fragment came.
    private var order: [UInt32] = []

    /// The fragments of a message.
    static func cut(_ message: [UInt8], number: UInt32) -> [[UInt8]] {
        let count = max(1, (message.count + payloadBytes - 1) / payloadBytes)
        return (0..<count).map { index in
            var writer = ByteWriter()
            writer.write(number)
            writer.write(UInt16(index))
            writer.write(UInt16(count))
            let begin = index * payloadBytes
            return writer.bytes + message[begin..<min(begin + payloadBytes, message.count)]
        }
    }

    /// Takes a fragment; returns the message when it was the last that was missing. What is no fragment is dropped.
    mutating func join(_ fragment: [UInt8]) -> [UInt8]? {
        var reader = ByteReader(fragment.span)
        guard let number = try? reader.read(UInt32.self), let index = try? reader.read(UInt16.self),
            let count = try? reader.read(UInt16.self), index < count,
            Int(count) * Self.payloadBytes <= KVLimits.messageBytes + Self.payloadBytes
        else { return nil }
        let bytes = Array(fragment[Self.headerBytes...])
        if count == 1 { return bytes }
        var entry =
            partial[number] ?? Partial(parts: Array(repeating: nil, count: Int(count)), missing: Int(count))
        guard entry.parts.count == Int(count), entry.parts[Int(index)] == nil else { return nil }
        if entry.missing == Int(count) { order.append(number) }
        entry.parts[Int(index)] = bytes
        entry.missing -= 1
        if entry.missing == 0 {
            partial[number] = nil
            order.removeAll { $0 == number }
            return entry.parts.flatMap { $0 ?? [] }
        }
        partial[number] = entry
        // A peer that never completes its messages loses the oldest.
        if order.count > KVLimits.openMessages { partial[order.removeFirst()] = nil }
        return nil
    }
}
