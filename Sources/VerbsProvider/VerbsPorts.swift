internal import CVerbs
internal import Glibc
internal import TransferCore

/// A port of an RDMA device: what it has, and what would be used.
public struct VerbsPort: Hashable, Sendable {
    /// The device's name, as in `VerbsOptions.device`.
    public var device: String
    /// The port's number, from 1.
    public var port: UInt8
    /// Whether packets can pass.
    public var isActive: Bool
    /// RoCE when true, InfiniBand otherwise.
    public var isEthernet: Bool
    /// The path MTU in bytes.
    public var mtuBytes: Int
    /// Link speed in Mbit/s, 0 when the port does not say.
    public var megabitsPerSecond: UInt32
    /// The address on an InfiniBand subnet.
    public var lid: UInt16
    /// The port's GID table without its empty places.
    public var gids: [VerbsGID]
    /// The GID that is used with default options, and why.
    public var choice: GIDRule.Choice
    /// Largest message in bytes.
    public var longestMessage: UInt64
    /// How requests would be handed to the NIC; `automatic` when nobody has tried.
    public var posting = VerbsOptions.Posting.automatic

    /// Why the port cannot be used with default options; nil when it can.
    public var problem: String? {
        if !isActive { return "the port is down: check the cable, or 'ip link set <interface> up'" }
        return choice.gid == nil ? choice.reason : nil
    }
}

/// libibverbs on this machine: whether it is there, and what it offers.
public enum VerbsProvider {
    /// Whether libibverbs could be loaded.
    public static var isLoaded: Bool { unsafe te_verbs_load() != nil }

    /// What is there, or what is missing and what to install; for people.
    public static var status: String {
        guard unsafe te_verbs_load() != nil else {
            return
                "\(unsafe String(cString: te_verbs_load_error())); apt-get install libibverbs1 ibverbs-providers"
        }
        let count = ports().count
        if count > 0 { return "libibverbs, \(count) ports" }
        return
            "libibverbs, no RDMA device that can be opened: load its driver (mlx5_ib; rdma_rxe for soft-RoCE), "
            + "allow /dev/infiniband"
    }

    /// All ports of all devices; empty when there are none.
    ///
    /// - Complexity: opens every device, milliseconds for each.
    public static func ports() -> [VerbsPort] {
        guard let api = unsafe te_verbs_load() else { return [] }
        return unsafe VerbsSelection.ports(api, VerbsOptions())
    }
}

/// Finds the port that options name.
enum VerbsSelection {
    /// An open device and the port of it to use.
    @safe struct Choice {
        let context: UnsafeMutablePointer<ibv_context>
        let port: VerbsPort
    }

    static func ports(_ api: UnsafePointer<te_verbs_api>, _ options: VerbsOptions) -> [VerbsPort] {
        unsafe withDevices(api) { devices in
            var found: [VerbsPort] = []
            for index in 0..<devices.count {
                let device = unsafe devices[index]
                guard let context = unsafe api.pointee.open_device(device) else { continue }
                let posting: VerbsOptions.Posting =
                    unsafe QueuePairs.canTakeCalls(api, context) ? .calls : .lists
                for var port in unsafe query(api, context, name(api, device), options) {
                    port.posting = posting
                    found.append(port)
                }
                _ = unsafe api.pointee.close_device(context)
            }
            return found
        }
    }

    /// Opens the device that has the port to use.
    /// - Throws: `unavailable`; it names what there is and why it does not fit.
    static func choose(
        _ api: UnsafePointer<te_verbs_api>, _ options: VerbsOptions
    ) throws(TransferError) -> Choice {
        var reasons: [String] = []
        let choice: Choice? = unsafe withDevices(api) { devices in
            for index in 0..<devices.count {
                let device = unsafe devices[index]
                let name = unsafe name(api, device)
                if let wanted = options.device, wanted != name {
                    reasons.append("\(name) is another device")
                    continue
                }
                guard let context = unsafe api.pointee.open_device(device) else {
                    let error = errno
                    reasons.append(
                        "\(name) cannot be opened: \(VerbsError.text(error)); allow access to /dev/infiniband"
                    )
                    continue
                }
                for port in unsafe query(api, context, name, options) {
                    if let wanted = options.port, wanted != port.port { continue }
                    if let problem = port.problem {
                        reasons.append("\(name) port \(port.port): \(problem)")
                    } else {
                        return unsafe Choice(context: context, port: port)
                    }
                }
                _ = unsafe api.pointee.close_device(context)
            }
            return nil
        }
        if let choice = choice { return choice }
        let what = (options.device ?? "an RDMA device") + (options.port.map { " port \($0)" } ?? "")
        throw TransferError(
            .unavailable,
            "\(what) cannot be used: "
                + (reasons.isEmpty
                    ? "this machine has none ('te info' lists them)" : reasons.joined(separator: "; ")))
    }

    private static func withDevices<R>(
        _ api: UnsafePointer<te_verbs_api>,
        _ body: (UnsafeBufferPointer<UnsafeMutablePointer<ibv_device>?>) -> R
    ) -> R {
        var count: Int32 = 0
        let list = unsafe api.pointee.get_device_list(&count)
        defer { if let list = unsafe list { unsafe api.pointee.free_device_list(list) } }
        return unsafe body(UnsafeBufferPointer(start: list, count: list == nil ? 0 : Int(count)))
    }

