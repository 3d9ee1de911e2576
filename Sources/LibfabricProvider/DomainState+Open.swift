import CLibfabric
import CPlatform
import Glibc
import TransferCore

extension DomainState {
    /// Allocates everything that the data path will ever need and posts the receive buffers.
    init(
        handles: FabricHandles, options: LibfabricOptions, page: TargetPage, engine: EngineID,
        writeFlags: UInt64, countsWrites: Bool, address: [UInt8], nic: String
    ) throws(TransferError) {
        self.handles = handles
        self.page = page
        self.engine = engine.rawValue
        self.writeFlags = writeFlags
        self.countsWrites = countsWrites
        frames = options.frames
        isHardware = options.isHardware
        isTCP = options.isTCP
        mayHaveNewConnections = isTCP
        frameBytes = options.frames ? Tuning.frameBytes : Tuning.messageFrameBytes
        let overhead = FrameHeader.byteCount + FrameHeader.helloBytes + FrameRecord.byteCount
        threshold = min(max(0, options.frameThreshold), frameBytes - overhead)
        // libfabric's shm (1.17) never completes a write without data: a record carries the immediate instead.
        frameLimit = options.frames ? threshold : options.provider == "shm" ? 0 : -1
        postsPerPoll = options.isEFA ? Tuning.efaPostsPerPoll : Int.max
        transmitSlots = handles.info.pointee.tx_attr.pointee.size
        // SIZE_MAX, which says that there is no limit, arrives in Swift as -1.
        let longest = handles.info.pointee.ep_attr.pointee.max_msg_size
        maximumWriteBytes = min(
            longest > 0 ? UInt64(longest) : 1 << 40, options.isTCP ? Tuning.tcpWriteBytes : .max)

        arenaBytes =
            (Tuning.sendFrames + Tuning.receiveFrames) * frameBytes + Tuning.ackFrames * Tuning.ackBytes
        let runBytes = Tuning.recordsPerFrame * MemoryLayout<ContextRun>.stride
        let failureBytes = Tuning.recordsPerFrame * FrameFailure.byteCount
        let tagBytes = Tuning.recordsPerFrame * MemoryLayout<RequestTag>.stride
        listBytes = Tuning.sendFrames * (runBytes + failureBytes + tagBytes)
        arena = try Self.map(arenaBytes)
        lists = try Self.map(listBytes)
        rings = try Self.map(Self.ringsBytes).bindMemory(
            to: UInt64.self, capacity: Self.ringsBytes / MemoryLayout<UInt64>.stride)
        ends = Self.allocate(Tuning.writes, 0)
        writers = Self.allocate(Tuning.peers, 0)

        ownAddress = .allocate(byteCount: Limits.addressBytes, alignment: 16)
        ownAddress.initializeMemory(as: UInt8.self, repeating: 0, count: Limits.addressBytes)
        for (offset, byte) in address.enumerated() {
            ownAddress.storeBytes(of: byte, toByteOffset: offset, as: UInt8.self)
        }
        ownAddressLength = address.count
        identity = address.withUnsafeBytes(Self.identity)
        slots = .allocate(capacity: Int(Self.slotCount))
        sendFrames = .allocate(capacity: Tuning.sendFrames)
        peers = .allocate(capacity: Tuning.peers)
        peerAddresses = .allocate(byteCount: Tuning.peers * Limits.addressBytes, alignment: 16)
        listed = Self.allocate(Tuning.peers, 0)
        entries = Self.allocate(Self.entryCount, fi_cq_data_entry())
        errorEntry = Self.allocate(1, te_fi_error_entry())
        template = Self.allocate(1, WriteTemplate())
        output = .allocate(capacity: 1)
        output.deallocate()  // replaced by the caller's in every poll

        fillPools(runBytes: runBytes, failureBytes: failureBytes, tagBytes: tagBytes)
        linkTemplate()
        do throws(TransferError) {
            try registerArena(nic: nic)
        } catch {
            deallocate()
            throw error
        }
        postReceives()
    }

    private static func allocate<T>(_ count: Int, _ value: T) -> UnsafeMutablePointer<T> {
        let place = UnsafeMutablePointer<T>.allocate(capacity: count)
        place.initialize(repeating: value, count: count)
        return place
    }

