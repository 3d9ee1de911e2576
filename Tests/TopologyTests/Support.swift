import Testing
import Topology

/// A machine of `machines/`.
func machine(_ name: String) throws -> Machine {
    let folder = #filePath.split(separator: "/").dropLast().joined(separator: "/")
    return try Machine.read(xml: "/\(folder)/machines/\(name).xml")
}

/// A row in a line: `gpu0: rdmap16s27 50%, same host bridge`.
func text(_ row: Assignment.Row, _ machine: Machine) -> String {
    let uses = row.uses.map { use in
        "\(machine.nics[use.nic].name) \(Int((use.share * 100).rounded()))%"
    }
    let distances = row.uses.map(\.distance.description)
    let far = Set(distances).count == 1 ? distances[0] : distances.joined(separator: " / ")
    return "\(row.name): \(uses.joined(separator: " ")), \(far)"
}

func table(_ assignment: Assignment, _ machine: Machine) -> [String] {
    assignment.rows.map { text($0, machine) }
}

/// What must hold on every machine: everybody has a NIC if there is one, no NIC is used by somebody who has a nearer one
/// that it does not use, no NIC is left out where it is the nearest of somebody, and no NIC is given away twice.
func check(
    _ machine: Machine, without excluded: Set<Int> = [], sourceLocation: SourceLocation = #_sourceLocation
) {
    let assignment = Assignment(of: machine, without: excluded)
    let usable = machine.nics.indices.filter { !excluded.contains($0) }
    var shares = [Double](repeating: 0, count: machine.nics.count)
    for (gpu, row) in zip(machine.gpus, assignment.rows) {
        let distances = usable.map { Distance(from: gpu, to: machine.nics[$0]) }
        #expect(row.uses.isEmpty == usable.isEmpty, "\(row.name) has NICs", sourceLocation: sourceLocation)
        for use in row.uses {
            #expect(
                use.distance == distances.min(), "\(row.name) takes its nearest",
                sourceLocation: sourceLocation)
            #expect(!excluded.contains(use.nic), sourceLocation: sourceLocation)
            shares[use.nic] += use.share
        }
        for (nic, distance) in zip(usable, distances) where distance == distances.min() {
            #expect(!assignment.spare.contains(nic), "nic\(nic) is left out", sourceLocation: sourceLocation)
        }
    }
    for nic in usable where !assignment.spare.contains(nic) && !machine.gpus.isEmpty {
        #expect(abs(shares[nic] - 1) < 0.01, "nic\(nic) is given away once", sourceLocation: sourceLocation)
    }
}
