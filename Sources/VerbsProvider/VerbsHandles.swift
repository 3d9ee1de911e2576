internal import CVerbs
internal import Glibc
internal import Platform
internal import TransferCore

/// The open objects of libibverbs that live as long as the domain, in the order in which they depend on each other.
@safe struct VerbsHandles {
    let api: UnsafePointer<te_verbs_api>
    let context: UnsafeMutablePointer<ibv_context>
    let port: VerbsPort
    let nic: String
    private(set) var pd: UnsafeMutablePointer<ibv_pd>?
    private(set) var channel: UnsafeMutablePointer<ibv_comp_channel>?
    private(set) var cq: UnsafeMutablePointer<ibv_cq>?
    private(set) var immediateReceives: UnsafeMutablePointer<ibv_srq>?
    private(set) var messageReceives: UnsafeMutablePointer<ibv_srq>?
    private(set) var datagrams: UnsafeMutablePointer<ibv_qp>?
    private(set) var buffers: UnsafeMutablePointer<ibv_mr>?
    private(set) var credits: UnsafeMutablePointer<ibv_mr>?
    /// Whether queue pairs take requests by calls.
    private(set) var usesCalls = false
    /// Readable when there is something to poll, and the timer among its sources.
    private(set) var waitFile: WaitFile?
    let sizes: VerbsSizes

    /// Opens everything, or closes again what was opened and says what failed.
    init(
        _ api: UnsafePointer<te_verbs_api>, _ choice: VerbsSelection.Choice, _ options: VerbsOptions,
        memory: BufferMemory, datagramKey: UInt32, sizes: VerbsSizes
    ) throws(TransferError) {
        unsafe self.api = api
        unsafe context = choice.context
        port = choice.port
        nic = "\(choice.port.device) port \(choice.port.port)"
        self.sizes = sizes
        do throws(TransferError) {
            try openMemory(memory)
            try openQueues()
            try choosePosting(options.posting)
            try openDatagrams(key: datagramKey)
        } catch {
            close()
            throw error
        }
    }

    private func check<T>(
        _ call: String, remedy: String = "", _ object: UnsafeMutablePointer<T>?
    ) throws(TransferError) -> UnsafeMutablePointer<T> {
        let error = errno
        guard let object = unsafe object else {
            throw VerbsError.failure(call, error, nic: nic, remedy: remedy)
        }
        return unsafe object
    }

    private mutating func openMemory(_ memory: BufferMemory) throws(TransferError) {
        let pd = unsafe try check("ibv_alloc_pd", api.pointee.alloc_pd(context))
        unsafe self.pd = pd
        let remedy = "raise the limit of locked memory (ulimit -l unlimited)"
        let local = UInt32(IBV_ACCESS_LOCAL_WRITE.rawValue)
        unsafe buffers = try check(
            "ibv_reg_mr of \(memory.byteCount) bytes", remedy: remedy,
            api.pointee.reg_mr_iova2(
                pd, memory.base, memory.byteCount, UInt64(UInt(bitPattern: memory.base)), local))
        // Peers write their credits here, the newest last: not with relaxed ordering.
        unsafe credits = try check(
            "ibv_reg_mr of credits", remedy: remedy,
            api.pointee.reg_mr_iova2(
                pd, memory.credits, BufferMemory.creditBytes, UInt64(UInt(bitPattern: memory.credits)),
                local | UInt32(IBV_ACCESS_REMOTE_WRITE.rawValue)))
    }

    private mutating func openQueues() throws(TransferError) {
        let unblocked = unsafe te_verbs_unblock(context.pointee.async_fd)
        guard unblocked == 0 else { throw VerbsError.failure("fcntl", unblocked, nic: nic) }
        let channel = unsafe try check("ibv_create_comp_channel", api.pointee.create_comp_channel(context))
        unsafe self.channel = channel
        let file = unsafe channel.pointee.fd
        guard te_verbs_unblock(file) == 0 else { throw VerbsError.failure("fcntl", errno, nic: nic) }
        waitFile = try WaitFile([file, unsafe context.pointee.async_fd])
        unsafe cq = try check(
            "ibv_create_cq of \(sizes.completions)",
            api.pointee.create_cq(context, Int32(sizes.completions), nil, channel, 0))
        unsafe immediateReceives = try createReceives(sizes.immediateReceives)
        unsafe messageReceives = try createReceives(sizes.messageReceives)
    }

