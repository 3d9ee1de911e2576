import Testing
import Topology

/// Machines made up for a single question.
@Suite struct AssignmentTests {
    private let host = Machine.Bridge(id: 1, isHost: true)

    private func nodes(_ count: Int, cores: Int = 4) -> [Machine.Node] {
        (0..<count).map { node in
            Machine.Node(number: node, byteCount: 1 << 30, cores: (0..<cores).map { [node * cores + $0] })
        }
    }

    private func gpus(_ count: Int, node: Int? = 0, bridges: [Machine.Bridge]) -> [Machine.Device] {
        (0..<count).map { Machine.Device(name: "gpu\($0)", node: node, bridges: bridges) }
    }

    private func nic(_ name: String, _ speed: Double? = nil, node: Int? = 0, bridges: [Machine.Bridge] = [])
        -> Machine.Device
    { Machine.Device(name: name, node: node, bridges: bridges, gigabitsPerSecond: speed) }

    /// 400 and 100 Gbit/s for two GPUs are 250 for each: one has a part of the fast one, the other the rest of it and the
    /// slow one.
    @Test func speedsAreDivided() {
        let machine = Machine(
            nodes: nodes(1), gpus: gpus(2, bridges: [host]),
            nics: [nic("fast", 400, bridges: [host]), nic("slow", 100, bridges: [host])])
        #expect(
            Array(table(Assignment(of: machine), machine).prefix(2)) == [
                "gpu0: fast 63%, same host bridge", "gpu1: fast 37% slow 100%, same host bridge",
            ])
        check(machine)
    }

    /// Three equal NICs for two GPUs: one and a half for each.
    @Test func theMiddleOneIsShared() {
        let machine = Machine(
            nodes: nodes(1), gpus: gpus(2, bridges: [host]),
            nics: (0..<3).map { nic("n\($0)", bridges: [host]) })
        #expect(
            Array(table(Assignment(of: machine), machine).prefix(2)) == [
                "gpu0: n0 100% n1 50%, same host bridge", "gpu1: n1 50% n2 100%, same host bridge",
            ])
        check(machine)
    }

    /// One GPU has a NIC behind its own switch. The other finds three in its node, and takes the two that nobody has.
    @Test func whatOthersAreNearerToIsLeftToThem() {
        let inner = Machine.Bridge(id: 2, isHost: false)
        let machine = Machine(
            nodes: nodes(1),
            gpus: [
                Machine.Device(name: "gpu0", node: 0, bridges: [host, inner]),
                Machine.Device(name: "gpu1", node: 0, bridges: [Machine.Bridge(id: 9, isHost: true)]),
            ],
            nics: [nic("near", bridges: [host, inner]), nic("a"), nic("b")])
        #expect(
            Array(table(Assignment(of: machine), machine).prefix(2)) == [
                "gpu0: near 100%, same PCIe switch", "gpu1: a 100% b 100%, same NUMA node",
            ])
        check(machine)
    }

    /// A NIC that is farther from every GPU than another one is left over, and said to be.
    @Test func farNICsAreSpare() {
        let machine = Machine(
            nodes: nodes(2), gpus: gpus(1, bridges: [host]),
            nics: [nic("near", bridges: [host]), nic("far", node: 1)])
        let assignment = Assignment(of: machine)
        #expect(assignment.rows[0].uses.map(\.nic) == [0])
        #expect(assignment.spare == [1])
        check(machine)
    }

    /// A switch within a switch: what is under the inner one is nearer than what is under the outer one.
    @Test func innerSwitchesAreNearer() {
        let outer = Machine.Bridge(id: 2, isHost: false)
        let inner = Machine.Bridge(id: 3, isHost: false)
        let gpu = gpus(1, bridges: [host, outer, inner])[0]
        let distances = [
            Distance(from: gpu, to: nic("a", bridges: [host, outer, inner])),
            Distance(from: gpu, to: nic("b", bridges: [host, outer])),
            Distance(from: gpu, to: nic("c", bridges: [host])), Distance(from: gpu, to: nic("d")),
            Distance(from: gpu, to: nic("e", node: nil)), Distance(from: gpu, to: nic("f", node: 1)),
        ]
        #expect(distances == distances.sorted() && Set(distances).count == distances.count)
        #expect(
            distances.map(\.common) == [.pcieSwitch, .pcieSwitch, .hostBridge, .node, .unknown, .machine])
    }

    /// With fewer cores than threads, threads share, and it is said.
    @Test func coresRunOut() {
        let machine = Machine(
            nodes: nodes(1, cores: 3), gpus: gpus(2, bridges: [host]), nics: [nic("n", bridges: [host])])
        let rows = Assignment(of: machine).rows
        #expect(rows[0].hasOwnCores && !rows[1].hasOwnCores)
        #expect([rows[0].worker, rows[0].watcher, rows[1].worker, rows[1].watcher] == [1, 2, 0, 1])
    }

    /// No GPU: the NUMA nodes are the devices. No NIC: nobody has one. Nothing at all: no rows.
    @Test func edges() {
        let hosts = Machine(nodes: nodes(2), gpus: [], nics: [nic("a"), nic("b", node: 1)])
        #expect(
            table(Assignment(of: hosts), hosts) == [
                "node0: a 100%, same NUMA node", "node1: b 100%, same NUMA node",
            ])
        #expect(Assignment(of: hosts).spare == [])
        let none = Machine(nodes: nodes(1), gpus: gpus(2, bridges: [host]), nics: [])
        #expect(Assignment(of: none).rows.allSatisfy { $0.uses.isEmpty })
        #expect(Assignment(of: Machine(nodes: [], gpus: [], nics: [])).rows.isEmpty)
    }

    /// Random machines keep what is promised.
    @Test(arguments: 0..<200) func anyMachine(_ seed: UInt64) {
        var random = Sequence(state: seed &* 0x9E37_79B9_7F4A_7C15 | 1)
        func number(_ range: Range<Int>) -> Int {
            Int(random.next() % UInt64(range.count)) + range.lowerBound
        }
        let nodeCount = number(1..<4)
        func device(_ name: String) -> Machine.Device {
            let root = number(0..<4)
            var bridges = [Machine.Bridge(id: root, isHost: true)]
            for level in 0..<number(0..<3) {
                bridges.append(Machine.Bridge(id: 100 + root * 10 + level, isHost: false))
            }
            let speeds: [Double?] = [nil, 100, 200, 400]
            return Machine.Device(
                name: name, node: root < 3 ? root % nodeCount : nil,
                bridges: number(0..<8) == 0 ? [] : bridges, gigabitsPerSecond: speeds[number(0..<4)])
        }
        let machine = Machine(
            nodes: nodes(nodeCount), gpus: (0..<number(0..<9)).map { device("gpu\($0)") },
            nics: (0..<number(1..<17)).map { device("nic\($0)") })
        check(machine)
        check(machine, without: [0])
    }

    private struct Sequence: RandomNumberGenerator {
        var state: UInt64
        mutating func next() -> UInt64 {
            state ^= state << 13
            state ^= state >> 7
            state ^= state << 17
            return state
        }
    }
}
