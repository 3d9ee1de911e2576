internal import ArgumentParser
internal import CPlatform
internal import Glibc
internal import Platform
internal import TransferEngine

#if Libfabric
    internal import LibfabricProvider
#endif
#if Verbs
    internal import VerbsProvider
#endif

/// `te info`.
struct Info: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Show what this machine offers: providers, NICs, and restrictions with their remedies.")

    @Flag(help: "One JSON object per line.")
    var json = false

    func run() throws {
        var report = Report(json: json)
        providers(&report)
        finish(&report)
        nics(&report)
        finish(&report)
        #if Verbs
            gids(&report)
            finish(&report)
        #endif
        system(&report)
        finish(&report)
    }

    private func finish(_ report: inout Report) {
        report.finish()
        if !json { print() }
    }

    // MARK: Providers and NICs

    private func providers(_ report: inout Report) {
        func add(_ name: String, _ status: String, _ detail: String, _ remedy: String = "") {
            report.add([
                ("kind", .text("provider")), ("name", .text(name)), ("status", .text(status)),
                ("detail", .text(detail)), ("remedy", remedy.isEmpty ? .null : .text(remedy)),
            ])
        }
        add("shm", "ready", "processes on this host")
        #if Libfabric
            if LibfabricProvider.isLoaded {
                add("libfabric", "ready", LibfabricProvider.status)
            } else {
                add("libfabric", "missing", LibfabricProvider.status, "apt-get install libfabric1")
            }
        #else
            add(
                "libfabric", "not built", "this program was built without it",
                "build with the trait Libfabric")
        #endif
        #if Verbs
            let ports = VerbsProvider.ports()
            if ports.contains(where: { $0.problem == nil }) {
                add("verbs", "ready", VerbsProvider.status)
            } else if VerbsProvider.isLoaded {
                add(
                    "verbs", "no device", VerbsProvider.status,
                    ports.first?.problem ?? "load the driver of the NIC; see 'ibv_devinfo' (ibverbs-utils)")
            } else {
                add(
                    "verbs", "missing", VerbsProvider.status,
                    "apt-get install libibverbs1 ibverbs-providers")
            }
        #else
            add("verbs", "not built", "this program was built without it", "build with the trait Verbs")
        #endif
        add("sim", "ready", "a simulated network, for tests")
    }

    private func nics(_ report: inout Report) {
        func add(
            _ provider: String, _ name: String, _ fabric: String, _ address: String, _ speed: Int?,
            posting: String = ""
        ) {
            report.add([
                ("kind", .text("nic")), ("provider", .text(provider)), ("name", .text(name)),
                ("fabric", .text(fabric)), ("address", .text(address)),
                ("mbit_per_s", speed.map(Field.integer) ?? .null), ("posting", .text(posting)),
            ])
        }
        add("shm", "shm", "shm", "this host", nil)
        #if Libfabric
            for nic in LibfabricProvider.available() {
                add(nic.provider, nic.name, nic.fabric, nic.address, Int(nic.megabitsPerSecond))
            }
        #endif
        #if Verbs
            for port in VerbsProvider.ports() {
                let address = port.choice.gid.map { port.isEthernet ? $0.text : "lid \(port.lid)" }
                add(
                    "verbs", "\(port.device) port \(port.port)", port.isEthernet ? "roce" : "infiniband",
                    address ?? port.problem ?? "-", Int(port.megabitsPerSecond),
                    posting: port.posting == .calls ? "ibv_wr_*" : "ibv_post_send")
            }
        #endif
    }

    #if Verbs
        /// Every address of every RDMA port, and why it is or is not the one that is used.
        private func gids(_ report: inout Report) {
            for port in VerbsProvider.ports() {
                for (gid, verdict) in zip(port.gids, port.choice.verdicts) {
                    report.add([
                        ("kind", .text("gid")), ("device", .text(port.device)),
                        ("port", .integer(Int(port.port))),
                        ("state", .text(port.isActive ? "active" : "down")),
                        ("mtu", .integer(port.mtuBytes)), ("index", .integer(gid.index)),
                        ("type", .text(gid.kind.rawValue)), ("address", .text(gid.text)),
                        ("verdict", .text(verdict)),
                    ])
                }
            }
        }
    #endif

    // MARK: System

    private func system(_ report: inout Report) {
        for finding in [processors(), processWrite(), hugePages(), lockedMemory()] {
            report.add([
                ("kind", .text("system")), ("name", .text(finding.name)), ("value", .text(finding.value)),
                ("remedy", finding.remedy.map(Field.text) ?? .null),
            ])
        }
    }

    private struct Finding {
        var name: String
        var value: String
        /// What to do when this restricts something.
        var remedy: String?
    }

    private func processors() -> Finding {
        let online = sysconf(Int32(_SC_NPROCESSORS_ONLN))
        let allowed = allowedProcessors().count
        var finding = Finding(name: "processors", value: "\(allowed) of \(online) allowed")
        if allowed < 2 {
            finding.remedy =
                "sender and receiver share a processor: allow two, see taskset or the container's cpuset"
        }
        return finding
    }

    /// Whether shared memory may write memory that the peer's application allocated with one copy.
    private func processWrite() -> Finding {
        let name = "process_vm_writev"
        var word: UInt64 = 1
        let error = withUnsafeMutablePointer(to: &word) { pointer -> Int in
            var source = te_range(base: UInt64(UInt(bitPattern: pointer)), length: 8)
            var target = source
            return te_write_process(getpid(), &source, &target, 1)
        }
        guard error == 8 else {
            return Finding(
                name: name, value: "forbidden: \(errorText(Int32(-error)))",
                remedy:
                    "allow it in the container's seccomp profile; until then memory from allocate() is as fast, and other "
                    + "memory goes through a ring")
        }
        guard let scope = SystemFile.number("/proc/sys/kernel/yama/ptrace_scope"), scope > 0 else {
            return Finding(name: name, value: "allowed between processes of one user", remedy: nil)
        }
        if scope < 3, SystemFile.hasCapability(19) {
            return Finding(
                name: name, value: "allowed by CAP_SYS_PTRACE (ptrace_scope \(scope))", remedy: nil)
        }
        return Finding(
            name: name, value: "restricted (ptrace_scope \(scope))",
            remedy: scope < 3
                ? "sysctl kernel.yama.ptrace_scope=0; until then memory from allocate() is as fast, and other memory goes "
                    + "through a ring"
                : "ptrace_scope 3 lasts until the next boot; memory from allocate() is as fast")
    }

    private func hugePages() -> Finding {
        let name = "huge pages"
        guard let total = SystemFile.memory("HugePages_Total"),
            let free = SystemFile.memory("HugePages_Free"),
            let size = SystemFile.memory("Hugepagesize")
        else { return Finding(name: name, value: "not supported by this kernel", remedy: nil) }
        var finding = Finding(name: name, value: "\(free) of \(total) free, \(size >> 10) KiB each")
        if free == 0 {
            finding.remedy = "sysctl vm.nr_hugepages=<number>; without them regions are in ordinary pages"
        }
        return finding
    }

    private func lockedMemory() -> Finding {
        let name = "locked memory"
        var limit = rlimit()
        guard getrlimit(__rlimit_resource_t(__RLIMIT_MEMLOCK.rawValue), &limit) == 0 else {
            return Finding(name: name, value: "unknown", remedy: nil)
        }
        guard limit.rlim_cur != rlim_t.max else {
            return Finding(name: name, value: "unlimited", remedy: nil)
        }
        return Finding(
            name: name, value: "\(limit.rlim_cur >> 10) KiB",
            remedy:
                "NICs that pin memory (efa, verbs) need 'ulimit -l unlimited' or memlock in /etc/security/limits.conf; "
                + "shm and tcp do not")
    }
}

