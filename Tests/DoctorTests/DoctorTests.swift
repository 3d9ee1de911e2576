import Doctor
import Foundation
import Testing

/// A problem that systems have: how it looks, and what is said.
struct Problem: CustomTestStringConvertible, Sendable {
    var id: String
    var severity: Finding.Severity
    /// What is different from the healthy system.
    var changes: [String: String?]
    /// A part of the command.
    var command: String

    var testDescription: String { id }
}

private let port = "/sys/class/infiniband/mlx5_0/ports/1"

private func facts(_ changes: String) -> [String: String?] {
    [
        SystemTree.factsPath: "clock=synchronized\nlibfabric=1.22.0\nlibfabric_providers=tcp\nlibibverbs=ok\n"
            + changes
    ]
}

@Suite struct DoctorTests {
    static let problems: [Problem] = [
        Problem(
            id: "memlock-low", severity: .error,
            changes: [
                "/proc/self/limits":
                    "Max locked memory         8388608              8388608              bytes"
            ],
            command: "ulimit -l unlimited"),
        Problem(
            id: "memlock-unknown", severity: .note, changes: ["/proc/self/limits": nil], command: "ulimit -l"),
        Problem(
            id: "files-low", severity: .warning,
            changes: [
                "/proc/self/limits":
                    "Max locked memory         unlimited            unlimited            bytes\n"
                    + "Max open files            1024                 4096                 files"
            ], command: "ulimit -n 65536"),
        Problem(
            id: "cgroup-cpu", severity: .warning,
            changes: ["/proc/self/cgroup": "0::/pod", "/sys/fs/cgroup/pod/cpu.max": "150000 100000"],
            command: "--cpus 0"),
        Problem(
            id: "cgroup-memory", severity: .warning,
            changes: [
                "/sys/fs/cgroup/memory.max": "4294967296", "/sys/fs/cgroup/memory.current": "4000000000",
            ],
            command: "limits.memory"),
        Problem(
            id: "cpuset-small", severity: .warning,
            changes: ["/proc/self/status": "CapEff:\t0\nCpus_allowed_list:\t7"], command: "taskset"),
        Problem(
            id: "shm-small", severity: .warning,
            changes: ["/proc/mounts": "shm /dev/shm tmpfs rw,nosuid,size=65536k 0 0"], command: "--shm-size"),
        Problem(
            id: "shm-missing", severity: .note, changes: ["/proc/mounts": "proc /proc proc rw 0 0"],
            command: "mount"),
        Problem(
            id: "ptrace-scope", severity: .warning, changes: ["/proc/sys/kernel/yama/ptrace_scope": "1"],
            command: "kernel.yama.ptrace_scope=0"),
        Problem(
            id: "ptrace-forbidden", severity: .warning,
            changes: facts("process_vm_writev=Operation not permitted"), command: "SYS_PTRACE"),
        Problem(
            id: "hugepages-none", severity: .note,
            changes: ["/proc/meminfo": "HugePages_Total: 0\nHugePages_Free: 0\nHugepagesize: 2048 kB"],
            command: "vm.nr_hugepages=8192"),
        Problem(
            id: "hugepages-used", severity: .note,
            changes: ["/proc/meminfo": "HugePages_Total: 9000\nHugePages_Free: 0\nHugepagesize: 2048 kB"],
            command: "vm.nr_hugepages=18000"),
        Problem(
            id: "thp-never", severity: .note,
            changes: ["/sys/kernel/mm/transparent_hugepage/enabled": "always madvise [never]"],
            command: "madvise"),
        Problem(
            id: "governor", severity: .warning,
            changes: ["/sys/devices/system/cpu/cpu1/cpufreq/scaling_governor": "powersave"],
            command: "cpupower frequency-set -g performance"),
        Problem(
            id: "clocksource-slow", severity: .warning,
            changes: ["/sys/devices/system/clocksource/clocksource0/current_clocksource": "hpet"],
            command: "tsc"),
        Problem(
            id: "clock-unsynchronized", severity: .note,
            changes: [SystemTree.factsPath: "clock=unsynchronized\nlibibverbs=ok"], command: "chrony"),
        Problem(
            id: "link-down", severity: .warning, changes: ["/sys/class/net/eth0/carrier": "0"],
            command: "ethtool eth0"),
        Problem(
            id: "mtu-differs", severity: .note,
            changes: [
                "/sys/class/net/eth1/device/vendor": "0x15b3", "/sys/class/net/eth1/carrier": "1",
                "/sys/class/net/eth1/operstate": "up", "/sys/class/net/eth1/mtu": "1500",
            ], command: "ip link set eth1 mtu 9000"),
        Problem(
            id: "driver-missing", severity: .error, changes: ["/sys/class/infiniband": nil],
            command: "modprobe mlx5_ib"),
        Problem(
            id: "rdma-port-down", severity: .error, changes: ["\(port)/state": "1: DOWN"],
            command: "ip link set eth0 up"),
        Problem(
            id: "rdma-no-lid", severity: .error,
            changes: ["\(port)/link_layer": "InfiniBand", "\(port)/lid": "0x0"], command: "opensm"),
        Problem(
            id: "gid-local-only", severity: .warning, changes: ["\(port)/gids/3": nil],
            command: "ip addr add 10.0.0.1/24 dev eth0"),
        Problem(
            id: "roce-mtu-small", severity: .warning, changes: ["/sys/class/net/eth0/mtu": "1500"],
            command: "ip link set eth0 mtu 9000"),
        Problem(
            id: "pcie-narrow", severity: .warning,
            changes: ["/sys/class/infiniband/mlx5_0/device/current_link_width": "8"], command: "LnkSta"),
        Problem(
            id: "rdma-no-access", severity: .error, changes: ["/dev/infiniband": nil],
            command: "--device /dev/infiniband"),
        Problem(
            id: "libibverbs-missing", severity: .error,
            changes: [SystemTree.factsPath: "libibverbs=missing"], command: "apt-get install libibverbs1"),
        Problem(
            id: "libfabric-missing", severity: .warning,
            changes: [SystemTree.factsPath: "libfabric=missing"], command: "apt-get install libfabric1"),
        Problem(
            id: "libfabric-old", severity: .warning,
            changes: [SystemTree.factsPath: "libfabric=1.11.0\nlibfabric_providers=tcp"],
            command: "apt-get install libfabric1"),
        Problem(
            id: "libfabric-without-efa", severity: .error,
            changes: ["/sys/class/infiniband/mlx5_0/node_type": "7: unspecified"],
            command: "/opt/amazon/efa/lib"),
        Problem(
            id: "gpu-memory-unreachable", severity: .error,
            changes: ["/proc/sys/kernel/osrelease": "5.4.0-150-generic"], command: "modprobe nvidia_peermem"),
    ]

