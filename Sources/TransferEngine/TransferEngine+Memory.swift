internal import Platform
internal import Synchronization
public import TransferCore

/// What the engine keeps of a registered region beside the data path's entry.
struct RegisteredRegion {
    var region: MemoryRegion
    var local: LocalRegion
    /// For each NIC; nil where the region is not registered.
    var keys: [DomainKey?]
    var mapping: SharedMapping?
}

extension TransferEngine {
    /// Allocates and registers memory that peers on the same host can map: a write into it is one copy.
    ///
    /// Zeroed and page aligned; in huge pages where the system has some. `isPopulated` makes all pages exist
    /// now, so that no transfer meets a page fault; leave it off for memory that is mostly never touched.
    /// - Parameters:
    ///   - byteCount: Bytes, at least 1.
    ///   - access: What peers may do.
    ///   - nics: Positions in `Configuration.nics`; nil is all of them.
    ///   - isPopulated: Whether all pages are to exist now.
    /// - Throws: `limitReached` when memory or `Limits.regions` run out, or what the NICs say.
    /// - Complexity: O(byteCount) when populated.
    public func allocate(
        byteCount: Int, access: Access = .remoteWrite, nics: [Int]? = nil, isPopulated: Bool = true
    ) throws(TransferError) -> MemoryRegion {
        guard byteCount > 0 else {
            throw TransferError(.invalidArgument, "an allocation of \(byteCount) bytes")
        }
        let mapping = try SharedMapping.create(
            name: "te-region", byteCount: byteCount, hugePages: byteCount >= 2 << 20 && isPopulated,
            isPopulated: isPopulated)
        do throws(TransferError) {
            return try unsafe register(
                mapping.base, byteCount: byteCount, access: access, nics: nics, mapping: mapping,
                isPopulated: isPopulated)
        } catch {
            mapping.unmap()
            throw error
        }
    }

    /// Registers memory of the caller, on every NIC of the device or on chosen ones. It stays the caller's, and must stay
    /// where it is until `deregister` returns.
    ///
    /// Peers write into the region through the NICs on which it is registered, and writes from it go out through those.
    /// - Parameters:
    ///   - memory: At least one byte.
    ///   - access: What peers may do.
    ///   - nics: Positions in `Configuration.nics`; nil is all of them.
    /// - Throws: `invalidArgument` for an empty range or NICs that there are not, `limitReached` for `Limits.regions` or
    ///   `Limits.nicSets`, or what the NICs say.
    public func register(
        _ memory: UnsafeMutableRawBufferPointer, access: Access = .remoteWrite, nics: [Int]? = nil
    ) throws(TransferError) -> MemoryRegion {
        guard let base = memory.baseAddress, unsafe !memory.isEmpty else {
            throw TransferError(.invalidArgument, "registration of an empty range")
        }
        return try unsafe register(
            base, byteCount: memory.count, access: access, nics: nics, mapping: nil, isPopulated: false)
    }

    /// Ends a registration. When this returns, nobody can write into the memory any more, and memory that the engine
    /// allocated is gone. Transfers that use the region as their source must have ended.
    /// - Throws: `staleRegion` when the region was deregistered before; `stalled` when a writer on this host does not leave.
    public func deregister(_ region: MemoryRegion) throws(TransferError) {
        let known = try forget(region)
        try performRemoval(of: known, keepingMemory: false)
    }

    /// Removes a region that `forget` has returned. An engine that closes meanwhile keeps it to the end.
    func performRemoval(of known: RegisteredRegion, keepingMemory: Bool) throws(TransferError) {
        do throws(TransferError) {
            try perform { group throws(TransferError) in
                try self.remove(known, from: group, keepingMemory: keepingMemory)
            }
        } catch {
            if error.code == .closed { control.withLock { $0.regions[known.local.index] = known } }
            throw error
        }
    }

