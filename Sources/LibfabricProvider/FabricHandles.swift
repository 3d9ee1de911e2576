import CLibfabric
import TransferCore

/// The open objects of libfabric, in the order in which they depend on each other.
struct FabricHandles {
    let info: UnsafeMutablePointer<fi_info>
    let fabric: UnsafeMutablePointer<fid_fabric>
    let domain: UnsafeMutablePointer<fid_domain>
    let completions: UnsafeMutablePointer<fid_cq>
    let addresses: UnsafeMutablePointer<fid_av>
    let endpoint: UnsafeMutablePointer<fid_ep>
    /// Readable when there may be completions, or -1.
    let waitDescriptor: Int32

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
        waitDescriptor = opened.waitDescriptor
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
        waitDescriptor = -1
    }

    private struct Opened {
        var fabric: UnsafeMutablePointer<fid_fabric>?
        var domain: UnsafeMutablePointer<fid_domain>?
        var completions: UnsafeMutablePointer<fid_cq>?
        var addresses: UnsafeMutablePointer<fid_av>?
        var endpoint: UnsafeMutablePointer<fid_ep>?
        var waitDescriptor: Int32 = -1

        func close() {
            FabricHandles.close(endpoint)
            FabricHandles.close(addresses)
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

        var queue = fi_cq_attr()
        queue.format = FI_CQ_FORMAT_DATA
        // EFA's own default matches its device queues.
        queue.size = options.isEFA ? 0 : 8192
        queue.wait_obj = options.isEFA || !options.mayWait ? FI_WAIT_NONE : FI_WAIT_FD
        if fi_cq_open(domain, &queue, &opened.completions, nil) != 0 {
            queue.wait_obj = FI_WAIT_NONE
            try check(fi_cq_open(domain, &queue, &opened.completions, nil), "fi_cq_open")
        }
        guard let completions = opened.completions else { return }
        if queue.wait_obj == FI_WAIT_FD {
            var descriptor: Int32 = -1
            if fi_control(identity(completions), Int32(FI_GETWAIT), &descriptor) == 0 {
                opened.waitDescriptor = descriptor
            }
        }
        var vector = fi_av_attr()
        vector.type = FI_AV_UNSPEC
        vector.count = 64
        try check(fi_av_open(domain, &vector, &opened.addresses, nil), "fi_av_open")
        try check(fi_endpoint(domain, info, &opened.endpoint, nil), "fi_endpoint")
        guard let endpoint = opened.endpoint, let addresses = opened.addresses else { return }
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
        Self.close(endpoint)
        Self.close(addresses)
        Self.close(completions)
        Self.close(domain)
        Self.close(fabric)
        te_fi_freeinfo(info)
    }

    /// Whether the thread may sleep on `waitDescriptor`.
    func tryWait() -> Bool {
        var object: UnsafeMutablePointer<fid>? = Self.identity(completions)
        return fi_trywait(fabric, &object, 1) == 0
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
