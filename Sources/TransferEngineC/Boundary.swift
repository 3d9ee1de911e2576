internal import CTransferEngine

// From the caller's memory to values: the only places that look at what a pointer points to.

/// A structure of the caller's, which begins with its size: newer callers may have longer ones, whose rest must be 0.
/// - Parameter oldest: Bytes that the structure had in the first version, where it has grown since: what older callers do not
///   have is 0.
func readSized<Value: BitwiseCopyable>(
    _ pointer: UnsafeRawPointer?, _ name: StaticString, as type: Value.Type, oldest: Int? = nil
) throws(Failure) -> Value {
    guard let pointer else { throw Failure.isNull("\(name)") }
    let size = Int(pointer.loadUnaligned(as: UInt32.self))
    let known = MemoryLayout<Value>.size
    guard size >= oldest ?? known else {
        throw Failure(
            TE_EINVALID, "\(name).size is \(size) instead of \(known); initialise it with its macro")
    }
    guard size <= 4096 else {
        throw Failure(TE_EINVALID, "\(name).size is \(size), which no version has")
    }
    if size < known {
        return withUnsafeTemporaryAllocation(of: Value.self, capacity: 1) { place in
            let bytes = UnsafeMutableRawBufferPointer(place)
            bytes.initializeMemory(as: UInt8.self, repeating: 0)
            bytes.copyMemory(from: UnsafeRawBufferPointer(start: pointer, count: size))
            return place[0]
        }
    }
    guard UnsafeRawBufferPointer(start: pointer + known, count: size - known).allSatisfy({ $0 == 0 }) else {
        throw Failure(
            TE_EUNSUPPORTEDVERSION,
            "\(name) has fields that this library does not know (\(size) bytes instead of \(known))")
    }
    return pointer.loadUnaligned(as: Value.self)
}

/// A list; it may be NULL when it is empty.
func list<Element>(_ pointer: UnsafePointer<Element>?, _ count: UInt64, _ name: StaticString)
    throws(Failure) -> UnsafeBufferPointer<Element>
{
    let count = try integer(count, name)
    guard count <= Int.max / MemoryLayout<Element>.stride else {
        throw Failure(TE_EOUTOFRANGE, "\(count) \(name)")
    }
    guard pointer != nil || count == 0 else { throw Failure.isNull("\(name)") }
    return UnsafeBufferPointer(start: pointer, count: count)
}

/// Where a result goes.
func place<Element>(_ pointer: UnsafeMutablePointer<Element>?, _ name: StaticString)
    throws(Failure) -> UnsafeMutablePointer<Element>
{
    guard let pointer else { throw Failure.isNull("\(name)") }
    return pointer
}

func integer(_ value: UInt64, _ name: StaticString) throws(Failure) -> Int {
    guard let value = Int(exactly: value) else {
        throw Failure(TE_EOUTOFRANGE, "\(name) of \(value) is larger than any memory")
    }
    return value
}

/// A string of the caller's; nil for NULL.
func string(_ pointer: UnsafePointer<CChar>?) -> String? { pointer.map { String(cString: $0) } }

/// Copies bytes out, and says how many there are even when there is not enough room.
func write(
    _ bytes: [UInt8], _ buffer: UnsafeMutableRawPointer?, _ capacity: UInt64,
    _ length: UnsafeMutablePointer<UInt64>?
) throws(Failure) {
    try place(length, "length").pointee = UInt64(bytes.count)
    guard UInt64(bytes.count) <= capacity else {
        throw Failure(TE_EOUTOFRANGE, "\(bytes.count) bytes for a buffer of \(capacity)")
    }
    guard buffer != nil || bytes.isEmpty else { throw Failure.isNull("buffer") }
    UnsafeMutableRawBufferPointer(start: buffer, count: bytes.count).copyBytes(from: bytes)
}

/// Copies ranks out, and says how many there are even when there is not enough room.
func write(
    ranks: [Int], _ buffer: UnsafeMutablePointer<UInt32>?, _ capacity: UInt64,
    _ count: UnsafeMutablePointer<UInt64>?
) throws(Failure) {
    try place(count, "count").pointee = UInt64(ranks.count)
    guard UInt64(ranks.count) <= capacity else {
        throw Failure(TE_EOUTOFRANGE, "\(ranks.count) ranks for room for \(capacity)")
    }
    guard !ranks.isEmpty else { return }
    let buffer = try place(buffer, "ranks")
    for (index, rank) in ranks.enumerated() { buffer[index] = UInt32(rank) }
}

/// Writes structures that begin with their size, as far apart as the first one of the caller's says, and says how many there are
/// even when there is not enough room.
func write<Element: BitwiseCopyable>(
    _ list: UnsafeMutablePointer<Element>?, _ capacity: UInt64, _ count: UnsafeMutablePointer<UInt64>?,
    _ name: StaticString, _ elements: [Element]
) throws(Failure) {
    try place(count, "count").pointee = UInt64(elements.count)
    guard UInt64(elements.count) <= capacity else {
        throw Failure(TE_EOUTOFRANGE, "\(elements.count) \(name) for room for \(capacity)")
    }
    guard !elements.isEmpty else { return }
    _ = try readSized(list, name, as: Element.self)
    let first = UnsafeMutableRawPointer(try place(list, name))
    let stride = first.loadUnaligned(as: UInt32.self)
    for (index, element) in elements.enumerated() {
        let place = first + index * Int(stride)
        withUnsafeBytes(of: element) {
            place.copyMemory(from: $0.baseAddress ?? UnsafeRawPointer(place), byteCount: $0.count)
        }
        place.storeBytes(of: stride, as: UInt32.self)
    }
}

/// The duration of a timeout; nil is the engine's default.
func duration(_ nanoseconds: Int64) -> Duration? {
    nanoseconds <= 0 ? nil : .nanoseconds(nanoseconds)
}

extension UnsafeMutableRawPointer {
    /// A pointer of the caller's that goes through a closure of ours; what it points to is the caller's affair.
    struct Sent: @unchecked Sendable {
        // SAFETY: it is only handed back.
        var pointer: UnsafeMutableRawPointer?
    }
}
