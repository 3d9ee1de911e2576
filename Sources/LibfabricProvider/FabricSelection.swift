import CLibfabric
import CPlatform
import Glibc
import TransferCore

/// Finding the NIC that the options mean.
enum FabricSelection {
    /// A NIC, as libfabric describes it. The caller frees `info`.
    struct Choice {
        var info: UnsafeMutablePointer<fi_info>
        /// Whether a write's completion has to be asked for with FI_DELIVERY_COMPLETE.
        var deliveryComplete: Bool
        /// Whether sends stay behind writes to the same peer.
        var ordersSendAfterWrite: Bool
    }

    /// The newest interface version that both the headers and the loaded library know.
    static func version(_ options: LibfabricOptions) -> UInt32 {
        let library = te_fi_version()
        let wanted =
            options.isEFA ? max(te_fi_header_version, te_fi_make_version(1, 22)) : te_fi_header_version
        return library >= wanted ? wanted : min(library, te_fi_header_version)
    }

    /// Loads the library, or says what to install.
    static func requireLibrary() throws(TransferError) {
        guard te_fabric_load() == 0 else {
            throw TransferError(
                .unavailable,
                "libfabric is not usable: \(FabricError.string(te_fabric_load_error())); "
                    + "install it (Debian and Ubuntu: apt install libfabric1)")
        }
    }

    /// The NIC that `options` name.
    static func choose(_ options: LibfabricOptions) throws(TransferError) -> Choice {
        try requireLibrary()
        let node = options.nic.flatMap(Interfaces.address)
        if node == nil, let nic = options.nic, Interfaces.isAddress(nic) { throw unknown(options) }
        // Software has to be asked to say when the data has been placed; a NIC's acknowledgement says it by
        // itself.
        if !options.isHardware {
            for ordered in [true, false] {
                guard let info = query(options, node: node, delivery: true, ordered: ordered) else {
                    continue
                }
                return try Choice(
                    info: pick(from: info, options, node: node), deliveryComplete: true,
                    ordersSendAfterWrite: ordered)
            }
        }
        guard let info = query(options, node: node, delivery: false) else { throw unknown(options) }
        return try Choice(
            info: pick(from: info, options, node: node), deliveryComplete: false, ordersSendAfterWrite: false)
    }

    /// Takes the entry for the NIC out of a list and frees the list.
    private static func pick(
        from list: UnsafeMutablePointer<fi_info>, _ options: LibfabricOptions, node: String?
    ) throws(TransferError) -> UnsafeMutablePointer<fi_info> {
        defer { te_fi_freeinfo(list) }
        var next: UnsafeMutablePointer<fi_info>? = list
        while let info = next {
            next = info.pointee.next
            if let nic = options.nic, node == nil || !Interfaces.isAddress(nic), !matches(info, nic) {
                continue
            }
            guard let copy = te_fi_dupinfo(info) else { throw TransferError(.limitReached, "out of memory") }
            copy.pointee.tx_attr.pointee.op_flags = 0
            return copy
        }
        throw unknown(options)
    }

    /// Whether an entry is the device called `name`; `rdmap0s6` also finds `rdmap0s6-rdm`.
    private static func matches(_ info: UnsafeMutablePointer<fi_info>, _ name: String) -> Bool {
        let domain = FabricError.string(info.pointee.domain_attr.pointee.name)
        return domain == name || domain.hasPrefix(name + "-")
    }

    private static func unknown(_ options: LibfabricOptions) -> TransferError {
        var plain = options
        plain.nic = nil
        let present = list(plain).map { $0.address.isEmpty ? $0.name : "\($0.name) (\($0.address))" }
        let name = options.nic.map { "NIC '\($0)' of provider '\(options.provider)'" }
        return TransferError(
            .unavailable,
            "\(name ?? "provider '\(options.provider)'") is not there; "
                + (present.isEmpty
                    ? "libfabric \(LibfabricProvider.versionText) has nothing for this provider; see fi_info"
                    : "there are: " + present.joined(separator: ", ")))
    }