    private mutating func choosePosting(_ posting: VerbsOptions.Posting) throws(TransferError) {
        guard posting != .lists, let pd = unsafe pd, let cq = unsafe cq else { return }
        usesCalls = unsafe QueuePairs.canTakeCalls(api, pd, cq)
        guard posting == .calls, !usesCalls else { return }
        throw TransferError(
            .unavailable,
            "\(nic) takes no requests by calls (ibv_wr_*); leave VerbsOptions.posting automatic")
    }

    private func createReceives(_ count: Int) throws(TransferError) -> UnsafeMutablePointer<ibv_srq> {
        var attributes = unsafe ibv_srq_init_attr()
        unsafe attributes.attr.max_wr = UInt32(count)
        unsafe attributes.attr.max_sge = 1
        return unsafe try check("ibv_create_srq of \(count)", api.pointee.create_srq(pd, &attributes))
    }

    /// The queue pair for handshakes, ready to send.
    private mutating func openDatagrams(key: UInt32) throws(TransferError) {
        var initial = unsafe ibv_qp_init_attr()
        unsafe initial.send_cq = cq
        unsafe initial.recv_cq = cq
        unsafe initial.qp_type = IBV_QPT_UD
        unsafe initial.cap.max_send_wr = UInt32(Tuning.datagramSends)
        unsafe initial.cap.max_recv_wr = UInt32(Tuning.datagramReceives)
        unsafe initial.cap.max_send_sge = 1
        unsafe initial.cap.max_recv_sge = 1
        let qp = unsafe try check("ibv_create_qp", api.pointee.create_qp(pd, &initial))
        unsafe datagrams = qp
        var attributes = ibv_qp_attr()
        attributes.pkey_index = 0
        attributes.port_num = port.port
        attributes.qkey = key
        let steps = [
            (IBV_QPS_INIT, [IBV_QP_STATE, IBV_QP_PKEY_INDEX, IBV_QP_PORT, IBV_QP_QKEY]),
            (IBV_QPS_RTR, [IBV_QP_STATE]),
            (IBV_QPS_RTS, [IBV_QP_STATE, IBV_QP_SQ_PSN]),
        ]
        for (state, fields) in steps {
            attributes.qp_state = state
            let error = unsafe modify(qp, &attributes, fields)
            guard error == 0 else {
                throw VerbsError.failure("ibv_modify_qp of the handshake's", error, nic: nic)
            }
        }
    }

    /// 0 or an error number.
    func modify(
        _ qp: UnsafeMutablePointer<ibv_qp>, _ attributes: inout ibv_qp_attr, _ fields: [ibv_qp_attr_mask]
    ) -> Int32 {
        unsafe api.pointee.modify_qp(
            qp, &attributes, Int32(bitPattern: fields.reduce(0) { $0 | $1.rawValue }))
    }

    /// Closes what was opened, last first. The queue pairs of connections are gone.
    mutating func close() {
        if let qp = unsafe datagrams { _ = unsafe api.pointee.destroy_qp(qp) }
        if let srq = unsafe immediateReceives { _ = unsafe api.pointee.destroy_srq(srq) }
        if let srq = unsafe messageReceives { _ = unsafe api.pointee.destroy_srq(srq) }
        if let cq = unsafe cq { _ = unsafe api.pointee.destroy_cq(cq) }
        waitFile?.close()
        if let channel = unsafe channel { _ = unsafe api.pointee.destroy_comp_channel(channel) }
        if let mr = unsafe credits { _ = unsafe api.pointee.dereg_mr(mr) }
        if let mr = unsafe buffers { _ = unsafe api.pointee.dereg_mr(mr) }
        if let pd = unsafe pd { _ = unsafe api.pointee.dealloc_pd(pd) }
        _ = unsafe api.pointee.close_device(context)
    }
}

/// How long the queues are, so that none of them can overrun.
struct VerbsSizes {
    /// Requests in flight to one peer, a power of two; and to all.
    var requestsPerPeer: UInt32
    var requests: Int
    var immediateReceives: Int
    var messageReceives: Int
    /// Everything that can be in flight at once has a place in the completion queue, since each ends in at most one entry
    /// there: requests, receives, datagrams.
    var completions: Int