    /// Takes a region out of the table of those that callers know.
    func forget(_ region: MemoryRegion) throws(TransferError) -> RegisteredRegion {
        let known = control.withLock { control -> RegisteredRegion? in
            guard let known = control.regions[region.index], known.region == region else { return nil }
            control.regions[region.index] = nil
            return known
        }
        guard let known else { throw orClosed(.staleLocal) }
        return known
    }

    /// Registers memory again that was registered before.
    func reregister(_ known: RegisteredRegion) throws(TransferError) -> MemoryRegion {
        let nics = known.keys.indices.filter { known.keys[$0] != nil }
        return try unsafe register(
            known.local.base, byteCount: known.local.length, access: known.local.access, nics: nics,
            mapping: known.mapping, isPopulated: known.local.isPopulated)
    }

    /// What a peer needs to write into the region; signed when there is a cluster key.
    /// - Parameters:
    ///   - region: A registered region.
    ///   - duration: How long peers may begin transfers with the descriptor, by the clocks of both hosts; nil is for ever. Their
    ///     engines keep to it: to end the right of a peer that you do not trust, `revoke` the region.
    ///     Of an engine that has been closed it names no NICs: nobody can attach it.
    /// - Precondition: the region is registered.
    public func descriptor(of region: MemoryRegion, validFor duration: Duration? = nil) -> RemoteRegion {
        var content = content(of: region)
        if let duration {
            let (moment, overflow) = group.wallNanoseconds.addingReportingOverflow(duration.nanoseconds)
            content.expires = overflow ? 0 : max(1, moment)
        }
        return signed(content, byteCount: content.length)
    }

    func signed(_ content: RemoteRegion, byteCount: UInt64) -> RemoteRegion {
        var content = content
        content.length = byteCount
        return group.authenticator?.signed(content) ?? content
    }

    func content(of region: MemoryRegion) -> RemoteRegion {
        guard let known = control.withLock({ $0.regions[region.index] }), known.region == region else {
            // pairs with the store in close()
            precondition(isStopping.load(ordering: .acquiring), "the region was deregistered")
            return RemoteRegion(
                engine: id, device: 0, index: region.index, generation: region.generation, access: .localOnly,
                length: UInt64(region.byteCount), base: 0, secret: 0, nics: [])
        }
        return RemoteRegion(
            engine: id, device: 0, index: region.index, generation: region.generation,
            access: known.local.access,
            length: UInt64(region.byteCount), base: UInt64(region.address),
            secret: known.local.secret,
            nics: known.keys.enumerated().compactMap { index, key in
                guard let key else { return nil }
                let domain = group.domains[index].fabric
                let attributes = domain.attributes
                return RemoteRegion.NIC(
                    fabric: attributes.fabric, address: domain.address,
                    megabitsPerSecond: attributes.megabitsPerSecond, key: key.remote, base: key.base)
            })
    }

    // MARK: Internals

    private func register(
        _ base: UnsafeMutableRawPointer, byteCount: Int, access: Access, nics: [Int]?,
        mapping: SharedMapping?, isPopulated: Bool
    ) throws(TransferError) -> MemoryRegion {
        let nicSet = try nicSet(nics)
        let (index, generation, secret) = try reserveRegion()
        let region = MemoryRegion(
            address: UInt(bitPattern: base), byteCount: byteCount, index: index, generation: generation)
        let local = unsafe LocalRegion(
            index: index, generation: generation, access: access, secret: secret, base: base,
            length: byteCount,
            memoryFile: mapping?.file ?? -1, isPopulated: isPopulated)
        do throws(TransferError) {
            let keys = try perform { group throws(TransferError) in try Self.add(local, nicSet, to: group) }
            let known = RegisteredRegion(region: region, local: local, keys: keys, mapping: mapping)
            control.withLock {
                $0.regions[index] = known
                $0.reservedRegions.remove(index)
            }
            return region
        } catch {
            _ = control.withLock { $0.reservedRegions.remove(index) }
            throw error
        }
    }

