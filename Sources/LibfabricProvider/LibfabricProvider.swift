import CLibfabric
import TransferCore

/// A NIC that libfabric offers.
public struct LibfabricNIC: Hashable, Sendable {
    /// libfabric's provider, as in `LibfabricOptions.provider`.
    public var provider: String
    /// libfabric's name of the network.
    public var fabric: String
    /// The device or interface, as in `LibfabricOptions.nic`.
    public var name: String
    /// The numeric address, when it has one.
    public var address: String
    /// Link speed in Mbit/s; 10000 when nothing is known.
    public var megabitsPerSecond: UInt32
}

/// libfabric on this machine: whether it is there, and what it offers.
public enum LibfabricProvider {
    /// The providers that this library is made for, in the order of preference.
    public static let supported = ["efa", "verbs;ofi_rxm", "tcp", "tcp;ofi_rxm", "net", "shm"]

    /// All NICs of the supported providers; empty when libfabric is missing.
    ///
    /// - Complexity: asks every provider, tens of milliseconds.
    public static func available() -> [LibfabricNIC] {
        var found: [LibfabricNIC] = []
        for provider in supported {
            for nic in FabricSelection.list(LibfabricOptions(provider: provider)) where !found.contains(nic) {
                found.append(nic)
            }
        }
        return found
    }

    /// The loaded version, or why there is none and what to install; for people.
    public static var status: String {
        do throws(TransferError) {
            try FabricSelection.requireLibrary()
            return "libfabric \(versionText)"
        } catch {
            return error.message
        }
    }

    /// Whether libfabric could be loaded.
    public static var isLoaded: Bool { te_fabric_load() == 0 }

    static var versionText: String {
        guard isLoaded else { return "(not loaded)" }
        let version = te_fi_version()
        return "\(version >> 16).\(version & 0xFFFF)"
    }
}
