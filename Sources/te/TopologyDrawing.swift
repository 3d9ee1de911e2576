internal import Glibc
internal import Topology
internal import TransferEngine

/// A picture of an assignment: memory on the left, NICs on the right, a line for each use, as wide as the share.
struct TopologyDrawing {
    private let machine: Machine
    private let assignment: Assignment
    private let excluded: Set<Int>

    private let rowHeight = 30
    private let boxWidth = 250
    private let nicLeft = 560

    init(_ machine: Machine, _ assignment: Assignment, _ excluded: Set<Int>) {
        self.machine = machine
        self.assignment = assignment
        self.excluded = excluded
    }

    func write(to path: String) throws {
        guard let file = fopen(path, "w") else {
            throw TransferError(
                .invalidArgument,
                "\(path) cannot be written: \(String(cString: strerror(errno))); name another file")
        }
        let isWritten = fputs(text, file) >= 0
        guard fclose(file) == 0, isWritten else {
            throw TransferError(.limitReached, "\(path) could not be written; is the disk full?")
        }
    }

    /// SVG without scripts or fonts of its own.
    var text: String {
        let rows = max(assignment.rows.count, machine.nics.count)
        let height = rows * rowHeight + 60
        var lines = [
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 \(nicLeft + boxWidth + 20) \(height)\""
                + " font-family=\"sans-serif\" font-size=\"12\">",
            "<rect width=\"100%\" height=\"100%\" fill=\"white\"/>",
            label("memory", 20, 26, weight: "bold"), label("NICs", nicLeft, 26, weight: "bold"),
        ]
        for (number, row) in assignment.rows.enumerated() {
            for use in row.uses {
                lines.append(
                    "<line x1=\"\(20 + boxWidth)\" y1=\"\(middle(number))\" x2=\"\(nicLeft)\" y2=\"\(middle(use.nic))\""
                        + " stroke=\"\(color(use.distance))\" stroke-width=\"\(1 + Int(use.share * 4))\">"
                        + "<title>\(escaped("\(row.name) - \(machine.nics[use.nic].name): \(use.distance)"))</title></line>"
                )
            }
        }
        for (number, row) in assignment.rows.enumerated() {
            let threads = row.worker.map { " worker on \($0)" } ?? ""
            lines += box(
                20, number, "\(row.name)\(threads)", fill: row.name.hasPrefix("gpu") ? "#e2efda" : "#eeeeee")
        }
        for (number, nic) in machine.nics.enumerated() {
            let speed = nic.gigabitsPerSecond.map { " \(Int($0)) Gbit/s" } ?? ""
            let fill =
                excluded.contains(number)
                ? "#f8cbad" : assignment.spare.contains(number) ? "#ffffff" : "#ddebf7"
            lines += box(nicLeft, number, "nic\(number) \(nic.name)\(speed)", fill: fill)
        }
        return (lines + ["</svg>", ""]).joined(separator: "\n")
    }

    private func middle(_ number: Int) -> Int { 40 + number * rowHeight + rowHeight / 2 }

    private func box(_ left: Int, _ number: Int, _ words: String, fill: String) -> [String] {
        [
            "<rect x=\"\(left)\" y=\"\(43 + number * rowHeight)\" width=\"\(boxWidth)\" height=\"\(rowHeight - 6)\""
                + " rx=\"4\" fill=\"\(fill)\" stroke=\"#555555\"/>",
            label(words, left + 8, middle(number) + 4),
        ]
    }

    private func label(_ words: String, _ left: Int, _ base: Int, weight: String = "normal") -> String {
        "<text x=\"\(left)\" y=\"\(base)\" font-weight=\"\(weight)\">\(escaped(words))</text>"
    }

    private func color(_ distance: Distance) -> String {
        switch distance.common {
        case .pcieSwitch: "#2e7d32"
        case .hostBridge: "#1565c0"
        case .node: "#ef9a00"
        case .unknown: "#777777"
        case .machine: "#c62828"
        }
    }

    private func escaped(_ words: String) -> String {
        String(
            words.flatMap { character -> String in
                switch character {
                case "<": "&lt;"
                case ">": "&gt;"
                case "&": "&amp;"
                default: String(character)
                }
            })
    }
}
