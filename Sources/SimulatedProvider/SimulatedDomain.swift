public import TransferCore

/// One NIC of a `SimulatedNetwork`, as an engine sees it.
///
/// `poll` hands over what `SimulatedNetwork.step` has delivered; it does not make time pass. Belongs to the
/// network's thread.
public final class SimulatedDomain: FabricDomain {
    private let network: SimulatedNetwork
    private let port: SimulatedPort

    /// Wraps a port that the network has just added.
    init(network: SimulatedNetwork, port: SimulatedPort) {
        self.network = network
        self.port = port
    }

    deinit { close() }

    /// The NIC's number in the network, as fault rules see it.
    public var id: UInt64 { port.id }

    /// Provider and fabric are `sim`; the rest is what the NIC was described with.
    public var attributes: DomainAttributes {
        DomainAttributes(
            provider: "sim", fabric: "sim", name: port.nic.name,
            megabitsPerSecond: port.nic.megabitsPerSecond, maximumWriteBytes: port.nic.maximumWriteBytes,
            countsMany: port.nic.countsMany, countsManyBytes: port.nic.countsManyBytes)
    }

    /// The id, 8 bytes little-endian.
    public var address: [UInt8] { (0..<8).map { UInt8(truncatingIfNeeded: port.id >> (8 * $0)) } }

    /// Draws keys for the region. The owner must have put it into its page, or nobody can write to it.
    public func register(_ region: LocalRegion) throws(TransferError) -> DomainKey {
        guard port.isOpen else { throw TransferError(.closed, "NIC \(port.nic.name) has been closed") }
        guard region.length >= 0 else {
            throw TransferError(.invalidArgument, "a region of negative length")
        }
        let local = network.drawWord()
        let remote = network.drawWord()
        port.localKeys[local] = region
        port.remoteKeys[remote] = region
        return DomainKey(local: local, remote: remote, base: UInt64(UInt(bitPattern: unsafe region.base)))
    }

    /// Takes both keys out. Packets under way that use them end with an error instead of touching the memory.
    public func deregister(_ region: LocalRegion, key: DomainKey) {
        port.localKeys[key.local] = nil
        port.remoteKeys[key.remote] = nil
    }

    /// Looks the peer's NIC up by its address.
    public func importRegion(_ remote: RemoteRegion, nic: Int) throws(TransferError) -> ImportedKey {
        guard port.isOpen else { throw TransferError(.closed, "NIC \(port.nic.name) has been closed") }
        guard remote.nics.indices.contains(nic) else {
            throw TransferError(
                .invalidArgument, "the descriptor has no NIC \(nic), only \(remote.nics.count)")
        }
        let entry = remote.nics[nic]
        let id = entry.address.reversed().reduce(UInt64(0)) { $0 << 8 | UInt64($1) }
        guard entry.fabric == "sim", entry.address.count == 8, let peer = network.ports[id] else {
            throw TransferError(
                .unreachable,
                "NIC \(port.nic.name) does not reach NIC \(nic) of engine \(remote.engine): it is not, or no "
                    + "longer, in this simulated network")
        }
        let maximum = min(port.nic.maximumWriteBytes, peer.nic.maximumWriteBytes)
        return ImportedKey(remote: remote, nic: nic, peer: Int(id), maximumWriteBytes: maximum)
    }

    /// Does nothing: an import holds nothing here.
    public func releaseImport(_ key: ImportedKey) {}

    /// Starts writes. `again` when `SimulatedNIC.queueDepth` of them wait to be polled.
    public func post(_ requests: UnsafeBufferPointer<WorkRequest>) -> PostResult {
        let admission = network.faults.admission(
            of: requests.count, by: port.id, nowNanoseconds: network.nowNanoseconds)
        for index in requests.indices {
            if index >= admission.count {
                return PostResult(accepted: index, isComplete: false, status: admission.status)
            }
            let request = unsafe requests[index]
            let refusal = room() ?? refuse(request)
            if let refusal {
                return PostResult(
                    accepted: index, isComplete: false, status: refusal.status, detail: refusal.detail)
            }
            network.launch(Flight(request, from: port))
        }
        return PostResult(accepted: requests.count, isComplete: false, status: .success)
    }

    /// Starts a message. When the target's inbox is full, it waits at the target, and completes once it was
    /// taken in.
    public func send(
        _ payload: UnsafeRawBufferPointer, to target: UnsafePointer<ImportedKey>, context: UInt64
    ) -> PostResult {
        let tooLong = payload.count > Limits.packetBytes
        if let refusal = room() ?? (tooLong ? (.providerFailed, SimulatedDetail.tooLong) : nil) {
            return PostResult(
                accepted: 0, isComplete: false, status: refusal.status, detail: refusal.detail)
        }
        unsafe network.launch(
            Flight(message: payload, to: UInt64(target.pointee.peer), context: context, from: port))
        return PostResult(accepted: 1, isComplete: false, status: .success)
    }

    /// Gives up what is under way to the target's NIC.
    public func sever(_ target: UnsafePointer<ImportedKey>) {
        port.sever(unsafe UInt64(target.pointee.peer))
    }

    /// Lets nothing more of the connection land.
    public func settle(connection: UInt64, from sender: EngineID) -> DeliveryLedger? {
        port.incoming[connection, default: .init()].isClosed = true
        let incoming = port.incoming[connection, default: .init()]
        return DeliveryLedger(base: incoming.base, counted: incoming.counted)
    }

    private typealias Refusal = (status: WorkStatus, detail: Int32)

    private func room() -> Refusal? {
        guard port.isOpen else { return (.providerFailed, SimulatedDetail.closed) }
        return port.outstanding < port.nic.queueDepth ? nil : (.again, SimulatedDetail.none)
    }

    private func refuse(_ request: WorkRequest) -> Refusal? {
        guard request.length >= 0, UInt64(request.length) <= port.nic.maximumWriteBytes else {
            return (.providerFailed, SimulatedDetail.tooLong)
        }
        let mayCountMany = port.nic.countsMany && UInt64(request.length) <= port.nic.countsManyBytes
        let fitsTheWire = mayCountMany || [0, 1, 2, 4, 8].contains(request.eighths)
        guard fitsTheWire, request.immediate <= Immediate.max.value else {
            return (.providerFailed, SimulatedDetail.badImmediate)
        }
        guard
            unsafe request.length == 0
                || port.owns(request.source, length: request.length, localKey: request.localKey)
        else { return (.accessDenied, SimulatedDetail.badLocalKey) }
        return nil
    }

    /// Hands over ends of requests and messages in the order in which they came.
    public func poll(_ completions: UnsafeMutableBufferPointer<Completion>) -> Int {
        let room = network.faults.handOver(
            completions.count, by: port.id, nowNanoseconds: network.nowNanoseconds)
        let count = unsafe port.take(
            UnsafeMutableBufferPointer(rebasing: completions[..<min(max(0, room), completions.count)]))
        network.roomMade(at: port)
        return count
    }

    /// Always false: a simulated engine never sleeps, its driver decides when time passes.
    public func prepareToSleep() -> Bool { false }

    /// -1: there is nothing to wait for in the kernel.
    public var wakeDescriptor: Int32 { -1 }

    /// Takes the NIC out of the network. What it was sending stops where it is; whoever sends to it gets
    /// `peerLost`.
    public func close() {
        guard port.isOpen else { return }
        network.remove(port)
    }
}
