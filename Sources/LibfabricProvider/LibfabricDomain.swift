import CLibfabric
import CPlatform
import Glibc
public import TransferCore

/// One NIC, driven through libfabric.
///
/// Large writes are one-sided operations of the provider. Small ones travel in frames where the provider is
/// software (`LibfabricOptions.framing`), and so do messages everywhere: a frame is one send that the
/// receiving domain carries out and acknowledges.
public final class LibfabricDomain: FabricDomain {
    public let attributes: DomainAttributes
    public let address: [UInt8]
    /// Whether a large write's completion is the target's acknowledgement. False only for software providers
    /// that cannot say it: there, completions mean no more than that the source may be reused.
    public let completesOnDelivery: Bool

    let state: UnsafeMutablePointer<DomainState>
    private let regions: UnsafeMutablePointer<UnsafeMutablePointer<fid_mr>?>
    private let keyMask: UInt64
    private var isClosed = false

    /// Opens a NIC.
    ///
    /// - Throws: `unavailable` when libfabric, the provider or the NIC is missing; it names what is there.
    public init(_ options: LibfabricOptions, page: TargetPage, engine: EngineID) throws(TransferError) {
        let choice = try FabricSelection.choose(options)
        let info = choice.info
        let description = FabricSelection.describe(info)
        let nic = "\(options.provider) \(description.name)"
        let handles: FabricHandles
        do throws(TransferError) {
            handles = try FabricHandles(opening: info, options: options, nic: nic)
        } catch {
            te_fi_freeinfo(info)
            throw error
        }
        let name: [UInt8]
        let opened: DomainState
        do throws(TransferError) {
            name = try handles.name(nic: nic)
            opened = try DomainState(
                handles: handles, options: options, page: page, engine: engine,
                writeFlags: FI_COMPLETION | (choice.deliveryComplete ? FI_DELIVERY_COMPLETE : 0),
                countsWrites: options.frames && choice.ordersSendAfterWrite
                    && info.pointee.tx_attr.pointee.iov_limit >= 2
                    && info.pointee.tx_attr.pointee.rma_iov_limit >= 2,
                address: name,
                nic: nic)
        } catch {
            handles.close()
            throw error
        }
        state = .allocate(capacity: 1)
        state.initialize(to: opened)
        regions = .allocate(capacity: Limits.regions)
        regions.initialize(repeating: nil, count: Limits.regions)
        let keyBytes = info.pointee.domain_attr.pointee.mr_key_size
        keyMask = keyBytes >= 8 || keyBytes == 0 ? .max : (1 << UInt64(keyBytes * 8)) - 1
        completesOnDelivery = options.isHardware || choice.deliveryComplete
        address = name
        attributes = DomainAttributes(
            provider: "libfabric", fabric: options.provider,
            name: description.address.isEmpty
                ? description.name : "\(description.name) \(description.address)",
            megabitsPerSecond: options.megabitsPerSecond ?? description.megabitsPerSecond,
            maximumWriteBytes: opened.maximumWriteBytes, countsMany: options.frames)
        // Also without frames here: a peer may have them.
        guard options.isTCP else { return }
        let (object, key) = try register(opened.rings, DomainState.ringsBytes, FI_REMOTE_WRITE)
        state.pointee.ringRegion = object
        state.pointee.ringBase = key.base
        state.pointee.ringKey = key.remote
    }

    deinit {
        close()
        state.deinitialize(count: 1)
        state.deallocate()
        regions.deallocate()
    }

    // MARK: Memory

    public func register(_ region: LocalRegion) throws(TransferError) -> DomainKey {
        guard region.index < Limits.regions, regions[Int(region.index)] == nil else {
            throw TransferError(
                .invalidArgument, "region \(region.index) is registered on \(attributes.name) already")
        }
        var access = FI_WRITE | FI_SEND
        if region.access.contains(.remoteWrite) { access |= FI_REMOTE_WRITE }
        let (object, key) = try register(region.base, region.length, access)
        regions[Int(region.index)] = object
        return key
    }

    private func register(
        _ base: UnsafeMutableRawPointer, _ length: Int, _ access: UInt64
    ) throws(TransferError) -> (UnsafeMutablePointer<fid_mr>, DomainKey) {
        let handles = state.pointee.handles
        let mode = handles.info.pointee.domain_attr.pointee.mr_mode
        var object: UnsafeMutablePointer<fid_mr>?
        var result: Int32 = 0
        // A key of our own must be one that nobody can guess, and that no other region has.
        for _ in 0..<8 {
            let wanted = mode & FI_MR_PROV_KEY != 0 ? 0 : try randomKey()
            result = fi_mr_reg(handles.domain, base, length, access, 0, wanted, 0, &object, nil)
            if result != -Int32(FI_ENOKEY) { break }
        }
        guard result == 0, let object else {
            throw FabricError.failure(
                "fi_mr_reg of \(length) bytes", result, nic: attributes.name,
                remedy: "raise the limit of locked memory (ulimit -l unlimited) or register less")
        }
        if mode & FI_MR_ENDPOINT != 0 {
            var bound = fi_mr_bind(object, FabricHandles.identity(handles.endpoint), 0)
            if bound == 0 { bound = fi_mr_enable(object) }
            guard bound == 0 else {
                FabricHandles.close(object)
                throw FabricError.failure("fi_mr_enable", bound, nic: attributes.name)
            }
        }
        let key = DomainKey(
            local: UInt64(UInt(bitPattern: fi_mr_desc(object))), remote: fi_mr_key(object),
            base: mode & FI_MR_VIRT_ADDR != 0 ? UInt64(UInt(bitPattern: base)) : 0)
        return (object, key)
    }

