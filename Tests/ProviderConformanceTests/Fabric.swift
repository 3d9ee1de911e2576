import SharedMemoryProvider
import SimulatedProvider
import TransferEngine

#if Libfabric
    import LibfabricProvider
#endif

/// A way to join engines, as the suite sees it. Every provider appears here once for each of its data paths.
enum Fabric: String, CaseIterable, Sendable, CustomStringConvertible {
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

    /// Peers that one process drives in acceptable time: the older endpoints of libfabric poll each connection in turn.
    var mostPeers: Int {
        #if Libfabric
            return 64
        #else
            return 64
        #endif
    }

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
        #endif
        }
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
