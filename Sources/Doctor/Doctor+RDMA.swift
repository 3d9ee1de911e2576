// RDMA devices: reachable, linked, addressed.
extension Doctor {
    private static let devices = "/sys/class/infiniband"

    /// The names of all RDMA devices.
    func rdmaDevices() -> [String] { tree.names(in: Self.devices) }

    /// All about one device.
    func rdma(_ device: String) -> [Finding] {
        let folder = "\(Self.devices)/\(device)"
        var findings = tree.names(in: "\(folder)/ports").flatMap { port(device, "\(folder)/ports/\($0)", $0) }
        if let narrow = busWidth(device, "\(folder)/device") { findings.append(narrow) }
        return findings
    }

    private func port(_ device: String, _ folder: String, _ number: String) -> [Finding] {
        let name = "\(device) port \(number)"
        guard let state = tree.text("\(folder)/state") else { return [] }
        guard state.hasSuffix("ACTIVE") else {
            return [
                finding(
                    .error, .rdmaPortDown, "\(name) is \(state.drop { !$0.isLetter })",
                    cost: "engines refuse to open it: 'the port is down'",
                    do: interface(folder).map { "ip link set \($0) up && ibstat \(device)" }
                        ?? "ibstat \(device)")
            ]
        }
        let rate = tree.text("\(folder)/rate") ?? "unknown speed"
        let layer = tree.text("\(folder)/link_layer") ?? ""
        if layer == "Ethernet" {
            return [address(name, folder, rate), pathMTU(name, folder)].compactMap(\.self)
        }
        if layer == "InfiniBand", tree.text("\(folder)/lid").map({ ["0x0", "0"].contains($0) }) == true {
            return [
                finding(
                    .error, .rdmaNoLID, "\(name) has no address on its subnet",
                    cost: "no peer can be reached: no subnet manager runs",
                    do: "systemctl enable --now opensm   # on one host of the subnet, or in the switch")
            ]
        }
        return [good("rdma", "\(name) is active, \(rate)")]
    }

    /// The network interface of a RoCE port.
    private func interface(_ folder: String) -> String? {
        tree.names(in: "\(folder)/gid_attrs/ndevs").lazy.compactMap {
            self.tree.text("\(folder)/gid_attrs/ndevs/\($0)")
        }.first { !$0.isEmpty }
    }

    // MARK: RoCE

    private func address(_ name: String, _ folder: String, _ rate: String) -> Finding {
        let routed = tree.names(in: "\(folder)/gids").filter { index in
            guard let gid = tree.text("\(folder)/gids/\(index)"),
                gid.contains(where: { $0 != "0" && $0 != ":" })
            else { return false }
            return tree.text("\(folder)/gid_attrs/types/\(index)") == "RoCE v2" && !gid.hasPrefix("fe80")
        }
        if let index = routed.min(by: { (Int($0) ?? 0) < (Int($1) ?? 0) }) {
            return good("rdma", "\(name) is active, \(rate), RoCE v2 at GID \(index)")
        }
        let interface = interface(folder) ?? "INTERFACE"
        return finding(
            .warning, .gidLocalOnly, "\(name) has no RoCE v2 address that a router forwards",
            cost: "peers outside this subnet cannot be reached; some switches drop RoCE v1",
            do: "ip addr add 10.0.0.1/24 dev \(interface)   # an address of its own for each NIC")
    }

    private func pathMTU(_ name: String, _ folder: String) -> Finding? {
        guard let interface = interface(folder), let mtu = tree.number("/sys/class/net/\(interface)/mtu"),
            mtu < 4200
        else { return nil }
        let path = [2048, 1024, 512, 256].first { $0 + 90 <= mtu } ?? 256
        return finding(
            .warning, .roceMTUSmall,
            "\(name) sends packets of \(path) bytes: \(interface) has an MTU of \(mtu)",
            cost: "about 1 % more headers and 4 times the packets: small NICs and soft-RoCE become slower",
            do: "ip link set \(interface) mtu 9000   # only if all switches and peers take it")
    }

    // MARK: The bus

    /// A link to the processor that is narrower or slower than both ends could have.
    private func busWidth(_ device: String, _ folder: String) -> Finding? {
        guard let width = tree.number("\(folder)/current_link_width"),
            let most = tree.number("\(folder)/max_link_width"),
            let speed = tree.text("\(folder)/current_link_speed"),
            let fastest = tree.text("\(folder)/max_link_speed"),
            width > 0, width < most || gigatransfers(speed) < gigatransfers(fastest)
        else { return nil }
        return finding(
            .warning, .pcieNarrow,
            "\(device) has a PCIe link of \(width) lanes at \(speed); it could have \(most) at \(fastest)",
            cost: "the NIC is slower than its port by that factor",
            do: "lspci -vv -s $(basename $(readlink /sys/class/infiniband/\(device)/device)) | grep LnkSta"
                + "   # seat the card anew; look at the slot")
    }

    private func gigatransfers(_ text: String) -> Double {
        Double(text.prefix { $0.isNumber || $0 == "." }) ?? 0
    }
}
