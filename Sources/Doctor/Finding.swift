/// What one look at a system found.
public struct Finding: Hashable, Sendable {
    /// How bad it is.
    public enum Severity: Int, Hashable, Comparable, Sendable, CustomStringConvertible {
        /// As it should be.
        case good
        /// Worth knowing; nothing is lost.
        case note
        /// Slower than it could be, or fragile.
        case warning
        /// Something does not work.
        case error

        /// Better ones first.
        public static func < (left: Self, right: Self) -> Bool { left.rawValue < right.rawValue }

        public var description: String {
            switch self {
            case .good: "ok"
            case .note: "note"
            case .warning: "warning"
            case .error: "error"
            }
        }
    }

    /// Everything that can be wrong. The raw values are stable.
    public enum Problem: String, CaseIterable, Sendable {
        case memlockLow = "memlock-low"
        case memlockUnknown = "memlock-unknown"
        case filesLow = "files-low"
        case cgroupCPU = "cgroup-cpu"
        case cgroupMemory = "cgroup-memory"
        case cpusetSmall = "cpuset-small"
        case shmSmall = "shm-small"
        case shmMissing = "shm-missing"
        case ptraceScope = "ptrace-scope"
        case ptraceForbidden = "ptrace-forbidden"
        case hugepagesNone = "hugepages-none"
        case hugepagesUsed = "hugepages-used"
        case thpNever = "thp-never"
        case governor
        case clocksourceSlow = "clocksource-slow"
        case clockUnsynchronized = "clock-unsynchronized"
        case linkDown = "link-down"
        case mtuDiffers = "mtu-differs"
        case driverMissing = "driver-missing"
        case rdmaPortDown = "rdma-port-down"
        case rdmaNoLID = "rdma-no-lid"
        case gidLocalOnly = "gid-local-only"
        case roceMTUSmall = "roce-mtu-small"
        case pcieNarrow = "pcie-narrow"
        case rdmaNoAccess = "rdma-no-access"
        case libibverbsMissing = "libibverbs-missing"
        case libfabricMissing = "libfabric-missing"
        case libfabricOld = "libfabric-old"
        case libfabricWithoutEFA = "libfabric-without-efa"
        case gpuMemoryUnreachable = "gpu-memory-unreachable"
    }

    /// A stable name for programs, `memlock-low`; of what is good, the subject, `memlock`.
    public var id: String
    /// How bad it is.
    public var severity: Severity
    /// What was looked at and what was seen.
    public var summary: String
    /// What it costs; empty when it is good.
    public var cost: String
    /// A command to paste, or what to write where; empty when there is nothing to do.
    public var command: String

    public init(id: String, severity: Severity, summary: String, cost: String = "", command: String = "") {
        self.id = id
        self.severity = severity
        self.summary = summary
        self.cost = cost
        self.command = command
    }
}
