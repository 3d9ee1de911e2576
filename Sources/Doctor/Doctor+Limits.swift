// What the process may use: locked memory, files, processors, memory of its control group.
extension Doctor {
    func limits(hasRDMA: Bool) -> [Finding] {
        [lockedMemory(hasRDMA: hasRDMA), openFiles()] + controlGroup()
    }

    /// A limit of this process: nil when it is not told, `.max` when there is none.
    private func limit(_ name: String) -> Int? {
        guard let value = tree.value(of: name, in: "/proc/self/limits")?.split(separator: " ").first else {
            return nil
        }
        return value == "unlimited" ? .max : Int(value)
    }

    private func lockedMemory(hasRDMA: Bool) -> Finding {
        guard let limit = limit("Max locked memory") else {
            return finding(
                .note, .memlockUnknown, "the limit of locked memory is not told",
                cost: "registering memory may fail", do: "ulimit -l")
        }
        // CAP_IPC_LOCK
        if limit == .max || hasCapability(14) { return good("memlock", "memory may be locked without limit") }
        let summary = "at most \(limit >> 10) KiB of memory may be locked"
        guard hasRDMA else { return good("memlock", summary + "; without RDMA devices nothing is locked") }
        return finding(
            .error, .memlockLow, summary,
            cost: "RDMA NICs lock all registered memory: registering more than this fails",
            do: "ulimit -l unlimited   # for good: '* - memlock unlimited' in /etc/security/limits.conf, "
                + "LimitMEMLOCK=infinity in a unit, docker run --ulimit memlock=-1")
    }

    private func openFiles() -> Finding {
        guard let limit = limit("Max open files"), limit < 4096 else {
            return good("files", "enough files may be open")
        }
        return finding(
            .warning, .filesLow, "at most \(limit) files may be open",
            cost:
                "an engine needs 3 for each engine that attaches on the same host, 1 for each region: attaching fails "
                + "with limitReached", do: "ulimit -n 65536   # LimitNOFILE=65536 in a unit")
    }

    // MARK: The control group

    private func controlGroup() -> [Finding] {
        var findings = [processorQuota(), memoryLimit()].compactMap(\.self)
        let allowed = allowedProcessors()
        if let allowed, allowed < 2 {
            findings.append(
                finding(
                    .warning, .cpusetSmall, "only \(allowed) processor may be used",
                    cost:
                        "an engine's thread and the application take turns: milliseconds instead of microseconds",
                    do: "taskset -pc 0-3 $$   # or the container's --cpuset-cpus"))
        }
        return findings.isEmpty ? [good("cgroup", "the control group limits nothing that matters")] : findings
    }

    /// A file of the own control group, version 2; of the whole tree's root in a container.
    private func controlGroupFile(_ name: String) -> String? {
        let path = tree.lines("/proc/self/cgroup").first { $0.hasPrefix("0::") }?.dropFirst(3) ?? "/"
        let own = path == "/" ? "" : String(path)
        return tree.text("/sys/fs/cgroup\(own)/\(name)") ?? tree.text("/sys/fs/cgroup/\(name)")
    }

    private func processorQuota() -> Finding? {
        let words = (controlGroupFile("cpu.max") ?? "max").split(separator: " ").map(String.init)
        guard words.count == 2, let quota = Double(words[0]), let period = Double(words[1]), period > 0 else {
            return nil
        }
        let processors = quota / period
        let rounded = (processors * 10).rounded() / 10
        return finding(
            processors < 2 ? .warning : .note, .cgroupCPU,
            "the control group may use \(rounded) processors, counted in periods of \(Int(period / 1000)) ms",
            cost:
                "when the quota is used up everything stands still until the period ends: transfers pause for up to "
                + "\(Int(period / 1000)) ms",
            do:
                "docker update --cpus 0 CONTAINER   # Kubernetes: no limits.cpu, or static CPUs (Guaranteed QoS)"
        )
    }

    private func memoryLimit() -> Finding? {
        guard let limit = controlGroupFile("memory.max").flatMap({ Int($0) }),
            let used = controlGroupFile("memory.current").flatMap({ Int($0) }), limit - used < 1 << 30
        else { return nil }
        return finding(
            .warning, .cgroupMemory,
            "the control group has \((limit - used) >> 20) MiB of memory left of \(limit >> 20) MiB",
            cost: "regions count, and shared memory too: the kernel ends the process when it is used up",
            do: "docker update --memory 0 CONTAINER   # Kubernetes: limits.memory")
    }

    /// How many processors the process may run on.
    private func allowedProcessors() -> Int? {
        guard let list = tree.value(of: "Cpus_allowed_list", in: "/proc/self/status") else { return nil }
        return list.split(separator: ",").reduce(0) { sum, part in
            let ends = part.split(separator: "-").compactMap { Int($0) }
            return sum + (ends.count == 2 ? ends[1] - ends[0] + 1 : ends.count)
        }
    }
}
