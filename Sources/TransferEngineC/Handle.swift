internal import CTransferEngine
internal import TransferEngine

/// What a 64-bit handle says: 4 bits of kind, 8 bits of the engine's place among those of the process, and
/// * for objects 20 bits of place and 32 bits of serial number, new for each object of the process;
/// * for transfers 7 bits of the engine's use of its place, 13 bits of place, and 32 bits of generation.
struct Handle {
    /// 8 to 15 are for what stands on the engine.
    enum Kind: UInt64 {
        case engine = 1
        case region, remote, peer, group, watcher, transfer
    }

    var kind: Kind
    var slot: Int
    var index: Int
    var serial: UInt32

    /// Nil for what is no handle of that kind.
    init?(_ bits: UInt64, _ kind: Kind) {
        guard bits >> 60 == kind.rawValue else { return nil }
        self.kind = kind
        slot = Int(bits >> 52 & 0xFF)
        index = Int(bits >> 32 & 0xF_FFFF)
        serial = UInt32(truncatingIfNeeded: bits)
    }

    init(_ kind: Kind, slot: Int, index: Int, serial: UInt32) {
        self.kind = kind
        self.slot = slot
        self.index = index
        self.serial = serial
    }

    init(_ transfer: Transfer, of box: EngineBox) {
        let place = transfer.index == .max ? Self.completeIndex : Int(transfer.index)
        self.init(
            .transfer, slot: box.slot, index: box.epoch << 13 | place, serial: transfer.generation)
    }

    /// The place of transfers that were complete at once.
    private static let completeIndex = 0x1FFF

    var bits: UInt64 {
        kind.rawValue << 60 | UInt64(slot) << 52 | UInt64(index) << 32 | UInt64(serial)
    }

    /// Of a transfer: which use of its place its engine is.
    var epoch: Int { index >> 13 }

    var transfer: Transfer {
        let place = index & Self.completeIndex
        return Transfer(
            index: place == Self.completeIndex ? .max : UInt32(place), generation: serial)
    }
}

/// Objects by index; an index that was used before is told by its serial number.
struct ObjectTable<Value> {
    private var entries: [(serial: UInt32, value: Value?)] = []
    private var free: [Int] = []
    private(set) var count = 0
    static var capacity: Int { 1 << 20 }

    mutating func add(_ value: Value, serial: UInt32) throws(Failure) -> Int {
        count += 1
        if let index = free.popLast() {
            entries[index] = (serial, value)
            return index
        }
        guard entries.count < Self.capacity else {
            count -= 1
            throw Failure(TE_ELIMIT, "\(Self.capacity) handles of one type are in use")
        }
        entries.append((serial, value))
        return entries.count - 1
    }

    subscript(handle: Handle) -> Value? {
        get {
            guard entries.indices.contains(handle.index), entries[handle.index].serial == handle.serial
            else { return nil }
            return entries[handle.index].value
        }
        set {
            if self[handle] != nil { entries[handle.index].value = newValue }
        }
    }

    mutating func remove(_ handle: Handle) {
        guard self[handle] != nil else { return }
        entries[handle.index] = (0, nil)
        free.append(handle.index)
        count -= 1
    }

    /// Makes a handle stand for nothing until `resume`.
    mutating func suspend(_ handle: Handle) { self[handle] = nil }

    /// Ends `suspend`; without a value the handle is gone.
    mutating func resume(_ handle: Handle, _ value: Value?) {
        if let value {
            entries[handle.index].value = value
        } else {
            entries[handle.index] = (0, nil)
            free.append(handle.index)
            count -= 1
        }
    }

    var values: [Value] { entries.compactMap(\.value) }
}