/// Small files of /proc and /sys.
enum SystemFile {
    /// The whole text; nil when it cannot be read.
    static func text(_ path: String) -> String? {
        let file = open(path, O_RDONLY | O_CLOEXEC)
        guard file >= 0 else { return nil }
        defer { Glibc.close(file) }
        var text: [UInt8] = []
        var buffer = [UInt8](repeating: 0, count: 16384)
        while true {
            let count = read(file, &buffer, buffer.count)
            guard count > 0 else { return String(decoding: text, as: UTF8.self) }
            text.append(contentsOf: buffer.prefix(count))
        }
    }

    /// A file that holds one number.
    static func number(_ path: String) -> Int? { text(path).flatMap { Int($0.prefix { $0.isNumber }) } }

    /// A line of /proc/meminfo: bytes, or a number of pages.
    static func memory(_ name: String) -> Int? {
        guard let line = line(of: "/proc/meminfo", beginning: name + ":") else { return nil }
        let words = line.split(whereSeparator: \.isWhitespace)
        guard let value = words.first.flatMap({ Int($0) }) else { return nil }
        return words.last == "kB" ? value << 10 : value
    }

    /// Whether this process has a capability of the kernel.
    static func hasCapability(_ number: Int) -> Bool {
        guard let line = line(of: "/proc/self/status", beginning: "CapEff:"),
            let set = UInt64(line.drop { $0.isWhitespace }, radix: 16)
        else { return false }
        return set >> UInt64(number) & 1 == 1
    }

    private static func line(of path: String, beginning start: String) -> Substring? {
        text(path)?.split(separator: "\n").first { $0.hasPrefix(start) }?.dropFirst(start.count)
    }
}