    /// Everything that one provider offers.
    static func list(_ options: LibfabricOptions) -> [LibfabricNIC] {
        guard te_fabric_load() == 0, let info = query(options, node: nil, delivery: false) else { return [] }
        defer { te_fi_freeinfo(info) }
        var found: [LibfabricNIC] = []
        var next: UnsafeMutablePointer<fi_info>? = info
        while let entry = next {
            let nic = describe(entry)
            if !found.contains(nic) { found.append(nic) }
            next = entry.pointee.next
        }
        return found
    }

    /// One entry, for people.
    static func describe(_ info: UnsafeMutablePointer<fi_info>) -> LibfabricNIC {
        let address = Interfaces.text(info.pointee.src_addr, info.pointee.src_addrlen)
        let domain = FabricError.string(info.pointee.domain_attr.pointee.name)
        // For an address that is not an interface's first, libfabric makes up a name.
        let name = if_nametoindex(domain) == 0 ? Interfaces.name(covering: address) ?? domain : domain
        return LibfabricNIC(
            provider: FabricError.string(info.pointee.fabric_attr.pointee.prov_name),
            fabric: FabricError.string(info.pointee.fabric_attr.pointee.name), name: name, address: address,
            megabitsPerSecond: speed(of: info, interface: name))
    }

    // MARK: Speed

    /// Link speed in Mbit/s: libfabric's word, then the kernel's, then 10 Gbit/s for what has no speed.
    private static func speed(of info: UnsafeMutablePointer<fi_info>, interface: String) -> UInt32 {
        if let nic = info.pointee.nic, let link = nic.pointee.link_attr, link.pointee.speed >= 1_000_000 {
            return UInt32(clamping: link.pointee.speed / 1_000_000)
        }
        return Interfaces.megabitsPerSecond(interface) ?? 10_000
    }

    // MARK: Asking libfabric

    private static func query(
        _ options: LibfabricOptions, node: String?, delivery: Bool, ordered: Bool = false
    ) -> UnsafeMutablePointer<fi_info>? {
        if options.isEFA,
            let info = query(options, node: node, delivery: delivery, ordered: ordered, deviceMemory: true)
        {
            return info
        }
        return query(options, node: node, delivery: delivery, ordered: ordered, deviceMemory: false)
    }

    private static func query(
        _ options: LibfabricOptions, node: String?, delivery: Bool, ordered: Bool, deviceMemory: Bool
    ) -> UnsafeMutablePointer<fi_info>? {
        guard let hints = te_fi_allocinfo() else { return nil }
        defer { te_fi_freeinfo(hints) }
        hints.pointee.caps = FI_MSG | FI_RMA
        if options.isEFA { hints.pointee.caps |= FI_LOCAL_COMM | FI_REMOTE_COMM }
        hints.pointee.mode = FI_CONTEXT | FI_CONTEXT2
        hints.pointee.ep_attr.pointee.type = FI_EP_RDM
        var mode = FI_MR_LOCAL | FI_MR_VIRT_ADDR | FI_MR_ALLOCATED | FI_MR_PROV_KEY | FI_MR_ENDPOINT
        if deviceMemory {
            hints.pointee.caps |= FI_HMEM
            mode |= FI_MR_HMEM
        }
        hints.pointee.domain_attr.pointee.mr_mode = mode
        hints.pointee.domain_attr.pointee.threading = FI_THREAD_DOMAIN
        hints.pointee.domain_attr.pointee.resource_mgmt = FI_RM_ENABLED
        // Frames and their acknowledgements count on the order of sends.
        let order = FI_ORDER_SAS | (ordered ? FI_ORDER_SAW : 0)
        hints.pointee.tx_attr.pointee.msg_order = order
        hints.pointee.rx_attr.pointee.msg_order = order
        if delivery { hints.pointee.tx_attr.pointee.op_flags = FI_DELIVERY_COMPLETE }
        hints.pointee.fabric_attr.pointee.prov_name = strdup(options.provider)
        var result: UnsafeMutablePointer<fi_info>?
        let flags = node == nil ? 0 : FI_SOURCE
        guard te_fi_getinfo(version(options), node, flags, hints, &result) == 0 else { return nil }
        return result
    }
}
