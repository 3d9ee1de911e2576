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
@safe public struct TargetPage: @unchecked Sendable {
    // SAFETY: `base` points to `byteCount` mapped bytes as long as anybody uses the page (the engine unmaps last), and all
    // offsets below lie inside. Shared fields are atomics; the rest of a region's entry changes only while it is free.
    /// Bytes of address space: header, region table, counters.
    public static let byteCount = countersOffset + (1 << Immediate.bitWidth) * 8
    /// Bytes in front of the region table: the engine's name and `signals`.
    package static var headerBytes: Int { regionsOffset }
    @usableFromInline static let magic: UInt64 = 0x5445_5041_4745_0002
    @usableFromInline static let regionsOffset = 4096
    @usableFromInline static let seatsOffset = regionsOffset + Limits.regions * RegionSlot.stride
    @usableFromInline static let seatStride = 64
    @usableFromInline static let countersOffset = 1 << 20

    @usableFromInline let base: UnsafeMutableRawPointer

    /// Wraps memory of `byteCount` bytes that `initialize` prepared, here or in another process.
    @inlinable public init(mapped base: UnsafeMutableRawPointer) { unsafe self.base = base }

    /// Prepares zeroed memory for one engine.
    ///
    /// - Parameter fencesWriters: Whether the engine passes a barrier on all cores between `withdraw` and `isQuiet`.
    public static func initialize(
        _ base: UnsafeMutableRawPointer, engine: EngineID, fencesWriters: Bool = false
    ) -> TargetPage {
        precondition(MemoryLayout<RegionSlot>.size <= RegionSlot.stride)
        precondition(seatsOffset + Limits.writers * seatStride <= countersOffset)
        unsafe base.storeBytes(of: engine.rawValue, toByteOffset: 8, as: UInt64.self)
        unsafe base.storeBytes(of: fencesWriters ? 1 : 0, toByteOffset: 16, as: UInt64.self)
        unsafe base.storeBytes(of: magic, as: UInt64.self)
        return unsafe TargetPage(mapped: base)
    }

    /// Whether the memory is a target page of this version.
    public var isValid: Bool { unsafe base.load(as: UInt64.self) == Self.magic }
    /// The engine that owns the page.
    public var engine: EngineID { EngineID(rawValue: unsafe base.load(fromByteOffset: 8, as: UInt64.self)) }

    /// Whether the owner orders what writers do between `announce` and `isOpen`, so that they need not.
    public var fencesWriters: Bool { unsafe base.load(fromByteOffset: 16, as: UInt64.self) != 0 }

    @inlinable @inline(__always) func at<T: ~Copyable>(_ offset: Int) -> UnsafeMutablePointer<T> {
        unsafe (base + offset).assumingMemoryBound(to: T.self)
    }

    /// How others wake the engine.
    @inlinable public var signals: Signals {
        @inline(__always) unsafeAddress { unsafe UnsafePointer(at(64)) }
    }

    /// The words through which an engine is woken, each on a cache line of its own.
    public struct Signals: ~Copyable {
        /// 1 while the engine's worker sleeps in the kernel: whoever brings it something then must wake it.
        public let sleeping: Atomic<UInt32>
        private let padding = InlineArray<15, UInt32>(repeating: 0)
        /// Advanced by whoever put something into one of the engine's shared-memory rings.
        public let doorbell: Atomic<UInt64>

        private init() { preconditionFailure("signals only exist in mapped pages") }
    }

    // MARK: Counters

    @inlinable subscript(counter immediate: UInt32) -> Atomic<Int64> {
        @inline(__always) unsafeAddress {
            unsafe UnsafePointer(at(Self.countersOffset + Int(immediate & Immediate.max.value) * 8))
        }
    }

    /// Adds `eighths` of a count, after the data of that count is visible.
    @inlinable public func add(eighths: UInt32, to immediate: UInt32) {
        // pairs with the load in eighths(of:)
        self[counter: immediate].wrappingAdd(Int64(eighths), ordering: .sequentiallyConsistent)
    }

    /// Eighths counted and not yet consumed. Data that was counted is visible after this call.
    @inlinable public func eighths(of immediate: UInt32) -> Int64 {
        self[counter: immediate].load(ordering: .acquiring)  // pairs with the add in add(eighths:to:)
    }

    /// Takes `eighths` away when as many have been counted. Only the owning engine consumes.
    @inlinable public func consume(eighths: Int64, from immediate: UInt32) -> Bool {
        guard self.eighths(of: immediate) >= eighths else { return false }
        self[counter: immediate].wrappingSubtract(eighths, ordering: .relaxed)
        return true
    }

    // MARK: Regions

    /// The table entry of region `index`; traps above `Limits.regions`.
    @inlinable public subscript(region index: UInt32) -> RegionSlot {
        @inline(__always) unsafeAddress { unsafe UnsafePointer(entry(index)) }
        @inline(__always) nonmutating unsafeMutableAddress { unsafe entry(index) }
    }

    @inlinable @inline(__always) func entry(_ index: UInt32) -> UnsafeMutablePointer<RegionSlot> {
        precondition(index < Limits.regions, "a region outside of the table")
        return unsafe at(Self.regionsOffset + Int(index) * RegionSlot.stride)
    }

