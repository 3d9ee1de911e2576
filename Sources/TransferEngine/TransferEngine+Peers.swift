internal import Synchronization
public import TransferCore

extension TransferEngine {
    /// Makes a peer's region ready to be written into: resolves its NICs, connects, maps. Attaching the same
    /// descriptor again returns the same handle.
    ///
    /// Where several fabrics reach the peer, the first in the order of the configuration is used. `trafficClass` says how urgent
    /// the writes to this handle are; with another class the handle is another one.
    /// - Throws: `unreachable` when no NIC of ours speaks to one of the peer's; `staleRegion` or `accessDenied` where that is
    ///   known now; `limitReached`; `expired`; with a cluster key `forged` and, for a descriptor without a signature,
    ///   `unauthenticated`.
    public func attach(
        _ remote: RemoteRegion, as trafficClass: TrafficClass = .normal
    ) throws(TransferError) -> RemoteMemory {
        try attach(remote, trafficClass, isLanding: false)
    }

    private func attach(
        _ remote: RemoteRegion, _ trafficClass: TrafficClass, isLanding: Bool
    ) throws(TransferError) -> RemoteMemory {
        let wall = group.wallNanoseconds
        guard remote.expires == 0 || wall < remote.expires else { throw .descriptorExpired }
        let known = try control.withLock { control throws(TransferError) in
            if control.isClosed { throw .engineClosed }
            return control.attached[trafficClass]?[remote]
        }
        if let known { return known }
        guard remote.nics.count <= Limits.nicsPerDevice, remote.length <= UInt64(Int.max),
            remote.nics.allSatisfy({ $0.address.count <= Limits.addressBytes })
        else { throw TransferError(.malformedDescriptor, "a descriptor that no engine makes") }
        try group.authenticator?.check(remote)
        let handle = try perform { group throws(TransferError) in
            guard let index = group.freeAttachments.pop() else {
                throw TransferError(.limitReached, "\(Limits.attachments) regions are attached; detach some")
            }
            do throws(TransferError) {
                var made = try Self.resolve(remote, trafficClass, group)
                made.generation = group.nextGeneration()
                let handle = RemoteMemory(
                    byteCount: made.length, engine: remote.engine, index: index, generation: made.generation)
                group.attachments[index] = made
                if !isLanding { group.hot.value.traffic.use(trafficClass) }
                if remote.expires != 0 { group.expire(index, after: remote.expires - wall) }
                group.traceEvent(.attached, remote.engine.rawValue, UInt64(index))
                do throws(TransferError) { try group.narrow(index) } catch {
                    group.detach(index)
                    throw error
                }
                return handle
            } catch {
                group.freeAttachments.push(index)
                throw error
            }
        }
        control.withLock { $0.attached[trafficClass, default: [:]][remote] = handle }
        return handle
    }

    /// Attaches a descriptor in its binary form.
    public func attach(
        decoding bytes: some Collection<UInt8>, as trafficClass: TrafficClass = .normal
    ) throws(TransferError) -> RemoteMemory {
        try attach(RemoteRegion(decoding: bytes), as: trafficClass)
    }

    /// Connects to an engine, for messages, immediates and barriers.
    public func connect(to address: EngineAddress) throws(TransferError) -> Peer {
        let peer = Peer(name: address.name, landing: try attach(address.landing, .normal, isLanding: true))
        try perform { group throws(TransferError) in group.links.name(peer.engine, address.name) }
        return peer
    }

    /// Ends a connection that `connect` made. Transfers to the peer must have ended; whoever else was given the same
    /// `Peer` has it no longer.
    public func disconnect(_ peer: Peer) throws(TransferError) { try detach(peer.landing) }

    /// Ends an attachment. Transfers to it must have ended.
    public func detach(_ remote: RemoteMemory) throws(TransferError) {
        control.withLock { control in
            control.attached = control.attached.mapValues { $0.filter { $0.value != remote } }
        }
        try perform { group throws(TransferError) in
            let isKnown =
                group.attachments[remote.index].generation == remote.generation
                || group.attachments[remote.index].expiredGeneration == remote.generation
            guard isKnown else { throw .staleAttachment }
            group.hot.value.expiring.removeAll { $0.attachment == remote.index }
            group.detach(remote.index)
            group.traceEvent(.detached, remote.engine.rawValue, UInt64(remote.index))
            group.freeAttachments.push(remote.index)
        }
    }

    // MARK: Internals

    static func resolve(
        _ remote: RemoteRegion, _ trafficClass: TrafficClass, _ group: DomainGroup
    ) throws(TransferError) -> Attachment {
        var reasons: [String] = []
        let local = group.attributes
        for route in Route.candidates(local: local, remote: remote.nics) {
            do throws(TransferError) {
                return try resolve(remote, trafficClass, route, group)
            } catch {
                guard error.code == .unreachable else { throw error }
                reasons.append(error.message)
            }
        }
        let ours = Set(local.map(\.fabric)).sorted().joined(separator: ", ")
        let theirs = Set(remote.nics.map(\.fabric)).sorted().joined(separator: ", ")
        throw TransferError(
            .unreachable,
            "engine \(remote.engine) cannot be reached: it speaks [\(theirs)], \(group.engineName) speaks "
                + "[\(ours)]" + reasons.map { "; \($0)" }.joined())
    }

    private static func resolve(
        _ remote: RemoteRegion, _ trafficClass: TrafficClass, _ route: Route, _ group: DomainGroup
    ) throws(TransferError) -> Attachment {
        let rails = route.rails(local: group.attributes, remote: remote.nics)
        var keys: [ImportedKey] = []
        do throws(TransferError) {
            for rail in rails {
                var key = try group.domains[rail.local].fabric.importRegion(remote, nic: rail.remote)
                if trafficClass == .bulk {
                    key.maximumWriteBytes = min(key.maximumWriteBytes, DomainGroup.bulkRequestBytes)
                }
                keys.append(key)
            }
        } catch {
            for (rail, key) in zip(rails, keys) { group.domains[rail.local].fabric.releaseImport(key) }
            throw error
        }
        let peer = group.links.peer(remote.engine, now: group.hot.value.now)
        let links = zip(rails, keys).map { rail, key in
            Int32(
                group.links.use(
                    key, domain: rail.local, nic: rail.remote, of: peer, now: group.hot.value.now
                ).index)
        }
        return Attachment(
            peer: peer.place, isWritable: remote.access.contains(.remoteWrite),
            trafficClass: trafficClass, length: Int(remote.length),
            rails: Table(rails), keys: Table(keys), links: Table(links),
            maximumWriteBytes: keys.reduce(.max) { min($0, $1.maximumWriteBytes) },
            completesAtOnce: keys.allSatisfy(\.completesAtOnce),
            nics: rails.reduce(0) { $0 | 1 << UInt8($1.local) })
    }
}

extension TransferError {
    static let staleAttachment = TransferError(.staleRegion, "the remote region was detached")
    static let descriptorExpired = TransferError(
        .expired,
        "the descriptor's time is over; ask its owner for a new one, and compare the clocks of both hosts")
}
