package import CVerbs
internal import Glibc
internal import Platform
public import TransferCore

/// One port of an RDMA NIC, driven through libibverbs: reliable connections over RoCE v2 or InfiniBand.
///
/// A peer is connected when one of its regions is imported, or at the first request after a connection broke. Until both sides
/// are ready, `post` and `send` push back; `poll` moves the handshake along.
@safe public final class VerbsDomain: FabricDomain {
    public let attributes: DomainAttributes
    public let address: [UInt8]
    /// The port that is used, and why this GID.
    public let port: VerbsPort

    // SAFETY: allocated in init and freed in deinit; used by one thread at a time (FabricDomain).
    let state: UnsafeMutablePointer<DomainState>
    private let regions = unsafe Table<UnsafeMutablePointer<ibv_mr>?>(repeating: nil, count: Limits.regions)
    private let relaxedOrdering: Bool
    private let maximumWriteBytes: UInt64
    private var isClosed = false

    /// Opens a port.
    ///
    /// - Throws: `unavailable` when libibverbs, the device or a usable port or GID is missing; it names what there is.
    public convenience init(
        _ options: VerbsOptions, page: TargetPage, engine: EngineID
    ) throws(TransferError) {
        guard let api = unsafe te_verbs_load() else {
            throw TransferError(.unavailable, VerbsProvider.status)
        }
        unsafe try self.init(options, page: page, engine: engine, api: api)
    }

    /// Opens a port through a table of entry points that is not libibverbs', for tests.
    package init(
        _ options: VerbsOptions, page: TargetPage, engine: EngineID, api: UnsafePointer<te_verbs_api>
    ) throws(TransferError) {
        let choice = unsafe try VerbsSelection.choose(api, options)
        let port = choice.port
        var device = ibv_device_attr()
        _ = unsafe api.pointee.query_device(choice.context, &device)
        let sizes = VerbsSizes(options, device)
        let memory: BufferMemory
        let handles: VerbsHandles
        // Keys with the highest bit set are the kernel's.
        let key = UInt32.random(in: 1..<1 << 31)
        do throws(TransferError) {
            memory = try BufferMemory(messageReceives: sizes.messageReceives)
        } catch {
            _ = unsafe api.pointee.close_device(choice.context)
            throw error
        }
        do throws(TransferError) {
            handles = unsafe try VerbsHandles(
                api, choice, options, memory: memory, datagramKey: key, sizes: sizes)
        } catch {
            memory.unmap()
            throw error
        }
        let own = unsafe Self.address(
            port, options, datagramQP: handles.datagrams?.pointee.qp_num ?? 0, key: key)
        unsafe state = .allocate(capacity: 1)
        unsafe state.initialize(
            to: DomainState(
                handles: handles, options: options, page: page, engine: engine, address: own,
                memory: memory))
        relaxedOrdering = options.relaxedOrdering
        self.port = port
        address = own.encoded
        maximumWriteBytes = unsafe state.pointee.longestWrite
        let gid = port.isEthernet ? port.choice.gid?.text ?? "?" : "lid \(port.lid)"
        attributes = DomainAttributes(
            provider: "verbs", fabric: port.isEthernet ? "roce" : "infiniband",
            name: "\(port.device) port \(port.port) \(gid)",
            megabitsPerSecond: options.megabitsPerSecond ?? max(1, port.megabitsPerSecond),
            maximumWriteBytes: maximumWriteBytes, countsMany: false)
    }

    deinit {
        close()
        unsafe state.deinitialize(count: 1)
        unsafe state.deallocate()
    }

    private static func address(
        _ port: VerbsPort, _ options: VerbsOptions, datagramQP: UInt32, key: UInt32
    ) -> NICAddress {
        var address = NICAddress()
        address.isEthernet = port.isEthernet
        let mtuBytes = min(port.mtuBytes, max(256, options.mtu ?? 4096))
        address.mtu = UInt8((1...5).last { 128 << $0 <= mtuBytes } ?? 1)
        address.lid = port.lid
        address.datagramQP = datagramQP
        address.datagramKey = key
        address.epoch = .random(in: 1 ... .max)
        if let gid = port.choice.gid?.bytes, gid.count == 16 {
            address.gid = unsafe (
                gid.span.bytes.integer(at: 0, as: UInt64.self), gid.span.bytes.integer(at: 8, as: UInt64.self)
            )
        }
        return address
    }

    // MARK: Memory

    public func register(_ region: LocalRegion) throws(TransferError) -> DomainKey {
        let access = access(of: region)
        return unsafe try register(region, marks: 0) { (api, pd) in
            unsafe api.pointee.reg_mr_iova2(
                pd, region.base, region.length, UInt64(UInt(bitPattern: region.base)), access)
        }
    }

    /// Registers device memory that a DMA-BUF file stands for; byte `offset` of the file is the region's first.
    /// - Throws: `unavailable` when the library, the kernel or the NIC cannot do that.
    package func registerDMABuf(
        _ region: LocalRegion, file: Int32, offset: UInt64
    ) throws(TransferError) -> DomainKey {
        guard let registerFile = unsafe state.pointee.handles.api.pointee.reg_dmabuf_mr else {
            throw TransferError(
                .unavailable, "this libibverbs has no ibv_reg_dmabuf_mr: rdma-core 34 or later is needed")
        }
        let access = access(of: region)
        do throws(TransferError) {
            return unsafe try register(region, marks: LocalKey.deviceMemory) { (_, pd) in
                unsafe registerFile(
                    pd, offset, region.length, UInt64(UInt(bitPattern: region.base)), file, Int32(access))
            }
        } catch {
            throw TransferError(
                .unavailable,
                "\(attributes.name) takes no DMA-BUF (\(error.message)); it needs Linux 5.12 and a driver that can"
            )
        }
    }

