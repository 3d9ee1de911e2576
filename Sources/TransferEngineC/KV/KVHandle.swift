public import CTransferEngine
internal import KVCacheTransfer
internal import Synchronization

/// A handle of what stands on engines: 4 bits of kind, 24 bits of the role, which is never used again, and 36 bits of number
/// in the role, which never is either; 0 is the role itself.
struct KVHandle {
    enum Kind: UInt64 {
        case prefiller = 8
        case decoder, peer, request, job
    }

    var kind: Kind
    var role: Int
    var number: UInt64

    init(kind: Kind, role: Int, number: UInt64) {
        self.kind = kind
        self.role = role
        self.number = number
    }

    /// Nil for what is none of these kinds.
    init?(_ bits: UInt64, _ kinds: [Kind]) {
        guard let kind = kinds.first(where: { $0.rawValue == bits >> 60 }) else { return nil }
        self.init(kind: kind, role: Int(bits >> 36 & 0xFF_FFFF), number: bits & 0xF_FFFF_FFFF)
        guard (number == 0) == (kind == .prefiller || kind == .decoder) else { return nil }
    }

    var bits: UInt64 { kind.rawValue << 60 | UInt64(role) << 36 | number }
}

/// The roles of this process.
struct KVRoles: ~Copyable {
    private var roles: [Int: KVRole] = [:]
    private var last = 0

    mutating func nextNumber() throws(Failure) -> Int {
        guard last < 0xFF_FFFF else { throw Failure(TE_ELIMIT, "this process has opened \(last) roles") }
        last += 1
        return last
    }

    mutating func add(_ role: KVRole) { roles[role.objects.role] = role }

    /// The role of a handle; one more call is inside of it.
    func enter(_ handle: KVHandle) -> KVRole? {
        guard let role = roles[handle.role] else { return nil }
        switch (handle.kind, role.side) {
        case (.prefiller, .prefiller), (.job, .prefiller), (.decoder, .decoder), (.peer, .decoder),
            (.request, .decoder):
            role.calls.add(1, ordering: .relaxed)
            return role
        default: return nil
        }
    }

    mutating func remove(_ role: KVRole) -> Bool { roles.removeValue(forKey: role.objects.role) != nil }
}

let kvRoles = Mutex(KVRoles())

/// Runs `body` with the role of a handle, which stays open meanwhile.
func callRole(
    _ bits: UInt64, _ kinds: KVHandle.Kind..., waits: Bool = false,
    _ body: (KVRole, KVHandle) throws(Failure) -> Int32
) -> Int32 {
    do throws(Failure) {
        if waits { try refuseCallbacks() }
        guard let handle = KVHandle(bits, kinds), let role = kvRoles.withLock({ $0.enter(handle) }) else {
            throw Failure.badRoleHandle(bits, kinds[0])
        }
        defer { role.calls.subtract(1, ordering: .releasing) }  // pairs with the load in te_kv_close
        try role.admit()
        return try body(role, handle)
    } catch {
        return error.report()
    }
}

@c @implementation
public func te_kv_close(_ role: te_kv_role) -> Int32 {
    callRole(role, .prefiller, .decoder, waits: true) { known, _ throws(Failure) in
        guard kvRoles.withLock({ $0.remove(known) }) else { throw Failure.badRoleHandle(role, .prefiller) }
        known.isClosing.store(true, ordering: .releasing)  // pairs with the load in te_kv_poll
        known.objects.mailbox.wakeAll()
        // pairs with the subtraction in callRole; this call is inside too
        while known.calls.load(ordering: .acquiring) > 1 { pauseBriefly() }
        known.end()
        return Int32(TE_OK)
    }
}

extension Failure {
    static func badRoleHandle(_ bits: UInt64, _ kind: KVHandle.Kind) -> Failure {
        let found = KVHandle.Kind(rawValue: bits >> 60)
        let reason =
            bits == 0
            ? "is 0"
            : found == kind
                ? "is none of a role that is open"
                : "is not one but \(found.map { "a te_kv_\($0)" } ?? "another handle, or none")"
        return Failure(TE_EBADHANDLE, "te_kv_\(kind) 0x\(String(bits, radix: 16)) \(reason)")
    }

    init(_ error: KVError) {
        let code =
            switch error.code {
            case .invalidLayout: TE_EINVALID
            case .incompatible, .unsupportedVersion: TE_EUNSUPPORTEDVERSION
            case .malformedMessage: TE_EMALFORMED
            case .refused, .noPages: TE_ELIMIT
            case .peerLost: TE_EPEERLOST
            case .deadline: TE_ESTALLED
            case .cancelled, .aborted: TE_ECANCELLED
            case .transferFailed: TE_EPROVIDER
            case .digestMismatch: TE_EDIGEST
            }
        self.init(code, error.message)
    }
}

/// Calls a role.
func kv<Value>(_ body: () throws(KVError) -> Value) throws(Failure) -> Value {
    do throws(KVError) { return try body() } catch { throw Failure(error) }
}