    private func reserveRegion() throws(TransferError) -> (index: UInt32, generation: UInt32, secret: UInt64)
    {
        try control.withLock { control throws(TransferError) in
            guard control.regions.count + control.reservedRegions.count < Limits.regions else {
                throw TransferError(
                    .limitReached, "\(Limits.regions) regions are registered; deregister some")
            }
            repeat {
                control.nextRegion = (control.nextRegion + 1) % UInt32(Limits.regions)
            } while control.regions[control.nextRegion] != nil
                || control.reservedRegions.contains(control.nextRegion)
            control.nextGeneration = max(1, control.nextGeneration &+ 1)
            control.reservedRegions.insert(control.nextRegion)
            return (control.nextRegion, control.nextGeneration, control.random.next())
        }
    }

    /// The set of the chosen NICs.
    private func nicSet(_ nics: [Int]?) throws(TransferError) -> UInt8 {
        guard let nics else { return group.allNICs }
        guard !nics.isEmpty, nics.allSatisfy({ (0..<group.domains.count).contains($0) }) else {
            throw TransferError(
                .invalidArgument, "NICs \(nics); the engine has 0 to \(group.domains.count - 1), name some")
        }
        return nics.reduce(0) { $0 | 1 << UInt8($1) }
    }

    private static func add(
        _ local: LocalRegion, _ nics: UInt8, to group: DomainGroup
    ) throws(TransferError) -> [DomainKey?] {
        try group.admit(nicSet: nics)
        // The page first: from the moment a provider knows the region, peers may ask for it.
        group.page.publish(local)
        var keys: [DomainKey?] = []
        var entry = RegionEntry(
            generation: local.generation, base: UInt(bitPattern: unsafe local.base), length: local.length,
            nics: nics, nicSet: group.hot.value.nicSets.firstIndex(of: nics) ?? 0)
        do throws(TransferError) {
            for domain in 0..<group.domains.count {
                let key =
                    nics & 1 << UInt8(domain) != 0 ? try group.domains[domain].fabric.register(local) : nil
                keys.append(key)
                entry.localKeys[domain] = key?.local ?? 0
            }
        } catch {
            group.page.withdraw(local.index)
            for case (let domain, let key?) in keys.enumerated() {
                group.domains[domain].fabric.deregister(local, key: key)
            }
            throw error
        }
        group.regions[local.index] = entry
        group.traceEvent(.registered, UInt64(local.length), UInt64(local.index))
        return keys
    }

    func remove(
        _ known: RegisteredRegion, from group: DomainGroup, keepingMemory: Bool
    ) throws(TransferError) {
        group.regions[known.local.index] = RegionEntry()
        group.traceEvent(.deregistered, UInt64(known.local.length), UInt64(known.local.index))
        group.page.withdraw(known.local.index)
        for case (let domain, let key?) in known.keys.enumerated() {
            group.domains[domain].fabric.deregister(known.local, key: key)
        }
        let deadline = group.clock.nowNanoseconds &+ configuration.timeout.nanoseconds
        let isFenced = !group.page.fencesWriters || RemoteBarrier.pass()
        while !isFenced || !group.page.isQuiet(known.local.index) {
            guard isFenced, group.clock.nowNanoseconds < deadline else {
                throw TransferError(
                    .stalled,
                    "a writer on this host is inside region \(known.local.index) and does not leave; its memory is kept"
                )
            }
        }
        if !keepingMemory { known.mapping?.unmap() }
    }

    func releaseAll() {
        let regions = control.withLock { control in
            defer { control.regions = [:] }
            return control.regions
        }
        for known in regions.values { try? remove(known, from: group, keepingMemory: false) }
        for index in 0..<UInt32(group.attachments.count) where group.attachments[index].generation != 0 {
            group.detach(index)
        }
    }
}

extension TransferError {
    static let staleLocal = TransferError(.staleRegion, "the local region was deregistered")
}
