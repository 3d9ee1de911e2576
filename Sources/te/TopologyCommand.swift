internal import ArgumentParser
internal import Topology
internal import TransferEngine

/// `te topology`.
struct TopologyCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "topology",
        abstract: "Show GPUs, NICs and NUMA nodes, which NICs serve which memory, and where threads belong.",
        discussion: """
            Reads this machine through hwloc, or a file that 'lstopo FILE.xml' made on another one. \
            What-if: --without takes NICs away, --nics-per-gpu gives each GPU so many instead of all \
            that are \
            nearest to it.
            """)

    @Option(help: "A file made by 'lstopo FILE.xml' instead of this machine.")
    var xml: String?

    @Flag(help: "One JSON object per line.")
    var json = false

    @Option(help: "Also draw it into this file.")
    var svg: String?

    @Option(help: "NICs that are not to be used: a name, a bus address, or nic0, nic1, ... as listed.")
    var without: [String] = []

    @Option(name: .customLong("nics-per-gpu"), help: "NICs for each GPU.")
    var nicsPerGPU: Int?

    @Option(help: "Speeds that the machine does not tell or tells wrongly, in Gbit/s: NAME=NUMBER.")
    var speed: [String] = []

    func validate() throws {
        if let nicsPerGPU, nicsPerGPU < 1 || nicsPerGPU > Limits.nicsPerDevice {
            throw ValidationError("--nics-per-gpu is 1 to \(Limits.nicsPerDevice)")
        }
    }

    func run() throws {
        var machine = try Machine.read(xml: xml)
        try state(speeds: &machine)
        let excluded = try Set(without.map { try position($0, machine) })
        let assignment = Assignment(of: machine, without: excluded, nicsPerGPU: nicsPerGPU)
        var report = Report(json: json)
        list(machine, excluded, assignment, &report)
        list(assignment, machine, &report)
        if let svg { try TopologyDrawing(machine, assignment, excluded).write(to: svg) }
    }

    private func position(_ name: String, _ machine: Machine) throws -> Int {
        guard let nic = machine.nic(called: name) else {
            throw ValidationError(
                "there is no NIC '\(name)'; there are: \(machine.nics.map(\.name).joined(separator: ", "))")
        }
        return nic
    }

    private func state(speeds machine: inout Machine) throws {
        for entry in speed {
            let parts = entry.split(separator: "=")
            guard parts.count == 2, let value = Double(parts[1]), value > 0 else {
                throw ValidationError("--speed takes NAME=NUMBER, for example --speed mlx5_0=400")
            }
            machine.nics[try position(String(parts[0]), machine)].gigabitsPerSecond = value
        }
    }

    // MARK: Lists

    private func list(
        _ machine: Machine, _ excluded: Set<Int>, _ assignment: Assignment, _ report: inout Report
    ) {
        for node in machine.nodes {
            report.add([
                ("kind", .text("node")), ("name", .text("node\(node.number)")),
                ("cores", .integer(node.cores.count)), ("processors", .integer(node.cores.joined().count)),
                ("memory_gib", .number(Double(node.byteCount) / Double(1 << 30))),
            ])
        }
        finish(&report)
        for (number, nic) in machine.nics.enumerated() {
            let state =
                excluded.contains(number)
                ? "taken away"
                : assignment.spare.contains(number) ? "spare: every GPU has a nearer one" : "used"
            report.add([
                ("kind", .text("nic")), ("number", .text("nic\(number)")), ("name", .text(nic.name)),
                ("address", .text(nic.address)), ("node", nic.node.map { .text("node\($0)") } ?? .null),
                ("gbit_per_s", nic.gigabitsPerSecond.map(Field.number) ?? .null), ("state", .text(state)),
                ("model", .text(nic.model)),
            ])
        }
        finish(&report)
    }

    private func list(_ assignment: Assignment, _ machine: Machine, _ report: inout Report) {
        for (number, row) in assignment.rows.enumerated() {
            let gpu = machine.gpus.indices.contains(number) ? machine.gpus[number] : nil
            let distances = row.uses.map(\.distance.description)
            report.add([
                ("kind", .text("device")), ("name", .text(row.name)), ("address", .text(gpu?.address ?? "")),
                ("node", row.node.map { .text("node\($0)") } ?? .null),
                ("nics", .list(row.uses.map { .text(machine.nics[$0.nic].name) })),
                ("percent", .list(row.uses.map { .integer(Int(($0.share * 100).rounded())) })),
                (
                    "distance",
                    Set(distances).count == 1 ? .text(distances[0]) : .list(distances.map(Field.text))
                ),
                ("worker", row.worker.map(Field.integer) ?? .null),
                ("watcher", row.watcher.map(Field.integer) ?? .null),
                ("threads", .text(row.hasOwnCores ? "own cores" : "cores are shared")),
            ])
        }
        report.finish()
        if machine.nics.isEmpty, !json {
            print(
                "\nhwloc knows no NIC here: engines use shared memory, and TCP where there is an interface ('te info')"
            )
        }
    }

    private func finish(_ report: inout Report) {
        report.finish()
        if !json { print() }
    }
}
