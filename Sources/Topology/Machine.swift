/// What matters of a machine for transfers: its NUMA nodes, GPUs and NICs, and where they are.
public struct Machine: Hashable, Sendable {
    /// A NUMA node: memory, and the processors near it.
    public struct Node: Hashable, Sendable {
        /// The system's number.
        public var number: Int
        /// Memory in bytes.
        public var byteCount: UInt64
        /// For each core, the numbers of its hardware threads.
        public var cores: [[Int]]

        public init(number: Int, byteCount: UInt64, cores: [[Int]]) {
            self.number = number
            self.byteCount = byteCount
            self.cores = cores
        }
    }

    /// A bridge between a device and the machine.
    public struct Bridge: Hashable, Sendable {
        /// Tells bridges of one machine apart.
        public var id: Int
        /// Whether it joins PCIe and the processor. All others are parts of switches.
        public var isHost: Bool

        public init(id: Int, isHost: Bool) {
            self.id = id
            self.isHost = isHost
        }
    }

    /// A GPU or a NIC.
    public struct Device: Hashable, Sendable {
        /// The system's name, for example `rdmap16s27` or `ens5`; a GPU is `gpu0`, `gpu1`, ... in the order of the bus.
        public var name: String
        /// What it is, for people; may be empty.
        public var model: String
        /// Its place on the bus, `0000:10:1b.0`; empty when it has none.
        public var address: String
        /// The NUMA node that it is near; nil when the machine does not say, as virtual ones often do not.
        public var node: Int?
        /// Bridges above it, the host's first.
        public var bridges: [Bridge]
        /// Bandwidth of a NIC in Gbit/s; nil when nobody says.
        public var gigabitsPerSecond: Double?

        public init(
            name: String, model: String = "", address: String = "", node: Int? = nil, bridges: [Bridge] = [],
            gigabitsPerSecond: Double? = nil
        ) {
            self.name = name
            self.model = model
            self.address = address
            self.node = node
            self.bridges = bridges
            self.gigabitsPerSecond = gigabitsPerSecond
        }
    }

    /// In the order of their numbers.
    public var nodes: [Node]
    /// In the order of their addresses.
    public var gpus: [Device]
    /// NICs with RDMA, in the order of their addresses; where there are none, all network interfaces.
    public var nics: [Device]

    public init(nodes: [Node], gpus: [Device], nics: [Device]) {
        self.nodes = nodes
        self.gpus = gpus
        self.nics = nics
    }

    /// The position of a NIC that is called by its name, its bus address, or `nic` and its position.
    public func nic(called name: String) -> Int? {
        nics.indices.first { nics[$0].name == name || nics[$0].address == name || "nic\($0)" == name }
    }
}

/// How far a NIC is from the memory that it serves.
public struct Distance: Hashable, Comparable, Sendable, CustomStringConvertible {
    /// What the two have in common, the nearest first.
    public enum Common: Int, Hashable, Sendable {
        /// A PCIe switch: traffic does not pass the processor.
        case pcieSwitch
        /// A host bridge. A virtual machine may show no more although there is a switch.
        case hostBridge
        /// A NUMA node.
        case node
        /// Nobody says; no farther than any other.
        case unknown
        /// Nothing: traffic passes between the processors.
        case machine
    }

    /// What the two have in common.
    public var common: Common
    /// Bridges between the memory and what they have in common.
    public var climb: Int

    public init(_ common: Common, climb: Int = 0) {
        self.common = common
        self.climb = climb
    }

    /// From a GPU to a NIC.
    public init(from gpu: Machine.Device, to nic: Machine.Device) {
        let shared = zip(gpu.bridges, nic.bridges).prefix { $0 == $1 }.count
        if shared > 0 {
            self.init(
                gpu.bridges[shared - 1].isHost ? .hostBridge : .pcieSwitch,
                climb: gpu.bridges.count - shared)
        } else {
            self.init(from: gpu.node, to: nic)
        }
    }

    /// From the memory of a NUMA node to a NIC.
    public init(from node: Int?, to nic: Machine.Device) {
        guard let node, let other = nic.node else {
            self.init(.unknown)
            return
        }
        self.init(node == other ? .node : .machine)
    }

    /// Nearer ones first.
    public static func < (left: Self, right: Self) -> Bool {
        (left.common.rawValue, left.climb) < (right.common.rawValue, right.climb)
    }

    public var description: String {
        switch common {
        case .pcieSwitch: "same PCIe switch"
        case .hostBridge: "same host bridge"
        case .node: "same NUMA node"
        case .unknown: "place unknown"
        case .machine: "other NUMA node"
        }
    }
}
