import Testing
import Topology
import TransferCore

/// Machines that exist, as hwloc saw them. Each table is what a person who knows the machine would write.
@Suite struct MachineTests {
    /// A virtual machine without switches: all devices hang on one host bridge, and it belongs to no NUMA node. All eight GPUs
    /// are equally far from the only NIC with RDMA, so each gets an eighth of it. The two NUMA nodes do not know where it is.
    @Test(arguments: ["p3dn.24xl", "g5.48xl"]) func oneNICForEight(_ name: String) throws {
        let machine = try machine(name)
        #expect(machine.nics.map(\.name) == ["rdmap0s21"], "the ENA beside it has no RDMA")
        #expect(machine.gpus.allSatisfy { $0.node == nil })
        #expect(
            table(Assignment(of: machine), machine)
                == (0..<8).map { "gpu\($0): rdmap0s21 13%, same host bridge" }
                + (0..<2).map { "node\($0): rdmap0s21 50%, place unknown" })
    }

    /// Four host bridges, each with one NIC and two GPUs: half a NIC for each. Two bridges belong to each NUMA node.
    @Test func oneNICForTwo() throws {
        let machine = try machine("p4d.24xl")
        #expect(
            table(Assignment(of: machine), machine) == [
                "gpu0: rdmap16s27 50%, same host bridge", "gpu1: rdmap16s27 50%, same host bridge",
                "gpu2: rdmap32s27 50%, same host bridge", "gpu3: rdmap32s27 50%, same host bridge",
                "gpu4: rdmap144s27 50%, same host bridge", "gpu5: rdmap144s27 50%, same host bridge",
                "gpu6: rdmap160s27 50%, same host bridge", "gpu7: rdmap160s27 50%, same host bridge",
                "node0: rdmap16s27 100% rdmap32s27 100%, same NUMA node",
                "node1: rdmap144s27 100% rdmap160s27 100%, same NUMA node",
            ])
    }

    /// Eight switches, each with four NICs and one GPU: four NICs for each, nobody shares.
    @Test func fourNICsForEach() throws {
        let machine = try machine("p5.48xl")
        let first = [79, 96, 113, 130, 147, 164, 181, 198]
        let expected = first.enumerated().map { gpu, bus in
            let nics = (bus..<bus + 4).map { "rdmap\($0)s0 100%" }.joined(separator: " ")
            return "gpu\(gpu): \(nics), same PCIe switch"
        }
        #expect(Array(table(Assignment(of: machine), machine).prefix(8)) == expected)
        #expect(machine.nics.count == 32)
    }

    /// Four switches, each with four NICs and two GPUs: two NICs for each, whole ones, so that nobody shares.
    @Test func fourNICsForTwo() throws {
        let machine = try machine("p5en.48xl")
        let first = [85, 87, 110, 112, 135, 137, 160, 162]
        let expected = first.enumerated().map { gpu, bus in
            "gpu\(gpu): rdmap\(bus)s0 100% rdmap\(bus + 1)s0 100%, same PCIe switch"
        }
        #expect(Array(table(Assignment(of: machine), machine).prefix(8)) == expected)
        #expect(machine.nics.allSatisfy { ($0.gigabitsPerSecond ?? 0) > 200 }, "PCIe 5, 8 lanes: 252 Gbit/s")
    }

    /// Every GPU has a host bridge of its own, and the only NIC has another. It belongs to the first NUMA node: near to the GPUs
    /// there, far from the others - but these have no nearer one. All share it.
    @Test func oneNICOnTheFirstNode() throws {
        let machine = try machine("g6.48xl")
        #expect(
            table(Assignment(of: machine), machine)
                == (0..<4).map { "gpu\($0): rdmap150s0 13%, same NUMA node" }
                + (4..<8).map { "gpu\($0): rdmap150s0 13%, other NUMA node" }
                + ["node0: rdmap150s0 50%, same NUMA node", "node1: rdmap150s0 50%, other NUMA node"])
    }

    static let names = ["p3dn.24xl", "p4d.24xl", "p5.48xl", "p5en.48xl", "g5.48xl", "g6.48xl"]

    @Test(arguments: names) func assignmentsAreFair(_ name: String) throws {
        let machine = try machine(name)
        #expect(machine.gpus.count == 8 && machine.nodes.count == 2)
        check(machine)
        for nic in machine.nics.indices { check(machine, without: [nic]) }
    }

    /// Each GPU's two threads are on its own node, on cores of their own, away from the machine's first core.
    @Test(arguments: names) func threadsHaveCores(_ name: String) throws {
        let machine = try machine(name)
        let rows = Assignment(of: machine).rows.prefix(8)
        let used = rows.flatMap { [$0.worker, $0.watcher].compactMap(\.self) }
        #expect(used.count == 16 && Set(used).count == 16 && !used.contains(0))
        for row in rows {
            #expect(row.hasOwnCores)
            guard let node = row.node else { continue }
            let cores = try #require(machine.nodes.first { $0.number == node }).cores
            #expect(
                cores.contains { $0.contains(row.worker ?? -1) }
                    && cores.contains { $0.contains(row.watcher ?? -1) })
        }
        // Where the machine does not say, the nodes take turns.
        if machine.gpus[0].node == nil {
            let first = Set(machine.nodes[0].cores.joined())
            #expect(rows.count { first.contains($0.worker ?? -1) } == 4)
        }
    }

    /// Without one of its four NICs a GPU goes on with three; nobody else notices.
    @Test func whatIfANICIsGone() throws {
        let machine = try machine("p5.48xl")
        let gone = try #require(machine.nic(called: "nic5"))
        let before = Assignment(of: machine)
        let after = Assignment(of: machine, without: [gone])
        #expect(
            text(after.rows[1], machine)
                == "gpu1: rdmap96s0 100% rdmap98s0 100% rdmap99s0 100%, same PCIe switch")
        for row in before.rows.indices.prefix(8) where row != 1 {
            #expect(before.rows[row] == after.rows[row])
        }
    }

    /// Without the NIC of its bridge a pair of GPUs goes to the other NIC of its node, which four share then.
    @Test func whatIfTheOnlyNearNICIsGone() throws {
        let machine = try machine("p4d.24xl")
        let gone = try #require(machine.nic(called: "rdmap16s27"))
        let lines = table(Assignment(of: machine, without: [gone]), machine)
        #expect(
            Array(lines.prefix(5)) == [
                "gpu0: rdmap32s27 25%, same NUMA node", "gpu1: rdmap32s27 25%, same NUMA node",
                "gpu2: rdmap32s27 25%, same host bridge", "gpu3: rdmap32s27 25%, same host bridge",
                "gpu4: rdmap144s27 50%, same host bridge",
            ])
    }

    /// Two each: the near one first, then the other one of the node; each NIC is then shared by four.
    @Test func whatIfTwoAreWanted() throws {
        let machine = try machine("p4d.24xl")
        let lines = table(Assignment(of: machine, nicsPerGPU: 2), machine)
        #expect(lines[0] == "gpu0: rdmap16s27 25% rdmap32s27 25%, same host bridge / same NUMA node")
        #expect(lines[7] == "gpu7: rdmap160s27 25% rdmap144s27 25%, same host bridge / same NUMA node")
        let fewer = try self.fewer()
        #expect(fewer == "gpu0: rdmap79s0 100% rdmap80s0 100%, same PCIe switch")
    }

    private func fewer() throws -> String {
        let machine = try machine("p5.48xl")
        let assignment = Assignment(of: machine, nicsPerGPU: 2)
        #expect(assignment.spare.count == 16, "two of each four are left over, and said to be")
        return text(assignment.rows[0], machine)
    }

    @Test func whatIsNotATopologyIsSaidSo() throws {
        let error = #expect(throws: TransferError.self) { try Machine.read(xml: #filePath) }
        #expect(error?.code == .invalidArgument)
        #expect(error?.message.contains("lstopo") == true)
        let missing = #expect(throws: TransferError.self) { try Machine.read(xml: "/nowhere.xml") }
        #expect(missing?.message.contains("/nowhere.xml") == true)
    }

    /// This machine has processors, whatever else it has.
    @Test func thisMachineIsRead() throws {
        let machine = try Machine.read()
        #expect(machine.nodes.contains { !$0.cores.isEmpty && $0.byteCount > 0 })
        check(machine)
    }
}