    /// Tries to enter region `index` as the writer that sits at `seat`; false means that the region is not the one of the
    /// descriptor (any more). A writer is inside one region at a time.
    @inlinable public func enter(_ index: UInt32, expecting expected: UInt64, seat: UInt32) -> Bool {
        // before the load: pairs with withdraw
        self[seat: seat].store(UInt64(index) + 1, ordering: .sequentiallyConsistent)
        if isOpen(index, expecting: expected) { return true }
        leave(seat: seat)
        return false
    }

    /// The first half of `enter`, where `fencesWriters`: the writer says which region it wants to enter. The other half is
    /// `isOpen`, and `leave` when it is not. The writer keeps the compiler from exchanging the halves, and the owner keeps
    /// the processor from it.
    @inlinable public func announce(_ index: UInt32, seat: UInt32) {
        self[seat: seat].store(UInt64(index) + 1, ordering: .relaxed)
    }

    /// Whether a region is the one of the descriptor, still.
    @inlinable public func isOpen(_ index: UInt32, expecting expected: UInt64) -> Bool {
        // pairs with the stores in publish and withdraw
        self[region: index].state.load(ordering: .sequentiallyConsistent) == expected
    }

    /// Ends what `enter` began; also for a writer that has died inside.
    @inlinable public func leave(seat: UInt32) {
        self[seat: seat].store(0, ordering: .releasing)  // pairs with the load in isQuiet
    }

    /// Whether no writer is inside region `index`, which was withdrawn before. O(seats that were ever taken).
    public func isQuiet(_ index: UInt32) -> Bool {
        let taken = unsafe seatCount.pointee.load(ordering: .sequentiallyConsistent)
        for seat in 0..<taken where self[seat: seat].load(ordering: .acquiring) == UInt64(index) + 1 {
            return false  // pairs with leave
        }
        return true
    }

    /// Says that seats 0..<`count` are taken or were; the owner does it before it gives a seat away.
    public func openSeats(_ count: UInt32) {
        precondition(count <= Limits.writers)
        unsafe seatCount.pointee.max(count, ordering: .sequentiallyConsistent)  // pairs with isQuiet
    }

    private var seatCount: UnsafeMutablePointer<Atomic<UInt32>> { unsafe at(192) }

    /// Where a writer says which region it is inside: the region's index and 1, or 0.
    @inlinable subscript(seat seat: UInt32) -> Atomic<UInt64> {
        @inline(__always) unsafeAddress {
            precondition(seat < Limits.writers, "a seat outside of the table")
            return unsafe UnsafePointer(at(Self.seatsOffset + Int(seat) * Self.seatStride))
        }
    }

    /// Opens a region to writers: the last thing that they look at is written last.
    public func publish(_ region: LocalRegion) {
        self[region: region.index].base = UInt64(UInt(bitPattern: unsafe region.base))
        self[region: region.index].length = UInt64(region.length)
        self[region: region.index].secret = region.secret
        // pairs with the loads in enter and admit
        self[region: region.index].state.store(
            RegionSlot.state(generation: region.generation, access: region.access),
            ordering: .sequentiallyConsistent)
    }

    /// Ends a region for writers that have not entered; `isQuiet` tells when the others have left. With `fencesWriters`, after
    /// a barrier on all cores.
    public func withdraw(_ index: UInt32) {
        // pairs with the loads in enter and admit
        self[region: index].state.store(0, ordering: .sequentiallyConsistent)
    }

    /// The address of `length` bytes at `offset` of a region that a peer names, or what is wrong with the name.
    ///
    /// For code that runs in the owner's process and writes on behalf of a peer.
    public func admit(
        index: UInt32, generation: UInt32, secret: UInt64, offset: UInt64, length: UInt64
    ) -> Result<UnsafeMutableRawPointer, WorkStatus> {
        let refusal = refusal(index, generation, secret, offset, length)
        if refusal != .success { return unsafe .failure(refusal) }
        // Inside memory that the owner registered; a region of its own memory does not begin at 0.
        guard let base = unsafe UnsafeMutableRawPointer(bitPattern: UInt(self[region: index].base)) else {
            return unsafe .failure(.outOfRange)
        }
        return unsafe .success(base + Int(offset))
    }

    private func refusal(
        _ index: UInt32, _ generation: UInt32, _ secret: UInt64, _ offset: UInt64, _ length: UInt64
    ) -> WorkStatus {
        guard index < Limits.regions else { return .staleRegion }
        let expected = RegionSlot.state(generation: generation, access: .remoteWrite)
        // pairs with the stores in publish and withdraw
        guard self[region: index].state.load(ordering: .acquiring) == expected else { return .staleRegion }
        guard self[region: index].secret == secret else { return .accessDenied }
        let (end, overflow) = offset.addingReportingOverflow(length)
        return !overflow && end <= self[region: index].length ? .success : .outOfRange
    }
}

/// One region in a `TargetPage`, 64 bytes.
///
/// A writer in another process names the region at its seat, then compares `state` with what its descriptor says, then copies,
/// then clears its seat. The owner that ends a region changes `state` first and then waits until no seat names the region: after
/// that nobody can write any more. Seats belong to one writer each, so that the owner can clear that of a writer that has died.
public struct RegionSlot: ~Copyable {
    @usableFromInline static let stride = 64

    /// Generation, access and liveness in one word; 0 is free.
    public let state: Atomic<UInt64>
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
}
