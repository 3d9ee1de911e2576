import Doctor
import Foundation

/// A system in a directory of its own, which goes when nobody needs it any more.
final class Fixture {
    let root: String

    /// The healthy system, with some files changed; nil takes a file away, and everything below it.
    init(_ changes: [String: String?] = [:]) throws {
        root = NSTemporaryDirectory() + "doctor-\(UUID().uuidString)"
        var files: [String: String] = healthy
        for (path, text) in changes {
            if let text {
                files[path] = text
            } else {
                files = files.filter { $0.key != path && !$0.key.hasPrefix(path + "/") }
            }
        }
        for (path, text) in files {
            let file = URL(fileURLWithPath: root + path)
            try FileManager.default.createDirectory(
                at: file.deletingLastPathComponent(), withIntermediateDirectories: true)
            try Data((text + "\n").utf8).write(to: file)
        }
    }

    deinit { try? FileManager.default.removeItem(atPath: root) }

    func examine() -> [Finding] { Doctor(SystemTree(root: root)).examine() }
}

/// A host with one ConnectX (RoCE) and a GPU, where everything is as it should be.
let healthy: [String: String] = [
    SystemTree.factsPath:
        "clock=synchronized\nlibfabric=1.22.0\nlibfabric_providers=tcp,udp,shm\nlibibverbs=ok\nprocess_vm_writev=ok",
    "/proc/self/limits": """
    Limit                     Soft Limit           Hard Limit           Units
    Max open files            65536                1048576              files
    Max locked memory         unlimited            unlimited            bytes
    """,
    "/proc/self/status": "Name:\tte\nCapEff:\t0000000000000000\nCpus_allowed_list:\t0-63",
    "/proc/self/cgroup": "0::/",
    "/sys/fs/cgroup/cpu.max": "max 100000",
    "/sys/fs/cgroup/memory.max": "max",
    "/proc/mounts": "tmpfs /dev/shm tmpfs rw,nosuid,nodev,inode64 0 0",
    "/proc/meminfo": "MemTotal: 1000 kB\nHugePages_Total: 8192\nHugePages_Free: 4096\nHugepagesize: 2048 kB",
    "/proc/sys/kernel/yama/ptrace_scope": "0",
    "/proc/sys/kernel/osrelease": "6.1.0-25-amd64",
    "/proc/driver/nvidia/version":
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  550.90.07  Release Build",
    "/sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never",
    "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "performance",
    "/sys/devices/system/cpu/cpu1/cpufreq/scaling_governor": "performance",
    "/sys/devices/system/clocksource/clocksource0/current_clocksource": "tsc",
    "/sys/class/net/eth0/device/vendor": "0x15b3",
    "/sys/class/net/eth0/carrier": "1",
    "/sys/class/net/eth0/operstate": "up",
    "/sys/class/net/eth0/mtu": "9000",
    "/sys/class/infiniband/mlx5_0/node_type": "1: CA",
    "/sys/class/infiniband/mlx5_0/ports/1/state": "4: ACTIVE",
    "/sys/class/infiniband/mlx5_0/ports/1/rate": "400 Gb/sec (4X NDR)",
    "/sys/class/infiniband/mlx5_0/ports/1/link_layer": "Ethernet",
    "/sys/class/infiniband/mlx5_0/ports/1/gids/0": "fe80:0000:0000:0000:0000:00ff:fe00:0001",
    "/sys/class/infiniband/mlx5_0/ports/1/gids/3": "0000:0000:0000:0000:0000:ffff:0a00:0001",
    "/sys/class/infiniband/mlx5_0/ports/1/gids/4": "0000:0000:0000:0000:0000:0000:0000:0000",
    "/sys/class/infiniband/mlx5_0/ports/1/gid_attrs/types/0": "IB/RoCE v1",
    "/sys/class/infiniband/mlx5_0/ports/1/gid_attrs/types/3": "RoCE v2",
    "/sys/class/infiniband/mlx5_0/ports/1/gid_attrs/ndevs/0": "eth0",
    "/sys/class/infiniband/mlx5_0/ports/1/gid_attrs/ndevs/3": "eth0",
    "/sys/class/infiniband/mlx5_0/device/current_link_width": "16",
    "/sys/class/infiniband/mlx5_0/device/max_link_width": "16",
    "/sys/class/infiniband/mlx5_0/device/current_link_speed": "32.0 GT/s PCIe",
    "/sys/class/infiniband/mlx5_0/device/max_link_speed": "32.0 GT/s PCIe",
    "/sys/bus/pci/devices/0000:17:00.0/vendor": "0x15b3",
    "/sys/bus/pci/devices/0000:17:00.0/device": "0x1021",
    "/sys/bus/pci/devices/0000:17:00.0/class": "0x020000",
    "/dev/infiniband/uverbs0": "",
]