    @Test func healthIsSeen() throws {
        let findings = try Fixture().examine()
        #expect(findings.filter { $0.severity != .good } == [])
        #expect(findings.count >= 14 && findings.allSatisfy { !$0.summary.isEmpty && $0.command.isEmpty })
    }

    /// One problem, one finding - and no other: a healthy part is not accused because another one is ill.
    @Test(arguments: problems) func problemIsFound(_ problem: Problem) throws {
        let bad = try Fixture(problem.changes).examine().filter { $0.severity != .good }
        #expect(bad.map(\.id) == [problem.id])
        let finding = try #require(bad.first)
        #expect(finding.severity == problem.severity)
        #expect(finding.command.contains(problem.command), "\(finding.command)")
        #expect(!finding.cost.isEmpty && !finding.summary.isEmpty)
    }

    @Test func everyProblemHasAFixture() {
        #expect(Set(Self.problems.map(\.id)) == Set(Finding.Problem.allCases.map(\.rawValue)))
        #expect(Self.problems.count == Finding.Problem.allCases.count)
    }

    @Test func capabilitiesExcuse() throws {
        let capable = "CapEff:\t00000000000c4000\nCpus_allowed_list:\t0-3"  // IPC_LOCK, SYS_PTRACE
        let findings = try Fixture([
            "/proc/self/status": capable, "/proc/sys/kernel/yama/ptrace_scope": "1",
            "/proc/self/limits": "Max locked memory         65536                65536                bytes",
        ]).examine()
        #expect(findings.filter { $0.severity != .good } == [])
    }

    /// Without RDMA devices a low limit of locked memory harms nobody.
    @Test func whatIsNotUsedIsNotAccused() throws {
        let findings = try Fixture([
            "/sys/class/infiniband": nil, "/sys/bus": nil, "/dev/infiniband": nil,
            "/proc/self/limits": "Max locked memory         65536                65536                bytes",
        ]).examine()
        #expect(findings.filter { $0.severity != .good } == [])
    }

    /// What was captured is diagnosed as the original.
    @Test(arguments: problems) func captureIsFaithful(_ problem: Problem) throws {
        let fixture = try Fixture(problem.changes)
        let tree = SystemTree(root: fixture.root)
        let findings = Doctor(tree).examine()
        let copy = NSTemporaryDirectory() + "doctor-\(UUID().uuidString)"
        defer { try? FileManager.default.removeItem(atPath: copy) }
        #expect(tree.capture(to: copy))
        #expect(Doctor(SystemTree(root: copy)).examine() == findings)
    }

    /// Nothing there, or rubbish in every file: no trap.
    @Test func anythingIsReadable() throws {
        #expect(!Doctor(SystemTree(root: "/nowhere")).examine().isEmpty)
        for rubbish in ["", "\n\n", "::::", "-1", "99999999999999999999", "a b c d e", "0::/../.."] {
            let changes = Dictionary(uniqueKeysWithValues: healthy.keys.map { ($0, String?.some(rubbish)) })
            #expect(!(try Fixture(changes).examine().isEmpty))
        }
    }

    /// This system is examined without harm, and a captured copy says the same.
    @Test func thisSystem() throws {
        let tree = SystemTree()
        let findings = Doctor(tree).examine()
        let copy = NSTemporaryDirectory() + "doctor-\(UUID().uuidString)"
        defer { try? FileManager.default.removeItem(atPath: copy) }
        #expect(tree.capture(to: copy))
        let again = Doctor(SystemTree(root: copy)).examine()
        // Free huge pages and used memory change meanwhile; what is found does not.
        #expect(again.map(\.id) == findings.map(\.id))
    }
}
