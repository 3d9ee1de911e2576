// Libraries, device files, and what lets NICs reach the memory of GPUs.
extension Doctor {
    func libraries(_ devices: [String]) -> [Finding] { [libfabric(devices)] + verbs(devices) }

    private func libfabric(_ devices: [String]) -> Finding {
        guard let version = tree.fact("libfabric") else {
            return good("libfabric", "libfabric is not known of")
        }
        if version == "missing" {
            return finding(
                .warning, .libfabricMissing, "libfabric cannot be loaded",
                cost: "no TCP between hosts, no EFA", do: "apt-get install libfabric1")
        }
        let providers = (tree.fact("libfabric_providers") ?? "").split(separator: ",").map(String.init)
        let hasEFA = devices.contains {
            tree.text("/sys/class/infiniband/\($0)/node_type")?.contains("unspec") == true
        }
        if hasEFA, !providers.contains("efa") {
            return finding(
                .error, .libfabricWithoutEFA,
                "libfabric \(version) has no provider for the EFA of this machine",
                cost: "EFA cannot be used: transfers go over TCP, a tenth of the speed",
                do: "export LD_LIBRARY_PATH=/opt/amazon/efa/lib   # installed by the AWS EFA installer")
        }
        if hasEFA, isBefore(version, 1, 22) {
            return finding(
                .error, .libfabricOld, "libfabric is \(version)",
                cost: "the provider needs 1.22 for EFA: it is not offered",
                do: "install a newer AWS EFA installer")
        }
        if isBefore(version, 1, 17) {
            return finding(
                .warning, .libfabricOld, "libfabric is \(version)",
                cost: "older than any that was tested (1.17)", do: "apt-get install libfabric1")
        }
        return good("libfabric", "libfabric \(version): \(providers.joined(separator: ", "))")
    }

    private func isBefore(_ version: String, _ major: Int, _ minor: Int) -> Bool {
        let numbers = version.split(separator: ".").compactMap { Int($0.prefix { $0.isNumber }) }
        guard numbers.count >= 2 else { return false }
        return (numbers[0], numbers[1]) < (major, minor)
    }

    private func verbs(_ devices: [String]) -> [Finding] {
        guard !devices.isEmpty else { return [] }
        var findings: [Finding] = []
        if !tree.names(in: "/dev/infiniband").contains(where: { $0.hasPrefix("uverbs") }) {
            findings.append(
                finding(
                    .error, .rdmaNoAccess,
                    "there are RDMA devices, and no /dev/infiniband/uverbs* that may be opened",
                    cost: "RDMA cannot be used here",
                    do: "docker run --device /dev/infiniband   # on a host: modprobe ib_uverbs"))
        }
        if tree.fact("libibverbs") == "missing" {
            findings.append(
                finding(
                    .error, .libibverbsMissing, "libibverbs cannot be loaded",
                    cost: "RDMA NICs cannot be used", do: "apt-get install libibverbs1 ibverbs-providers"))
        }
        return findings
    }

    /// Whether NICs may write into the memory of NVIDIA's GPUs.
    func deviceMemory(_ devices: [String]) -> [Finding] {
        guard let driver = tree.text("/proc/driver/nvidia/version"), !devices.isEmpty else { return [] }
        if tree.exists("/sys/module/nvidia_peermem") {
            return [good("gpu-memory", "nvidia_peermem is loaded")]
        }
        let isOpen = driver.contains("Open Kernel Module")
        if isOpen, !kernelIsBefore(5, 12) {
            return [good("gpu-memory", "the kernel and NVIDIA's open driver have dma-buf")]
        }
        return [
            finding(
                .error, .gpuMemoryUnreachable,
                "neither nvidia_peermem nor dma-buf (\(isOpen ? "the kernel is older than 5.12" : "not NVIDIA's open driver"))",
                cost: "registering GPU memory fails; through host memory it is copied twice",
                do: "modprobe nvidia_peermem")
        ]
    }

    private func kernelIsBefore(_ major: Int, _ minor: Int) -> Bool {
        tree.text("/proc/sys/kernel/osrelease").map { isBefore($0, major, minor) } ?? false
    }
}
