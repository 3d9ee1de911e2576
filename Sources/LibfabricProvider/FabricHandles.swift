import CLibfabric
import Glibc
import TransferCore

/// The open objects of libfabric, in the order in which they depend on each other.
struct FabricHandles {
    let info: UnsafeMutablePointer<fi_info>
    let fabric: UnsafeMutablePointer<fid_fabric>
    let domain: UnsafeMutablePointer<fid_domain>
    let completions: UnsafeMutablePointer<fid_cq>
    let addresses: UnsafeMutablePointer<fid_av>
    /// Where peers send to, and where most is sent from.
    let endpoint: UnsafeMutablePointer<fid_ep>
    /// Where things are sent from to peers that send large writes here; nobody sends to it. A pair of endpoints shares one TCP
    /// connection, which loses a fifth of its throughput while anything travels against the stream. Otherwise nil.
    let reverse: UnsafeMutablePointer<fid_ep>?
    let reverseCompletions: UnsafeMutablePointer<fid_cq>?
    /// Readable when there may be completions, or -1.
    let waitDescriptor: Int32
    /// Whether that joins the descriptors of two queues, and is ours.
    private let isJoined: Bool

    /// Opens everything, or closes again what was opened and says what failed.
    init(opening info: UnsafeMutablePointer<fi_info>, options: LibfabricOptions, nic: String)
        throws(TransferError)
    {
        var opened = Opened()
        do throws(TransferError) {
            try Self.open(info, options, nic, &opened)
        } catch {
            opened.close()
            throw error
        }
        guard let fabric = opened.fabric, let domain = opened.domain, let completions = opened.completions,
            let addresses = opened.addresses, let endpoint = opened.endpoint
        else {
            opened.close()
            throw FabricError.failure("opening", ENODEV, nic: nic)
        }
        self.info = info
        self.fabric = fabric
        self.domain = domain
        self.completions = completions
        self.addresses = addresses
        self.endpoint = endpoint
        reverse = opened.reverse
        reverseCompletions = opened.reverseCompletions
        waitDescriptor = opened.waitDescriptor
        isJoined = opened.isJoined
    }

    /// Objects that somebody else has opened: a stand-in's.
    init(
        info: UnsafeMutablePointer<fi_info>, fabric: UnsafeMutablePointer<fid_fabric>,
        domain: UnsafeMutablePointer<fid_domain>, completions: UnsafeMutablePointer<fid_cq>,
        addresses: UnsafeMutablePointer<fid_av>, endpoint: UnsafeMutablePointer<fid_ep>
    ) {
        self.info = info
        self.fabric = fabric
        self.domain = domain
        self.completions = completions
        self.addresses = addresses
        self.endpoint = endpoint
        reverse = nil
        reverseCompletions = nil
        waitDescriptor = -1
        isJoined = false
    }

    private struct Opened {
        var fabric: UnsafeMutablePointer<fid_fabric>?
        var domain: UnsafeMutablePointer<fid_domain>?
        var completions: UnsafeMutablePointer<fid_cq>?
        var addresses: UnsafeMutablePointer<fid_av>?
        var endpoint: UnsafeMutablePointer<fid_ep>?
        var reverse: UnsafeMutablePointer<fid_ep>?
        var reverseCompletions: UnsafeMutablePointer<fid_cq>?
        var waitDescriptor: Int32 = -1
        var isJoined = false

        func close() {
            if isJoined { _ = Glibc.close(waitDescriptor) }
            FabricHandles.close(reverse)
            FabricHandles.close(endpoint)
            FabricHandles.close(addresses)
            FabricHandles.close(reverseCompletions)
            FabricHandles.close(completions)
            FabricHandles.close(domain)
            FabricHandles.close(fabric)
        }
    }

    private static func open(
        _ info: UnsafeMutablePointer<fi_info>, _ options: LibfabricOptions, _ nic: String,
        _ opened: inout Opened
    ) throws(TransferError) {
        func check(_ result: Int32, _ call: String) throws(TransferError) {
            if result != 0 { throw FabricError.failure(call, result, nic: nic) }
        }
        try check(te_fi_fabric(info.pointee.fabric_attr, &opened.fabric), "fi_fabric")
        guard let fabric = opened.fabric else { return }
        try check(fi_domain(fabric, info, &opened.domain, nil), "fi_domain")
        guard let domain = opened.domain else { return }

        var vector = fi_av_attr()
        vector.type = FI_AV_UNSPEC
        vector.count = 64
        try check(fi_av_open(domain, &vector, &opened.addresses, nil), "fi_av_open")
        opened.waitDescriptor = try openQueue(domain, options, nic, &opened.completions)
        try check(fi_endpoint(domain, info, &opened.endpoint, nil), "fi_endpoint")
        try enable(opened.endpoint, opened.completions, opened.addresses, options, nic)
        guard options.hasReverse else { return }
        // A queue of its own is looked at only when there is something in it.
        let waitDescriptor = try openQueue(domain, options, nic, &opened.reverseCompletions)
        opened.waitDescriptor = te_join_descriptors(opened.waitDescriptor, waitDescriptor)
        opened.isJoined = opened.waitDescriptor >= 0
        try check(fi_endpoint(domain, info, &opened.reverse, nil), "fi_endpoint")
        try enable(opened.reverse, opened.reverseCompletions, opened.addresses, options, nic)
    }