    private func access(of region: LocalRegion) -> UInt32 {
        var access = IBV_ACCESS_LOCAL_WRITE.rawValue
        if region.access.contains(.remoteWrite) { access |= IBV_ACCESS_REMOTE_WRITE.rawValue }
        if relaxedOrdering { access |= IBV_ACCESS_RELAXED_ORDERING.rawValue }
        return access
    }

    private func register(
        _ region: LocalRegion, marks: UInt64,
        _ body: (UnsafePointer<te_verbs_api>, UnsafeMutablePointer<ibv_pd>?) -> UnsafeMutablePointer<ibv_mr>?
    ) throws(TransferError) -> DomainKey {
        guard region.index < Limits.regions, unsafe regions[Int(region.index)] == nil else {
            throw TransferError(
                .invalidArgument, "region \(region.index) is registered on \(attributes.name) already")
        }
        let handles = unsafe state.pointee.handles
        guard let made = unsafe body(handles.api, handles.pd) else {
            throw VerbsError.failure(
                "registration of \(region.length) bytes", errno, nic: attributes.name,
                remedy: "raise the limit of locked memory (ulimit -l unlimited) or register less")
        }
        unsafe regions[Int(region.index)] = made
        return unsafe DomainKey(
            local: UInt64(made.pointee.lkey) | marks, remote: UInt64(made.pointee.rkey),
            base: UInt64(UInt(bitPattern: region.base)))
    }

    /// Ends a registration. When this returns the NIC refuses the key, so no peer's write can land any more.
    public func deregister(_ region: LocalRegion, key: DomainKey) {
        guard region.index < Limits.regions, let mr = unsafe regions[Int(region.index)] else { return }
        _ = unsafe state.pointee.handles.api.pointee.dereg_mr(mr)
        unsafe regions[Int(region.index)] = nil
    }

    // MARK: Peers

    /// Notes the peer and begins to connect, without waiting for it.
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
        guard let address = unsafe NICAddress(other.address.span.bytes),
            address.isEthernet == port.isEthernet, other.key <= UInt64(UInt32.max)
        else {
            throw TransferError(
                .malformedDescriptor, "\(remote.engine) has no address that \(attributes.name) can read")
        }
        guard let peer = unsafe state.pointee.findPeer(remote.engine.rawValue, address) else {
            throw TransferError(
                .limitReached, "\(attributes.name) has \(Tuning.peers) peers already; use more engines")
        }
        unsafe state.pointee.peers[peer].imports += 1
        // If that fails now, it is tried again by the first request, which then says why.
        _ = unsafe state.pointee.call(peer)
        return ImportedKey(remote: remote, nic: nic, peer: peer, maximumWriteBytes: maximumWriteBytes)
    }

    public func releaseImport(_ key: ImportedKey) {
        guard key.peer >= 0, unsafe key.peer < state.pointee.peerCount else { return }
        unsafe state.pointee.peers[key.peer].imports -= 1
    }

    // MARK: Work

    public func post(_ requests: UnsafeBufferPointer<WorkRequest>) -> PostResult {
        unsafe state.pointee.post(requests)
    }

    public func send(
        _ payload: UnsafeRawBufferPointer, to target: UnsafePointer<ImportedKey>, context: UInt64
    ) -> PostResult {
        unsafe state.pointee.send(payload, to: target.pointee.peer, context: context)
    }

    /// Breaks the connection to a peer's NIC, so that all in flight to it comes back.
    public func sever(_ target: UnsafePointer<ImportedKey>) {
        unsafe state.pointee.sever(target.pointee.peer)
    }

    /// Closes a connection of a peer's; the answer comes when the NIC is through with it, some 10 ms later.
    public func settle(connection: UInt64, from sender: EngineID) -> DeliveryLedger? {
        unsafe state.pointee.settle(connection, of: sender.rawValue)
    }

    public func poll(_ completions: UnsafeMutableBufferPointer<Completion>) -> Int {
        unsafe state.pointee.poll(completions)
    }

    public func prepareToSleep() -> Bool { unsafe state.pointee.prepareToSleep() }

    public var wakeDescriptor: Int32 { unsafe state.pointee.handles.waitFile?.descriptor ?? -1 }

    public func close() {
        guard !isClosed else { return }
        isClosed = true
        for index in unsafe 0..<regions.count {
            guard let mr = unsafe regions[index] else { continue }
            _ = unsafe state.pointee.handles.api.pointee.dereg_mr(mr)
            unsafe regions[index] = nil
        }
        unsafe state.pointee.close()
    }

    // MARK: Reports

    public func describe(_ status: WorkStatus, detail: Int32, peer: Int?) -> String? {
        unsafe VerbsFailure(status, detail, peer: state.pointee.name(ofPeer: peer), state.pointee.options)
            .words
    }

    /// How requests are handed to the NIC: by `calls` or by `lists`.
    public var posting: VerbsOptions.Posting {
        unsafe state.pointee.handles.usesCalls ? .calls : .lists
    }

    /// What the domain has been through. From the thread that polls.
    public var statistics: VerbsStatistics { unsafe state.pointee.statistics }

    /// Where the peer of a connection tells what it has taken, for tests that stand in for the peer.
    package func creditWord(_ connection: Int) -> UnsafeMutableRawPointer {
        unsafe state.pointee.memory.incomingCredit(connection)
    }

    /// Moves the clock that handshakes go by, for tests.
    package func advanceClock(by nanoseconds: UInt64) { unsafe state.pointee.clockSkew &+= nanoseconds }
}
