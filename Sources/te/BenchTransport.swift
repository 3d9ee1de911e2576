internal import TransferEngine

#if Libfabric
    internal import LibfabricProvider
#endif
internal import SharedMemoryProvider

#if Verbs
    internal import VerbsProvider
#endif

/// The NICs of an engine for a provider named on the command line.
///
/// `nics` is a list such as `127.0.0.1,127.0.0.2` or `eth0@1000,eth1@2000` (interface or address, speed in Mbit/s); empty
/// is the provider's own choice, for tcp the loopback addresses from 127.0.0.1 on, and for verbs all devices in turn.
func makeNICs(
    provider: String, count: Int, nics: String, callerMemory: SharedMemoryOptions.CallerMemory
) throws(TransferError) -> [Configuration.NIC] {
    if provider == "shm" {
        return Array(repeating: .sharedMemory(SharedMemoryOptions(callerMemory: callerMemory)), count: count)
    }
    #if Verbs
        if provider == "verbs" {
            var names = nics.split(separator: ",").map(String.init)
            if names.isEmpty {
                let ports = VerbsProvider.ports().filter { $0.problem == nil }
                guard !ports.isEmpty else { throw TransferError(.unavailable, VerbsProvider.status) }
                names = (0..<count).map { ports[$0 % ports.count].device }
            }
            return names.map { name in
                let parts = name.split(separator: "@").map(String.init)
                var options = VerbsOptions(device: parts.first)
                options.megabitsPerSecond = parts.count > 1 ? UInt32(parts[1]) : nil
                return .verbs(options)
            }
        }
    #endif
    #if Libfabric
        var names = nics.split(separator: ",").map(String.init)
        if names.isEmpty {
            let isSocket = ["tcp", "tcp;ofi_rxm", "net", "net;ofi_rxm"].contains(provider)
            names = (1...count).map { isSocket ? "127.0.0.\($0)" : "" }
        }
        return names.map { name in
            let parts = name.split(separator: "@").map(String.init)
            var options = LibfabricOptions(
                provider: provider.hasPrefix("lf-") ? String(provider.dropFirst(3)) : provider)
            options.nic = parts.first
            options.megabitsPerSecond = parts.count > 1 ? UInt32(parts[1]) : nil
            return .libfabric(options)
        }
    #else
        throw TransferError(.unavailable, "this program was built without libfabric")
    #endif
}