    /// Opens a completion queue; its descriptor, or -1 when it has none.
    private static func openQueue(
        _ domain: UnsafeMutablePointer<fid_domain>, _ options: LibfabricOptions, _ nic: String,
        _ result: inout UnsafeMutablePointer<fid_cq>?
    ) throws(TransferError) -> Int32 {
        var queue = fi_cq_attr()
        queue.format = FI_CQ_FORMAT_DATA
        // EFA's own default matches its device queues.
        queue.size = options.isEFA ? 0 : 8192
        queue.wait_obj = options.isEFA || !options.mayWait ? FI_WAIT_NONE : FI_WAIT_FD
        if fi_cq_open(domain, &queue, &result, nil) != 0 {
            queue.wait_obj = FI_WAIT_NONE
            let error = fi_cq_open(domain, &queue, &result, nil)
            if error != 0 { throw FabricError.failure("fi_cq_open", error, nic: nic) }
        }
        guard let result, queue.wait_obj == FI_WAIT_FD else { return -1 }
        var descriptor: Int32 = -1
        return fi_control(identity(result), Int32(FI_GETWAIT), &descriptor) == 0 ? descriptor : -1
    }

    private static func enable(
        _ endpoint: UnsafeMutablePointer<fid_ep>?, _ completions: UnsafeMutablePointer<fid_cq>?,
        _ addresses: UnsafeMutablePointer<fid_av>?, _ options: LibfabricOptions, _ nic: String
    ) throws(TransferError) {
        func check(_ result: Int32, _ call: String) throws(TransferError) {
            if result != 0 { throw FabricError.failure(call, result, nic: nic) }
        }
        guard let endpoint, let completions, let addresses else { return }
        try check(fi_ep_bind(endpoint, identity(completions), FI_TRANSMIT | FI_RECV), "fi_ep_bind")
        try check(fi_ep_bind(endpoint, identity(addresses), 0), "fi_ep_bind")
        if options.isEFA { setOptionsForEFA(endpoint) }
        try check(fi_enable(endpoint), "fi_enable")
    }

    /// All traffic goes through the NIC, also on one host, and the provider makes no CUDA calls behind the
    /// caller's back. Libraries that do not know an option do not have the feature.
    private static func setOptionsForEFA(_ endpoint: UnsafeMutablePointer<fid_ep>) {
        var no = false
        for option in [TE_FI_OPT_SHARED_MEMORY_PERMITTED, TE_FI_OPT_CUDA_API_PERMITTED] {
            _ = fi_setopt(
                identity(endpoint), Int32(FI_OPT_ENDPOINT), Int32(option), &no, MemoryLayout<Bool>.size)
        }
    }

    /// Every object of libfabric begins with its identity.
    static func identity<T>(_ object: UnsafeMutablePointer<T>) -> UnsafeMutablePointer<fid> {
        UnsafeMutableRawPointer(object).assumingMemoryBound(to: fid.self)
    }

    /// Closes one object.
    static func close<T>(_ object: UnsafeMutablePointer<T>?) {
        if let object { _ = fi_close(identity(object)) }
    }

    /// Closes everything that `init` opened; memory regions have been closed before.
    func close() {
        Opened(
            fabric: fabric, domain: domain, completions: completions, addresses: addresses,
            endpoint: endpoint, reverse: reverse, reverseCompletions: reverseCompletions,
            waitDescriptor: waitDescriptor, isJoined: isJoined
        ).close()
        te_fi_freeinfo(info)
    }

    /// Whether the thread may sleep on `waitDescriptor`.
    func tryWait() -> Bool {
        func isEmpty(_ queue: UnsafeMutablePointer<fid_cq>) -> Bool {
            var object: UnsafeMutablePointer<fid>? = Self.identity(queue)
            return fi_trywait(fabric, &object, 1) == 0
        }
        return isEmpty(completions) && reverseCompletions.map(isEmpty) ?? true
    }

    /// The address that peers insert.
    func name(nic: String) throws(TransferError) -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: 256)
        var length = bytes.count
        let result = fi_getname(Self.identity(endpoint), &bytes, &length)
        guard result == 0 else { throw FabricError.failure("fi_getname", result, nic: nic) }
        guard length <= Limits.addressBytes else {
            throw TransferError(
                .limitReached,
                "the address of \(nic) has \(length) bytes, the limit is \(Limits.addressBytes)")
        }
        return Array(bytes.prefix(length))
    }
}
