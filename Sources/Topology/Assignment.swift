internal import TransferCore

/// Which NICs serve which memory, and where its threads run: a pure function of the machine.
///
/// Memory takes its nearest NICs, and those only: a farther one would pull traffic through the switches or the processors of
/// others. Memory that has the same nearest NICs shares them fairly: the NICs are laid end to end on a scale, each as wide
/// as it is fast, and everybody takes an equal stretch. So four NICs for two GPUs are two each, three are one and a half each,
/// one for eight is an eighth each. Memory that has no NIC nearer than those of others takes what these left over,
/// or shares with them when nothing is left.
public struct Assignment: Hashable, Sendable {
    /// A NIC of a device.
    public struct Use: Hashable, Sendable {
        /// Position in `Machine.nics`.
        public var nic: Int
        /// How far it is.
        public var distance: Distance
        /// The part of the NIC that is meant for this device, 0 to 1.
        public var share: Double
    }

    /// A GPU or the memory of a NUMA node: what one engine serves.
    public struct Row: Hashable, Sendable {
        /// `gpu3` or `node1`.
        public var name: String
        /// The NUMA node whose processors serve it; nil when it is not known.
        public var node: Int?
        /// Its NICs.
        public var uses: [Use]
        /// The processor for the engine's thread (`Configuration.processor`).
        public var worker: Int?
        /// The processor for whoever watches words that the GPU writes; nil for a NUMA node.
        public var watcher: Int?
        /// Whether the two have a core for themselves.
        public var hasOwnCores: Bool = false
    }

    /// The GPUs, then the NUMA nodes.
    public var rows: [Row]
    /// NICs that serve no GPU although there are some, because each has a nearer one.
    public var spare: [Int]

    /// - Parameters:
    ///   - machine: What there is.
    ///   - excluded: Positions of NICs that are not to be used.
    ///   - nicsPerGPU: So many for each GPU, the nearest and least used first, instead of all its nearest.
    /// - Complexity: O(GPUs * NICs * log NICs).
    public init(of machine: Machine, without excluded: Set<Int> = [], nicsPerGPU: Int? = nil) {
        let nics = machine.nics.indices.filter { !excluded.contains($0) }
        let gpus = Sharing(
            speeds: Self.speeds(machine), nics: nics,
            distances: machine.gpus.map { gpu in machine.nics.map { Distance(from: gpu, to: $0) } })
        let hosts = Sharing(
            speeds: Self.speeds(machine), nics: nics,
            distances: machine.nodes.map { node in machine.nics.map { Distance(from: node.number, to: $0) } })
        let served = nicsPerGPU.map(gpus.nearest) ?? gpus.fair()
        rows = zip(machine.gpus, served).map { gpu, uses in
            Row(
                name: gpu.name, node: gpu.node ?? uses.lazy.compactMap { machine.nics[$0.nic].node }.first,
                uses: uses)
        }
        rows += zip(machine.nodes, hosts.fair()).map { node, uses in
            Row(name: "node\(node.number)", node: node.number, uses: uses)
        }
        let used = Set(served.joined().map(\.nic))
        spare = machine.gpus.isEmpty ? [] : nics.filter { !used.contains($0) }
        placeThreads(on: machine, gpus: machine.gpus.count)
    }

    /// In Gbit/s; a NIC of unknown speed counts as the slowest known.
    private static func speeds(_ machine: Machine) -> [UInt32] {
        let slowest = machine.nics.compactMap(\.gigabitsPerSecond).min() ?? 1
        return machine.nics.map { UInt32(max(1, $0.gigabitsPerSecond ?? slowest)) }
    }