    init(_ options: VerbsOptions, _ device: ibv_device_attr) {
        func limited(_ value: Int, _ range: ClosedRange<Int>, _ device: Int32) -> Int {
            let value = min(max(value, range.lowerBound), range.upperBound)
            return device > 0 ? min(value, Int(device)) : value
        }
        let perPeer = limited(options.requestsPerPeer, 16...16384, device.max_qp_wr)
        requestsPerPeer = 1 << UInt32(UInt32(perPeer).bitWidth - 1 - UInt32(perPeer).leadingZeroBitCount)
        requests = limited(options.requests, 64...262_144, 0)
        immediateReceives = limited(options.immediateReceives, 256...262_144, device.max_srq_wr)
        messageReceives = limited(options.messageReceives, 16...16384, device.max_srq_wr)
        let datagrams = Tuning.datagramReceives + Tuning.datagramSends + Tuning.creditReserve
        completions = requests + immediateReceives + messageReceives + datagrams
        let most = device.max_cqe > 0 ? Int(device.max_cqe) : completions
        if completions > most {
            // A small device: messages keep their place, requests and immediates share the rest.
            let left = max(512, most - messageReceives - datagrams)
            requests = min(requests, left / 2)
            immediateReceives = min(immediateReceives, left - requests)
            completions = requests + immediateReceives + messageReceives + datagrams
        }
    }
}

/// The domain's own memory that the NIC reads and writes: buffers for datagrams and messages, credits.
@safe struct BufferMemory {
    let base: UnsafeMutableRawPointer
    let byteCount: Int
    /// Written by peers: a 64-bit word for each connection.
    let credits: UnsafeMutableRawPointer
    static let creditBytes = Tuning.connections * 8

    private let messageReceives: Int
    /// A datagram arrives behind 40 bytes for its network header.
    static let headerBytes = 40
    private static let datagramStride = 192
    private static let messageStride = Limits.packetBytes + 64
    private static let datagramBytes =
        (Tuning.datagramSends + Tuning.datagramReceives) * datagramStride

    init(messageReceives: Int) throws(TransferError) {
        self.messageReceives = messageReceives
        byteCount =
            Self.datagramBytes + (Tuning.messageSends + messageReceives) * Self.messageStride
            + Self.creditBytes
        let flags = MAP_PRIVATE | MAP_ANONYMOUS
        let memory = unsafe mmap(nil, byteCount + Self.creditBytes, PROT_READ | PROT_WRITE, flags, -1, 0)
        guard let memory = unsafe memory, unsafe memory != MAP_FAILED else {
            throw TransferError(.limitReached, "no memory for \(byteCount) bytes of buffers")
        }
        unsafe credits = memory
        unsafe base = memory + Self.creditBytes
    }

    func unmap() { _ = unsafe munmap(credits, byteCount + Self.creditBytes) }

    func datagramSend(_ index: Int) -> UnsafeMutableRawPointer {
        precondition((0..<Tuning.datagramSends).contains(index))
        return unsafe base + index * Self.datagramStride
    }

    func datagramReceive(_ index: Int) -> UnsafeMutableRawPointer {
        precondition((0..<Tuning.datagramReceives).contains(index))
        return unsafe base + (Tuning.datagramSends + index) * Self.datagramStride
    }

    func messageSend(_ index: Int) -> UnsafeMutableRawPointer {
        precondition((0..<Tuning.messageSends).contains(index))
        return unsafe base + Self.datagramBytes + index * Self.messageStride
    }

    func messageReceive(_ index: Int) -> UnsafeMutableRawPointer {
        precondition((0..<messageReceives).contains(index))
        return unsafe base + Self.datagramBytes + (Tuning.messageSends + index) * Self.messageStride
    }

    /// What is told to the peer of a connection.
    func outgoingCredit(_ connection: Int) -> UnsafeMutableRawPointer {
        precondition((0..<Tuning.connections).contains(connection))
        return unsafe base + (byteCount - Self.creditBytes + connection * 8)
    }

    /// What the peer of a connection tells.
    func incomingCredit(_ connection: Int) -> UnsafeMutableRawPointer {
        precondition((0..<Tuning.connections).contains(connection))
        return unsafe credits + connection * 8
    }
}
