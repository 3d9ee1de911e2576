/// Looks at a system for everything that makes transfers fail or slow.
///
/// ```swift
/// let findings = Doctor(SystemTree()).examine()
/// for finding in findings where finding.severity >= .warning { print(finding.summary, finding.command) }
/// ```
public struct Doctor {
    let tree: SystemTree

    /// A doctor for a system. Nothing is looked at yet.
    public init(_ tree: SystemTree) { self.tree = tree }

    /// All findings, the good ones too, in a fixed order. Reads some hundred small files.
    public func examine() -> [Finding] {
        let devices = rdmaDevices()
        return limits(hasRDMA: !devices.isEmpty) + sharedMemory() + processors() + clock()
            + networkInterfaces() + drivers(devices) + devices.flatMap(rdma) + libraries(devices)
            + deviceMemory(devices)
    }

    /// What is seen, when it is good.
    func good(_ id: String, _ summary: String) -> Finding {
        Finding(id: id, severity: .good, summary: summary)
    }

    func finding(
        _ severity: Finding.Severity, _ problem: Finding.Problem, _ summary: String, cost: String,
        do command: String
    ) -> Finding {
        Finding(
            id: problem.rawValue, severity: severity, summary: summary, cost: cost, command: command)
    }

    /// Whether the process has a capability of the kernel.
    func hasCapability(_ number: Int) -> Bool {
        guard let text = tree.value(of: "CapEff", in: "/proc/self/status"), let set = UInt64(text, radix: 16)
        else { return false }
        return set >> UInt64(number) & 1 == 1
    }
}
