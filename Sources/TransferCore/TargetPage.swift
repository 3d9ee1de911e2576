public import Synchronization

/// The memory through which an engine is written to: its region table and its counters.
///
/// One engine has one. It is plain memory with a fixed layout, so that peers on the same host map it and bump a counter
/// themselves; for NICs, whoever polls completions bumps it. Both ways meet in the same 64-bit word, which is what
/// makes counting independent of the transport.
///
/// Counters are an array indexed by the 30-bit immediate, 8 GiB of address space of which only touched pages exist. So
/// there is nothing to look up, nothing to insert and nothing that an early immediate could miss: it is credited in
/// the word that a later wait reads (contract, promise 2).
///
/// A value of this type does not own the memory. All operations may be used from any thread or process.
public struct TargetPage: @unchecked Sendable {
    // SAFETY: the mapping outlives every user (the engine unmaps last); shared fields are atomics.
    /// Bytes of address space: header, region table, counters.
    public static let byteCount = countersOffset + (1 << Immediate.bitWidth) * 8
    @usableFromInline static let magic: UInt64 = 0x5445_5041_4745_0001
    @usableFromInline static let regionsOffset = 4096
    @usableFromInline static let countersOffset = 1 << 20

    @usableFromInline let base: UnsafeMutableRawPointer

    /// Wraps memory of `byteCount` bytes that `initialize` prepared, here or in another process.
    @inlinable public init(mapped base: UnsafeMutableRawPointer) { self.base = base }

    /// Prepares zeroed memory for one engine.
    public static func initialize(_ base: UnsafeMutableRawPointer, engine: EngineID) -> TargetPage {
        precondition(MemoryLayout<RegionSlot>.size <= RegionSlot.stride)
        precondition(regionsOffset + Limits.regions * RegionSlot.stride <= countersOffset)
        base.storeBytes(of: engine.rawValue, toByteOffset: 8, as: UInt64.self)
        base.storeBytes(of: magic, as: UInt64.self)
        return TargetPage(mapped: base)
    }

    /// Whether the memory is a target page of this version.
    public var isValid: Bool { base.load(as: UInt64.self) == Self.magic }
    /// The engine that owns the page.
    public var engine: EngineID { EngineID(rawValue: base.load(fromByteOffset: 8, as: UInt64.self)) }

    @inlinable func atomic<T>(_ offset: Int, as type: T.Type = T.self) -> UnsafeMutablePointer<Atomic<T>> {
        (base + offset).assumingMemoryBound(to: Atomic<T>.self)
    }

    /// 1 while the engine's worker sleeps in the kernel: whoever brings it something then must wake it.
    @inlinable public var sleeping: UnsafeMutablePointer<Atomic<UInt32>> { atomic(64) }
    /// Advanced by whoever put something into one of the engine's shared-memory rings.
    @inlinable public var doorbell: UnsafeMutablePointer<Atomic<UInt64>> { atomic(128) }

    // MARK: Counters

    @inlinable func counter(_ immediate: UInt32) -> UnsafeMutablePointer<Atomic<Int64>> {
        atomic(Self.countersOffset + Int(immediate & Immediate.max.value) * 8)
    }

    /// Adds `eighths` of a count, after the data of that count is visible.
    @inlinable public func add(eighths: UInt32, to immediate: UInt32) {
        // pairs with the load in eighths(of:)
        counter(immediate).pointee.wrappingAdd(Int64(eighths), ordering: .sequentiallyConsistent)
    }

    /// Eighths counted and not yet consumed. Data that was counted is visible after this call.
    @inlinable public func eighths(of immediate: UInt32) -> Int64 {
        counter(immediate).pointee.load(ordering: .acquiring)  // pairs with the add in add(eighths:to:)
    }

    /// Takes `eighths` away when as many have been counted. Only the owning engine consumes.
    @inlinable public func consume(eighths: Int64, from immediate: UInt32) -> Bool {
        guard self.eighths(of: immediate) >= eighths else { return false }
        counter(immediate).pointee.wrappingSubtract(eighths, ordering: .relaxed)
        return true
    }

    // MARK: Regions

    /// The table entry of region `index`.
    @inlinable public func region(_ index: UInt32) -> UnsafeMutablePointer<RegionSlot> {
        precondition(index < Limits.regions)
        return (base + Self.regionsOffset + Int(index) * RegionSlot.stride)
            .assumingMemoryBound(to: RegionSlot.self)
    }

    /// The address of `length` bytes at `offset` of a region that a peer names, or what is wrong with the name.
    ///
    /// For code that runs in the owner's process and writes on behalf of a peer.
    public func admit(
        index: UInt32, generation: UInt32, secret: UInt64, offset: UInt64, length: UInt64
    ) -> Result<UnsafeMutableRawPointer, WorkStatus> {
        guard index < Limits.regions else { return .failure(.staleRegion) }
        let slot = region(index)
        let expected = RegionSlot.state(generation: generation, access: .remoteWrite)
        guard slot.pointee.state.load(ordering: .acquiring) == expected else { return .failure(.staleRegion) }
        guard slot.pointee.secret == secret else { return .failure(.accessDenied) }
        let (end, overflow) = offset.addingReportingOverflow(length)
        guard !overflow, end <= slot.pointee.length,
            let address = UnsafeMutableRawPointer(bitPattern: UInt(slot.pointee.base))
        else { return .failure(.outOfRange) }
        return .success(address + Int(offset))
    }
}

/// One region in a `TargetPage`, 64 bytes.
///
/// A writer in another process enters (`writers` + 1), then compares `state` with what its descriptor says, then copies,
/// then leaves. The owner that ends a region changes `state` first and then waits for `writers` to become 0: after that
/// nobody can write any more.
public struct RegionSlot: ~Copyable {
    @usableFromInline static let stride = 64

    /// Generation, access and liveness in one word; 0 is free.
    public let state: Atomic<UInt64>
    /// How many are copying into the region at this moment.
    public let writers: Atomic<UInt64>
    /// Address of the first byte in the owner's process.
    public var base: UInt64
    /// Bytes.
    public var length: UInt64
    /// The random number of the descriptor.
    public var secret: UInt64

    /// The word that `state` holds for a live region.
    @inlinable public static func state(generation: UInt32, access: Access) -> UInt64 {
        UInt64(generation) << 32 | UInt64(access.rawValue) << 8 | 1
    }

    /// Tries to enter as a writer; false means that the region is not the one of the descriptor (any more).
    @inlinable public mutating func enter(expecting expected: UInt64) -> Bool {
        writers.wrappingAdd(1, ordering: .sequentiallyConsistent)  // before the load: pairs with close
        if state.load(ordering: .sequentiallyConsistent) == expected { return true }
        leave()
        return false
    }

    /// Ends what `enter` began.
    @inlinable public mutating func leave() {
        writers.wrappingSubtract(1, ordering: .releasing)  // pairs with the load in isQuiet
    }

    /// Whether no writer is inside.
    public var isQuiet: Bool {
        borrowing get { writers.load(ordering: .acquiring) == 0 }  // pairs with leave
    }
}
