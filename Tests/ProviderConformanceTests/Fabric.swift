import SharedMemoryProvider
import Glibc
import SimulatedProvider
import TransferEngine

#if Libfabric
    import LibfabricProvider
#endif
#if Verbs
    import CVerbsStandIn
    import VerbsProvider
#endif

/// A way to join engines, as the suite sees it. Every provider appears here once for each of its data paths.
enum Fabric: String, Sendable, CustomStringConvertible {
    case sharedMemory
    /// The application's memory, by process_vm_writev.
    case processWrite
    /// The application's memory, through the ring.
    case bounce
    case simulated
    /// A simulated NIC whose longest write is 1000 bytes.
    case simulatedShortWrites
    /// A simulated NIC whose requests carry any count.
    case simulatedCounting
    #if Libfabric
        case tcp
        /// TCP without frames: every write is an operation of libfabric's.
        case tcpUnframed
        case tcpRxm
        case libfabricShm
        /// libfabric's verbs on RDMA NICs with the addresses in `TE_RXM_ADDRESSES`, if that is set.
        case verbsRxm
    #endif
    #if Verbs
        /// The verbs provider on a NIC that exists only in this process.
        case verbsStandIn
        case verbsStandInInfiniBand
        /// The verbs provider on the RDMA devices of this machine, if it has any.
        case verbs
        /// The same with `ibv_post_send` where the devices could do better; only when `TE_CONFORMANCE` asks for it.
        case verbsLists
    #endif

    /// The fabrics that this build and this machine have.
    static let allCases: [Fabric] = {
        var cases: [Fabric] = [
            .sharedMemory, .processWrite, .bounce, .simulated, .simulatedShortWrites, .simulatedCounting,
        ]
        #if Libfabric
            cases += [.tcp, .tcpUnframed, .tcpRxm, .libfabricShm]
            if getenv("TE_RXM_ADDRESSES") != nil { cases.append(.verbsRxm) }
        #endif
        #if Verbs
            cases += [.verbsStandIn, .verbsStandInInfiniBand]
            if isVerbsExpected { cases += [.verbs, .verbsLists] }
        #endif
        if let only = getenv("TE_CONFORMANCE").map({ String(cString: $0) }) {
            // A name that is not here would run nothing, and nobody would notice.
            return only.split(separator: ",").map { name in
                guard let found = cases.first(where: { $0.rawValue == name }) else {
                    let known = cases.map(\.rawValue).joined(separator: ", ")
                    fatalError("TE_CONFORMANCE: \(name) cannot be tested here; there are \(known)")
                }
                return found
            }
        }
        return cases.filter { $0.rawValue != "verbsLists" }
    }()

    /// The traits that this build is without, whose providers are not tested here.
    static let leftOut: [String] = {
        var traits: [String] = []
        #if !Libfabric
            traits.append("Libfabric")
        #endif
        #if !Verbs
            traits.append("Verbs")
        #endif
        return traits
    }()

    #if Verbs
        /// Whether the suite has to run on RDMA devices: there are some, or it was said that there must be.
        static let isVerbsExpected = !verbsDevices.isEmpty || getenv("TE_REQUIRE_VERBS") != nil
        /// The devices to use: `TE_VERBS_DEVICES`, or all that can be used. Every one must reach every other one.
        static let verbsDevices: [String] = {
            if let named = getenv("TE_VERBS_DEVICES") {
                return String(cString: named).split(separator: ",").map(String.init)
            }
            return VerbsProvider.ports().filter { $0.problem == nil }.map(\.device)
        }()
    #endif

    var description: String { rawValue }

    var isSimulated: Bool { rawValue.hasPrefix("simulated") }

    /// Whether the engine's own allocations are used; otherwise memory of the application.
    var usesEngineMemory: Bool { self != .processWrite && self != .bounce }

    /// Whether one process may hold as many endpoints as there are NICs or 64 peers.
    var allowsManyEndpoints: Bool {
        #if Libfabric
            return self != .libfabricShm
        #else
            return true
        #endif
    }

    /// Peers in one process; ofi_rxm over soft-RoCE takes too much of a guest's memory for more.
    var mostPeers: Int { rawValue == "verbsRxm" ? 8 : 64 }