    public func deregister(_ region: LocalRegion, key: DomainKey) {
        guard region.index < Limits.regions else { return }
        FabricHandles.close(regions[Int(region.index)])
        regions[Int(region.index)] = nil
    }

    private func randomKey() throws(TransferError) -> UInt64 {
        var key: UInt64 = 0
        guard getrandom(&key, MemoryLayout<UInt64>.size, 0) == MemoryLayout<UInt64>.size else {
            throw TransferError(.unavailable, "getrandom failed: \(String(cString: strerror(errno)))")
        }
        return key & keyMask
    }

    // MARK: Peers

    public func importRegion(_ remote: RemoteRegion, nic: Int) throws(TransferError) -> ImportedKey {
        guard remote.nics.indices.contains(nic) else {
            throw TransferError(.invalidArgument, "the descriptor of \(remote.engine) has no NIC \(nic)")
        }
        let other = remote.nics[nic]
        guard other.fabric == attributes.fabric else {
            throw TransferError(
                .unreachable, "\(attributes.name) speaks \(attributes.fabric), the peer's NIC \(other.fabric)"
            )
        }
        // A shorter or longer name would be read past its end, or is no name of this provider.
        // libfabric's shm has names of different lengths, which a zero byte ends.
        let isName = attributes.fabric == "shm" && other.address.last == 0
        guard other.address.count == address.count || isName else {
            throw TransferError(
                .malformedDescriptor,
                "\(attributes.fabric) addresses have \(address.count) bytes, not \(other.address.count)"
            )
        }
        let found = other.address.withUnsafeBytes { bytes -> (index: Int32, error: Int32) in
            guard let start = bytes.baseAddress else { return (-1, EINVAL) }
            return state.pointee.findPeer(engine: remote.engine.rawValue, address: start, length: bytes.count)
        }
        guard found.index >= 0 else {
            if found.error == ENOSPC {
                throw TransferError(
                    .limitReached, "\(attributes.name) has \(Tuning.peers) peers already; use more engines")
            }
            throw FabricError.failure("fi_av_insert", found.error, nic: attributes.name)
        }
        state.pointee.peers[Int(found.index)].imports += 1
        return ImportedKey(
            remote: remote, nic: nic, peer: Int(found.index),
            maximumWriteBytes: state.pointee.maximumWriteBytes)
    }

    public func releaseImport(_ key: ImportedKey) {
        guard key.peer >= 0, key.peer < state.pointee.peerCount else { return }
        state.pointee.peers[key.peer].imports -= 1
    }

    // MARK: Work

    public func post(_ requests: UnsafeBufferPointer<WorkRequest>) -> PostResult {
        state.pointee.post(requests)
    }

    public func send(
        _ payload: UnsafeRawBufferPointer, to target: UnsafePointer<ImportedKey>, context: UInt64
    ) -> PostResult {
        state.pointee.send(payload, to: Int32(truncatingIfNeeded: target.pointee.peer), context: context)
    }

    /// Gives up the connection to a peer; what was on it is settled with the peer. See `FabricDomain.sever`.
    public func sever(_ target: UnsafePointer<ImportedKey>) {
        guard target.pointee.peer >= 0, target.pointee.peer < state.pointee.peerCount else { return }
        state.pointee.sever(Int32(target.pointee.peer))
    }

    /// What has been counted of a connection from `sender`; nil while something of it may still arrive. See
    /// `FabricDomain.settle`.
    public func settle(connection: UInt64, from sender: EngineID) -> DeliveryLedger? {
        state.pointee.settle(FabricConnection(rawValue: connection), from: sender.rawValue)
    }

    public func poll(_ completions: UnsafeMutableBufferPointer<Completion>) -> Int {
        state.pointee.poll(completions)
    }

    public func describe(_ status: WorkStatus, detail: Int32, peer: Int?) -> String? {
        guard detail != 0 else { return nil }
        let hint = status == .peerLost ? "; is its engine running? Attach to it again once it is back" : ""
        return "libfabric reports: \(FabricError.text(detail)) (\(abs(detail)))\(hint)"
    }

    public func prepareToSleep() -> Bool { state.pointee.prepareToSleep() }

    public var wakeDescriptor: Int32 { state.pointee.handles.waitDescriptor }

    /// When to look for new connections, after the last traffic.
    public var pollDue: UInt64 {
        state.pointee.mayHaveNewConnections ? state.pointee.keepsAliveAt : .max
    }

    public func close() {
        guard !isClosed else { return }
        isClosed = true
        for index in 0..<Limits.regions {
            FabricHandles.close(regions[index])
            regions[index] = nil
        }
        FabricHandles.close(state.pointee.arenaRegion)
        FabricHandles.close(state.pointee.ringRegion)
        state.pointee.handles.close()
        state.pointee.deallocate()
    }
}