    private static func map(_ bytes: Int) throws(TransferError) -> UnsafeMutableRawPointer {
        let place = mmap(nil, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        guard let place, place != MAP_FAILED else {
            throw TransferError(
                .limitReached,
                "no memory for \(bytes) bytes of frame buffers: \(String(cString: strerror(errno)))")
        }
        return place
    }

    private mutating func fillPools(runBytes: Int, failureBytes: Int, tagBytes: Int) {
        for number in (0..<Self.slotCount).reversed() {
            (slots + Int(number)).initialize(
                to: OperationSlot(
                    scratch: fi_context2(), context: 0, target: nil, offset: 0, immediate: 0, eighths: 0,
                    peer: 0,
                    next: -1, epoch: 0))
            if number < Self.firstFrame {
                pushWrite(number)
            } else if number < Self.firstAck {
                let frame = Int(number - Self.firstFrame)
                let list = lists + frame * (runBytes + failureBytes + tagBytes)
                (sendFrames + frame).initialize(
                    to: SendFrame(
                        bytes: arena + frame * frameBytes,
                        runs: list.bindMemory(to: ContextRun.self, capacity: Tuning.recordsPerFrame),
                        failures: (list + runBytes).bindMemory(
                            to: FrameFailure.self, capacity: Tuning.recordsPerFrame),
                        tags: (list + runBytes + failureBytes).bindMemory(
                            to: RequestTag.self, capacity: Tuning.recordsPerFrame)))
                freeSendFrame(Int32(frame))
            } else if number < Self.firstReceive {
                freeAckBuffer(number - Self.firstAck)
            } else {
                slots[Int(number)].next = unposted
                unposted = number
            }
        }
    }

    /// The write template's parts refer to each other once and for all.
    private func linkTemplate() {
        let raw = UnsafeMutableRawPointer(template)
        func field<T, F>(_ path: KeyPath<T, F>) -> UnsafeMutableRawPointer {
            raw + (MemoryLayout<T>.offset(of: path) ?? 0)
        }
        let source = field(\WriteTemplate.source).assumingMemoryBound(to: iovec.self)
        let descriptor = field(\WriteTemplate.descriptor).assumingMemoryBound(
            to: UnsafeMutableRawPointer?.self)
        let target = field(\WriteTemplate.target).assumingMemoryBound(to: fi_rma_iov.self)
        template.pointee.message.msg_iov = UnsafePointer(source)
        template.pointee.message.desc = descriptor
        template.pointee.message.iov_count = 1
        template.pointee.message.rma_iov = UnsafePointer(target)
        template.pointee.message.rma_iov_count = 1
    }

    /// Frames are registered where the NIC insists on local keys.
    private mutating func registerArena(nic: String) throws(TransferError) {
        guard handles.info.pointee.domain_attr.pointee.mr_mode & FI_MR_LOCAL != 0 else { return }
        var region: UnsafeMutablePointer<fid_mr>?
        let result = fi_mr_reg(
            handles.domain, arena, arenaBytes, FI_SEND | FI_RECV, 0, 0, 0, &region, nil)
        guard result == 0, let region else {
            throw FabricError.failure(
                "fi_mr_reg of \(arenaBytes) bytes for frames", result, nic: nic,
                remedy: "raise the limit of locked memory (ulimit -l unlimited)")
        }
        arenaRegion = region
        if handles.info.pointee.domain_attr.pointee.mr_mode & FI_MR_ENDPOINT != 0 {
            _ = fi_mr_bind(region, FabricHandles.identity(handles.endpoint), 0)
            _ = fi_mr_enable(region)
        }
        arenaDescriptor = fi_mr_desc(region)
    }

    /// Gives all memory back, after the endpoint has been closed.
    func deallocate() {
        ownAddress.deallocate()
        ends.deallocate()
        writers.deallocate()
        slots.deallocate()
        sendFrames.deallocate()
        peers.deallocate()
        peerAddresses.deallocate()
        listed.deallocate()
        entries.deallocate()
        errorEntry.deallocate()
        template.deallocate()
        _ = munmap(arena, arenaBytes)
        _ = munmap(lists, listBytes)
        _ = munmap(rings, Self.ringsBytes)
    }
}
