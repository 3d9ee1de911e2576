// Memory that processes of one host share, and pages.
extension Doctor {
    func sharedMemory() -> [Finding] { [sharedFiles(), processWrite(), hugePages(), transparentPages()] }

    /// Bytes of `proc/meminfo`, or a number of pages.
    private func memory(_ name: String) -> Int? {
        guard let words = tree.value(of: name + ":", in: "/proc/meminfo")?.split(separator: " "),
            let value = words.first.flatMap({ Int($0) })
        else { return nil }
        return words.last == "kB" ? value << 10 : value
    }

    private func sharedFiles() -> Finding {
        let mount = tree.lines("/proc/mounts").last {
            $0.split(separator: " ").dropFirst().first == "/dev/shm"
        }
        guard let mount else {
            return finding(
                .note, .shmMissing, "/dev/shm is not mounted",
                cost: "engines do not need it; libraries beside them may", do: "mount -t tmpfs tmpfs /dev/shm"
            )
        }
        let options = mount.split(separator: " ").dropFirst(3).first?.split(separator: ",") ?? []
        guard
            let size = options.first(where: { $0.hasPrefix("size=") }).flatMap({ Self.bytes($0.dropFirst(5)) }
            ),
            size < 1 << 30
        else { return good("shm", "/dev/shm is large enough") }
        return finding(
            .warning, .shmSmall, "/dev/shm has \(size >> 20) MiB",
            cost:
                "engines use memory files and do not need it, but libfabric's shm, NCCL and data loaders beside "
                + "them end with SIGBUS when it is full",
            do: "mount -o remount,size=16G /dev/shm   # docker run --shm-size=16g or --ipc=host")
    }

    /// `65536k` and the like.
    private static func bytes(_ text: Substring) -> Int? {
        guard let number = Int(text.prefix { $0.isNumber }) else { return nil }
        switch text.last {
        case "k", "K": return number << 10
        case "m", "M": return number << 20
        case "g", "G": return number << 30
        default: return number
        }
    }

    private func processWrite() -> Finding {
        if let fact = tree.fact("process_vm_writev"), fact != "ok" {
            return finding(
                .warning, .ptraceForbidden, "process_vm_writev is forbidden: \(fact)",
                cost:
                    "memory of the application goes through a ring of 1 MiB a peer, at about half the speed; memory "
                    + "from allocate() is as fast",
                do: "docker run --cap-add SYS_PTRACE   # or allow process_vm_writev in the seccomp profile")
        }
        // CAP_SYS_PTRACE
        guard let scope = tree.number("/proc/sys/kernel/yama/ptrace_scope"), scope > 0,
            scope == 3 || !hasCapability(19)
        else { return good("ptrace", "processes of one user may write into each other's memory") }
        return finding(
            .warning, .ptraceScope, "ptrace_scope is \(scope)",
            cost:
                "memory of the application goes through a ring of 1 MiB a peer, at about half the speed; memory from "
                + "allocate() is as fast",
            do: scope < 3
                ? "sysctl -w kernel.yama.ptrace_scope=0"
                : "echo kernel.yama.ptrace_scope=0 > /etc/sysctl.d/10-ptrace.conf   # 3 lasts until the next boot"
        )
    }

    private func hugePages() -> Finding {
        guard let total = memory("HugePages_Total"), let free = memory("HugePages_Free"),
            let size = memory("Hugepagesize")
        else { return good("hugepages", "this kernel has no huge pages") }
        if free > 0 {
            return good("hugepages", "\(free) of \(total) huge pages of \(size >> 10) KiB are free")
        }
        return finding(
            .note, total > 0 ? .hugepagesUsed : .hugepagesNone,
            total > 0 ? "all \(total) huge pages are used" : "there are no huge pages",
            cost:
                "regions are in pages of 4 KiB: registering on a NIC takes longer, and page lists miss the TLB",
            do: "sysctl -w vm.nr_hugepages=\(max(2 * total, 8192))")
    }

    private func transparentPages() -> Finding {
        let path = "/sys/kernel/mm/transparent_hugepage/enabled"
        guard let modes = tree.text(path), modes.contains("[never]") else {
            return good("thp", "transparent huge pages may be used")
        }
        return finding(
            .note, .thpNever, "transparent huge pages are off",
            cost: "memory of the application is in pages of 4 KiB",
            do: "echo madvise > \(path)")
    }
}