    private static func name(
        _ api: UnsafePointer<te_verbs_api>, _ device: UnsafeMutablePointer<ibv_device>?
    ) -> String {
        guard let name = unsafe api.pointee.get_device_name(device) else { return "?" }
        return unsafe String(cString: name)
    }

    private static func query(
        _ api: UnsafePointer<te_verbs_api>, _ context: UnsafeMutablePointer<ibv_context>, _ name: String,
        _ options: VerbsOptions
    ) -> [VerbsPort] {
        var device = ibv_device_attr()
        guard unsafe api.pointee.query_device(context, &device) == 0 else { return [] }
        let gids = unsafe gidTable(api, context)
        var ports: [VerbsPort] = []
        for number in 1...max(1, device.phys_port_cnt) {
            var port = ibv_port_attr()
            guard unsafe api.pointee.query_port(context, number, &port) == 0 else { continue }
            let isEthernet = Int(port.link_layer) == IBV_LINK_LAYER_ETHERNET
            let own = gids.filter { $0.port == number }.map(\.gid)
            ports.append(
                VerbsPort(
                    device: name, port: number, isActive: port.state == IBV_PORT_ACTIVE,
                    isEthernet: isEthernet, mtuBytes: 128 << Int(port.active_mtu.rawValue),
                    megabitsPerSecond: speed(port), lid: port.lid, gids: own,
                    choice: GIDRule.choose(
                        own, isEthernet: isEthernet, gidIndex: options.gidIndex, subnet: options.subnet),
                    longestMessage: UInt64(port.max_msg_sz)))
        }
        return ports
    }

    private static func gidTable(
        _ api: UnsafePointer<te_verbs_api>, _ context: UnsafeMutablePointer<ibv_context>
    ) -> [(port: UInt8, gid: VerbsGID)] {
        var entries = [ibv_gid_entry](repeating: ibv_gid_entry(), count: 1024)
        let count = unsafe api.pointee.query_gid_table(
            context, &entries, entries.count, 0, MemoryLayout<ibv_gid_entry>.size)
        guard count > 0 else { return [] }
        return entries.prefix(count).map { entry in
            let kinds: [VerbsGID.Kind] = [.infiniBand, .roceV1, .roceV2]
            let bytes = unsafe withUnsafeBytes(of: entry.gid) { unsafe [UInt8]($0) }
            let kind = kinds.indices.contains(Int(entry.gid_type)) ? kinds[Int(entry.gid_type)] : .roceV1
            return (
                UInt8(truncatingIfNeeded: entry.port_num),
                VerbsGID(index: Int(entry.gid_index), bytes: bytes, kind: kind)
            )
        }
    }

    /// Mbit/s: the speed of a lane, by its code in the port's attributes, times the number of lanes.
    private static func speed(_ port: ibv_port_attr) -> UInt32 {
        let lane: [UInt8: UInt32] = [
            1: 2500, 2: 5000, 4: 10_000, 8: 10_000, 16: 14_000, 32: 25_000, 64: 50_000, 128: 100_000,
        ]
        let lanes: [UInt8: UInt32] = [1: 1, 2: 4, 4: 8, 8: 12, 16: 2]
        return (lane[port.active_speed] ?? 0) * (lanes[port.active_width] ?? 0)
    }
}

/// Numbers of libibverbs in the words of the contract.
enum VerbsError {
    /// What the status of a work completion means for its request.
    static func status(of status: ibv_wc_status) -> WorkStatus {
        switch status {
        case IBV_WC_SUCCESS: return .success
        case IBV_WC_REM_ACCESS_ERR: return .accessDenied
        case IBV_WC_RETRY_EXC_ERR, IBV_WC_RNR_RETRY_EXC_ERR, IBV_WC_WR_FLUSH_ERR, IBV_WC_REM_ABORT_ERR,
            IBV_WC_RESP_TIMEOUT_ERR:
            return .peerLost
        default: return .providerFailed
        }
    }

    /// What `Completion.detail` holds for an asynchronous event. Error numbers of the system are negated, too.
    static func detail(event: ibv_event_type) -> Int32 { firstEvent - Int32(bitPattern: event.rawValue) }
    static let firstEvent: Int32 = -1000

    /// What `Completion.detail` holds for it: the vendor's code above the status.
    static func detail(_ status: ibv_wc_status, vendor: UInt32) -> Int32 {
        Int32(truncatingIfNeeded: vendor & 0x7F_FFFF) << 8 | Int32(truncatingIfNeeded: status.rawValue & 0xFF)
    }

    /// The system's words for an error number.
    static func text(_ error: Int32) -> String {
        guard let words = unsafe strerror(abs(error)) else { return "error \(error)" }
        return unsafe String(cString: words)
    }

    /// A call that failed while something was opened or registered.
    static func failure(_ call: String, _ error: Int32, nic: String, remedy: String = "") -> TransferError {
        let code: TransferError.Code = abs(error) == ENOMEM ? .limitReached : .providerFailed
        return TransferError(
            code,
            "\(call) on \(nic): \(text(error)) (\(abs(error)))" + (remedy.isEmpty ? "" : "; \(remedy)"))
    }
}
