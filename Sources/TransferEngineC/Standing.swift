internal import CTransferEngine
internal import Synchronization

/// What stands on engines, by handles of 4 bits of kind and a number that is never used again.
final class Standing<Value: Sendable>: Sendable {
    private let kind: UInt64
    private let name: StaticString
    private let state = Mutex<(known: [UInt64: Value], last: UInt64)>(([:], 0))

    /// - Parameters:
    ///   - kind: 13 to 15; KV has 8 to 12.
    ///   - name: The handle's type in C.
    init(_ kind: UInt64, _ name: StaticString) {
        self.kind = kind
        self.name = name
    }

    func add(_ value: Value) -> UInt64 {
        state.withLock { state in
            state.last += 1
            state.known[state.last] = value
            return kind << 60 | state.last
        }
    }

    func find(_ bits: UInt64) throws(Failure) -> Value {
        let found = bits >> 60 == kind ? state.withLock { $0.known[bits & (1 << 60 - 1)] } : nil
        guard let found else {
            let digits = String(bits, radix: 16)
            throw Failure(
                TE_EBADHANDLE, bits == 0 ? "\(name) is 0" : "0x\(digits) is no \(name) that is open")
        }
        return found
    }

    func remove(_ bits: UInt64) { state.withLock { $0.known[bits & (1 << 60 - 1)] = nil } }
}

/// Lets one thread at a time in.
struct Door: ~Copyable, Sendable {
    private let isInside = Atomic<Bool>(false)
    private let name: StaticString

    /// - Parameter name: Of what is behind it.
    init(_ name: StaticString) { self.name = name }

    func alone<Value>(_ box: EngineBox, _ body: () throws(Failure) -> Value) throws(Failure) -> Value {
        // pairs with the store below
        guard isInside.compareExchange(expected: false, desired: true, ordering: .acquiring).exchanged else {
            throw Failure(
                TE_EBUSY, "another thread is inside of the \(name); it is used by one thread at a time")
        }
        defer { isInside.store(false, ordering: .releasing) }  // pairs with the exchange above
        try box.admit()
        defer { box.dismiss() }
        return try body()
    }
}