    /// Whether registered memory has to exist: a region of 5 GiB then needs as much memory, and time.
    var pinsMemory: Bool { ["verbs", "verbsLists", "verbsRxm"].contains(rawValue) }

    /// Whether its NICs have a file that tells of arrivals; libfabric's shm has none, and is polled without pause.
    var sleeps: Bool { rawValue != "libfabricShm" }

    /// Whether a write with a wrong key ends with an error.
    var reportsWrongKeys: Bool { rawValue != "libfabricShm" }

    /// The NICs of one engine.
    func nics(_ count: Int) -> [Configuration.NIC] {
        switch self {
        case .sharedMemory: return Array(repeating: .sharedMemory, count: count)
        case .processWrite:
            return Array(
                repeating: .sharedMemory(SharedMemoryOptions(callerMemory: .processWrite)), count: count)
        case .bounce:
            return Array(repeating: .sharedMemory(SharedMemoryOptions(callerMemory: .bounce)), count: count)
        case .simulated, .simulatedShortWrites, .simulatedCounting: return []
        #if Libfabric
            case .tcp: return Self.loopback(LibfabricOptions(provider: "tcp"), count)
            case .tcpUnframed: return Self.loopback(LibfabricOptions(provider: "tcp", framing: .never), count)
            case .tcpRxm: return Self.loopback(LibfabricOptions(provider: "tcp;ofi_rxm"), count)
            case .libfabricShm:
                return Array(repeating: .libfabric(LibfabricOptions(provider: "shm")), count: count)
            case .verbsRxm:
                let addresses = String(cString: getenv("TE_RXM_ADDRESSES")).split(separator: ",")
                return (0..<count).map {
                    .libfabric(
                        LibfabricOptions(
                            provider: "verbs;ofi_rxm", nic: String(addresses[$0 % addresses.count])))
                }
        #endif
        #if Verbs
            case .verbsStandIn, .verbsStandInInfiniBand: return []
            case .verbs, .verbsLists:
                let devices = Self.verbsDevices
                return (0..<count).map {
                    var options = VerbsOptions(device: devices.isEmpty ? nil : devices[$0 % devices.count])
                    if self == .verbsLists { options.posting = .lists }
                    return .verbs(options)
                }
        #endif
        }
    }

    /// Opens the NICs of an engine where no configuration can: in stand-ins. The function lives as long as the cluster.
    func opener() -> ((Int, TargetPage) throws(TransferError) -> [any FabricDomain])? {
        #if Verbs
            guard self == .verbsStandIn || self == .verbsStandInInfiniBand else { return nil }
            let network = StandInNetwork(isEthernet: self == .verbsStandIn)
            return { (count, page) throws(TransferError) in
                var domains: [any FabricDomain] = []
                for device in 0..<count {
                    var options = VerbsOptions(device: network.name(device))
                    // A process of 65 engines, and short queues so that they do fill.
                    options.messageReceives = 32
                    options.requestsPerPeer = 64
                    // Both ways to hand over requests have to pass.
                    options.posting = self == .verbsStandIn ? .calls : .lists
                    domains.append(
                        try VerbsDomain(options, page: page, engine: page.engine, api: te_standin_api()))
                }
                return domains
            }
        #else
            return nil
        #endif
    }

    #if Libfabric
        private static func loopback(_ options: LibfabricOptions, _ count: Int) -> [Configuration.NIC] {
            (1...count).map { number in
                var options = options
                options.nic = "127.0.0.\(number)"
                return .libfabric(options)
            }
        }
    #endif

    /// One simulated NIC; odd numbers are half as fast, so that shares are unequal.
    func simulatedNIC(_ number: Int) -> SimulatedNIC {
        var nic = SimulatedNIC(name: "sim\(number)", megabitsPerSecond: number % 2 == 0 ? 100_000 : 50_000)
        if self == .simulatedShortWrites { nic.maximumWriteBytes = 1000 }
        nic.countsMany = self == .simulatedCounting
        return nic
    }
}

#if Verbs
    /// A network of stand-in NICs that ends with its last user.
    final class StandInNetwork {
        private let network: OpaquePointer

        init(isEthernet: Bool) { network = te_standin_new(8, isEthernet ? 1 : 0) }
        deinit { te_standin_free(network) }

        func name(_ device: Int) -> String { String(cString: te_standin_name(network, Int32(device))) }
    }
#endif