    /// Gives each thread a core of its node, the machine's first core last: interrupts and everybody else are there. When
    /// the cores of a node run out, its hardware threads are shared.
    private mutating func placeThreads(on machine: Machine, gpus: Int) {
        var queues: [Int: [(processor: Int, isOwn: Bool)]] = [:]
        for (position, node) in machine.nodes.enumerated() {
            var cores = node.cores.filter { !$0.isEmpty }
            if position == 0, cores.count > 1 { cores.append(cores.removeFirst()) }
            queues[node.number] =
                cores.map { ($0[0], true) } + cores.flatMap { $0.dropFirst().map { ($0, false) } }
        }
        var next: [Int: Int] = [:]
        func take(_ node: Int) -> (processor: Int, isOwn: Bool)? {
            guard let queue = queues[node], !queue.isEmpty else { return nil }
            let number = next[node, default: 0]
            next[node] = number + 1
            let entry = queue[number % queue.count]
            return (entry.processor, entry.isOwn && number < queue.count)
        }
        for row in rows.indices {
            // Memory whose place is unknown: the nodes in turn.
            let known = rows[row].node
            guard !machine.nodes.isEmpty else { continue }
            let node = known ?? machine.nodes[row % machine.nodes.count].number
            let worker = take(node)
            let watcher = row < gpus ? take(node) : nil
            rows[row].worker = worker?.processor
            rows[row].watcher = watcher?.processor
            rows[row].hasOwnCores = worker?.isOwn == true && watcher?.isOwn != false
        }
    }
}

/// Divides NICs among memory.
private struct Sharing {
    /// Of each NIC.
    var speeds: [UInt32]
    /// Those that may be used.
    var nics: [Int]
    /// For each memory, to each NIC.
    var distances: [[Distance]]

    /// All nearest NICs, shared equally.
    func fair() -> [[Assignment.Use]] {
        var uses = [[Assignment.Use]](repeating: [], count: distances.count)
        var taken: Set<Int> = []
        let best = distances.map { distance in nics.map { distance[$0] }.min() }
        for level in Set(best.compactMap(\.self)).sorted() {
            let members = distances.indices.filter { best[$0] == level }
            let rings = Dictionary(grouping: members) { member in
                nics.filter { distances[member][$0] == level }
            }
            var newly: Set<Int> = []
            // Small rings first: they have the least choice.
            for (ring, members) in rings.sorted(by: {
                ($0.key.count, $0.value[0]) < ($1.key.count, $1.value[0])
            }) {
                let left = ring.filter { !taken.contains($0) }
                let pool = left.isEmpty ? ring : left
                divide(pool, among: members, &uses)
                newly.formUnion(pool)
            }
            taken.formUnion(newly)
        }
        return balanced(uses)
    }

    /// Where near and far memory came to the same NIC one after the other, all of them get their part of it.
    private func balanced(_ uses: [[Assignment.Use]]) -> [[Assignment.Use]] {
        var total = [Double](repeating: 0, count: speeds.count)
        for use in uses.joined() { total[use.nic] += use.share }
        return uses.map { uses in
            uses.map { use in
                var use = use
                use.share /= max(1, total[use.nic])
                return use
            }
        }
    }

    private func divide(_ pool: [Int], among members: [Int], _ uses: inout [[Assignment.Use]]) {
        let rails = Rail.join(local: members.map { _ in 1 }, remote: pool.map { speeds[$0] })
        let total = pool.reduce(0.0) { $0 + Double(speeds[$1]) }
        var start: UInt32 = 0
        for rail in rails {
            let (member, nic) = (members[rail.local], pool[rail.remote])
            let width = Double(rail.end - start) / Double(Rail.scale) * total
            start = rail.end
            // What rounding of the scale leaves is not a share.
            let share = width / Double(speeds[nic])
            guard share > 0.001 else { continue }
            uses[member].append(
                Assignment.Use(nic: nic, distance: distances[member][nic], share: min(1, share)))
        }
    }

    /// A number of NICs for each memory; who uses a NIC gets an equal part of it.
    func nearest(_ count: Int) -> [[Assignment.Use]] {
        var chosen = [[Int]](repeating: [], count: distances.count)
        var loads = [Int](repeating: 0, count: speeds.count)
        for _ in 0..<max(0, min(count, nics.count)) {
            for member in distances.indices {
                let free = nics.filter { !chosen[member].contains($0) }
                guard
                    let nic = free.min(by: { left, right in
                        let (near, far) = (distances[member][left], distances[member][right])
                        return near == far ? (loads[left], left) < (loads[right], right) : near < far
                    })
                else { continue }
                chosen[member].append(nic)
                loads[nic] += 1
            }
        }
        return chosen.indices.map { member in
            chosen[member].map {
                Assignment.Use(nic: $0, distance: distances[member][$0], share: 1 / Double(loads[$0]))
            }
        }
    }
}
