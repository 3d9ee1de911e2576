// Network interfaces, and the drivers of NICs.
extension Doctor {
    private static let interfaces = "/sys/class/net"
    private static let pci = "/sys/bus/pci/devices"

    /// Interfaces with a device behind them, and `eth*`: a container's virtual one.
    func networkInterfaces() -> [Finding] {
        let names = tree.names(in: Self.interfaces).filter { name in
            tree.exists("\(Self.interfaces)/\(name)/device") || name.hasPrefix("eth")
        }
        let findings = names.compactMap(link)
        return
            (findings.isEmpty
            ? [good("link", "\(names.count) network interfaces are up or not in use")] : findings)
            + speeds(names)
    }

    /// An interface that is switched on and has no link.
    private func link(_ name: String) -> Finding? {
        let folder = "\(Self.interfaces)/\(name)"
        // carrier cannot be read while the interface is switched off.
        guard tree.number("\(folder)/carrier") == 0 else { return nil }
        return finding(
            .warning, .linkDown, "\(name) is switched on and has no link",
            cost: "transfers through it fail; with other NICs in the device these carry its share",
            do: "ethtool \(name)   # look at the cable, the transceiver and the switch's port")
    }

    private func speeds(_ names: [String]) -> [Finding] {
        let mtus = names.filter { tree.text("\(Self.interfaces)/\($0)/operstate") == "up" }
            .compactMap { name in tree.number("\(Self.interfaces)/\(name)/mtu").map { (name, $0) } }
        guard let small = mtus.min(by: { $0.1 < $1.1 }), let large = mtus.max(by: { $0.1 < $1.1 }) else {
            return []
        }
        if small.1 != large.1 {
            return [
                finding(
                    .note, .mtuDiffers, "\(small.0) has an MTU of \(small.1), \(large.0) of \(large.1)",
                    cost:
                        "the slower one costs more processor time for each byte; where one path has both, packets are "
                        + "lost that are too long",
                    do: "ip link set \(small.0) mtu \(large.1)   # only if all switches and peers take it")
            ]
        }
        return [good("mtu", "the interfaces' MTU is \(small.1)")]
    }

    // MARK: Drivers

    /// NICs on the bus that no RDMA device stands for.
    func drivers(_ devices: [String]) -> [Finding] {
        guard devices.isEmpty else { return [] }
        var findings: [Finding] = []
        var seen = Set<String>()
        for address in tree.names(in: Self.pci) {
            guard let nic = nic("\(Self.pci)/\(address)"), seen.insert(nic.module).inserted else { continue }
            findings.append(
                finding(
                    .error, .driverMissing, "\(nic.name) at \(address) has no RDMA device",
                    cost: "it can be used as an ordinary network interface only: a tenth of the speed",
                    do: "modprobe \(nic.module)   # part of \(nic.source)"))
        }
        return findings
    }

    private func nic(_ folder: String) -> (name: String, module: String, source: String)? {
        let vendor = tree.text("\(folder)/vendor")
        let device = tree.text("\(folder)/device") ?? ""
        let isNetwork = tree.text("\(folder)/class")?.hasPrefix("0x02") == true
        if vendor == "0x15b3", isNetwork { return ("a ConnectX", "mlx5_ib", "the kernel, or DOCA-OFED") }
        if vendor == "0x1d0f", device.hasPrefix("0xefa") { return ("an EFA", "efa", "the AWS EFA installer") }
        return nil
    }
}
