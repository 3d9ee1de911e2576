import CLibfabric
import Glibc
import TransferCore

/// The open objects of libfabric, in the order in which they depend on each other.
struct FabricHandles {
    let info: UnsafeMutablePointer<fi_info>
    let fabric: UnsafeMutablePointer<fid_fabric>
    let domain: UnsafeMutablePointer<fid_domain>
    private(set) var completions: UnsafeMutablePointer<fid_cq>
    let addresses: UnsafeMutablePointer<fid_av>
    /// Where peers send to, and where most is sent from.
    private(set) var endpoint: UnsafeMutablePointer<fid_ep>
    /// Where things are sent from to peers that send large writes here; nobody sends to it. A pair of endpoints shares one TCP
    /// connection, which loses a fifth of its throughput while anything travels against the stream. Otherwise nil.
    private(set) var reverse: UnsafeMutablePointer<fid_ep>?
    private(set) var reverseCompletions: UnsafeMutablePointer<fid_cq>?
    /// Readable when there may be completions, or -1.
    private(set) var waitDescriptor: Int32
    /// Whether that joins the descriptors of two queues, and is ours.
    private var isJoined: Bool
    private let options: LibfabricOptions
    private let nic: String
    /// Whether the queues and endpoints are open.
    private(set) var isOpen = true

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
        self.options = options
        self.nic = nic
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
        addresses: UnsafeMutablePointer<fid_av>, endpoint: UnsafeMutablePointer<fid_ep>,
        reverse: UnsafeMutablePointer<fid_ep>? = nil, reverseCompletions: UnsafeMutablePointer<fid_cq>? = nil
    ) {
        self.info = info
        options = LibfabricOptions()
        nic = ""
        self.fabric = fabric
        self.domain = domain
        self.completions = completions
        self.addresses = addresses
        self.endpoint = endpoint
        self.reverse = reverse
        self.reverseCompletions = reverseCompletions
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

        /// Closes queues and endpoints. Returns whether libfabric has let go of all of them.
        @discardableResult func closeEndpoints() -> Bool {
            if isJoined { _ = Glibc.close(waitDescriptor) }
            let results = [
                FabricHandles.close(reverse), FabricHandles.close(endpoint),
                FabricHandles.close(reverseCompletions), FabricHandles.close(completions),
            ]
            return results.allSatisfy { $0 == 0 }
        }

        func close() {
            closeEndpoints()
            FabricHandles.close(addresses)
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
        try openEndpoints(info, options, nic, &opened)
    }

    /// Opens queues and endpoints, the one that peers send to where `here` says.
    private static func openEndpoints(
        _ info: UnsafeMutablePointer<fi_info>, _ options: LibfabricOptions, _ nic: String,
        at here: UnsafeMutablePointer<fi_info>? = nil, _ opened: inout Opened
    ) throws(TransferError) {
        func check(_ result: Int32, _ call: String) throws(TransferError) {
            if result != 0 { throw FabricError.failure(call, result, nic: nic) }
        }
        guard let domain = opened.domain else { return }
        opened.waitDescriptor = try openQueue(domain, options, nic, &opened.completions)
        try check(fi_endpoint(domain, here ?? info, &opened.endpoint, nil), "fi_endpoint")
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

    /// Closes one object. Returns libfabric's verdict.
    @discardableResult static func close<T>(_ object: UnsafeMutablePointer<T>?) -> Int32 {
        object.map { fi_close(identity($0)) } ?? 0
    }

    private var opened: Opened {
        guard isOpen else { return Opened(fabric: fabric, domain: domain, addresses: addresses) }
        return Opened(
            fabric: fabric, domain: domain, completions: completions, addresses: addresses,
            endpoint: endpoint, reverse: reverse, reverseCompletions: reverseCompletions,
            waitDescriptor: waitDescriptor, isJoined: isJoined)
    }

    /// Closes everything that `init` opened; memory regions have been closed before.
    func close() {
        opened.close()
        te_fi_freeinfo(info)
    }

    /// Closes the queues and endpoints, and nothing else: addresses and registrations stay. Whether that has worked.
    mutating func closeEndpoints() -> Bool {
        guard isOpen else { return true }
        isOpen = !opened.closeEndpoints()
        (waitDescriptor, isJoined, reverse, reverseCompletions) = (-1, false, nil, nil)
        return !isOpen
    }

    /// Opens the queues and endpoints again, at the address that they had. Returns an error number.
    mutating func openEndpoints(at address: UnsafeRawBufferPointer) -> Int32 {
        guard !isOpen, let here = te_fi_dupinfo(info) else { return ENOMEM }
        defer { te_fi_freeinfo(here) }
        guard let source = malloc(max(1, address.count)), let bytes = address.baseAddress else {
            return ENOMEM
        }
        source.copyMemory(from: bytes, byteCount: address.count)
        free(here.pointee.src_addr)
        here.pointee.src_addr = source
        here.pointee.src_addrlen = address.count
        var fresh = Opened(fabric: fabric, domain: domain, addresses: addresses)
        do throws(TransferError) {
            try Self.openEndpoints(info, options, nic, at: here, &fresh)
            guard let queue = fresh.completions, let receiver = fresh.endpoint else { return ENODEV }
            (completions, endpoint) = (queue, receiver)
            (reverse, reverseCompletions) = (fresh.reverse, fresh.reverseCompletions)
            (waitDescriptor, isJoined) = (fresh.waitDescriptor, fresh.isJoined)
            guard try name(nic: nic).elementsEqual(address) else {
                fresh.closeEndpoints()
                return EADDRNOTAVAIL
            }
            isOpen = true
            return 0
        } catch {
            fresh.closeEndpoints()
            return EADDRNOTAVAIL
        }
    }

    /// Whether the thread may sleep on `waitDescriptor`.
    func tryWait() -> Bool {
        guard isOpen else { return false }
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
