internal import CHwloc
public import TransferCore

extension Machine {
    /// The machine that this runs on, or the one that a file made by `lstopo FILE.xml` describes.
    ///
    /// Takes milliseconds to a second.
    /// - Throws: `unavailable` when the hwloc library is not there, `invalidArgument` when the file is not a topology.
    public static func read(xml path: String? = nil) throws(TransferError) -> Machine {
        var objects: UnsafeMutablePointer<te_hardware>?
        var count = 0
        var reason = [CChar](repeating: 0, count: 256)
        let status = unsafe te_hardware_read(path, &objects, &count, &reason, reason.count)
        defer { unsafe te_hardware_free(objects) }
        guard status == 0 else {
            let words = String(
                decoding: reason.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
            if status == -1 {
                throw TransferError(
                    .unavailable,
                    "hwloc is not usable: \(words); install it (Debian and Ubuntu: apt install libhwloc15)")
            }
            throw TransferError(
                .invalidArgument,
                "\(path ?? "this machine") is not readable as a topology: \(words); make a file with 'lstopo FILE.xml'"
            )
        }
        return unsafe Reading(UnsafeBufferPointer(start: objects, count: count)).machine
    }
}

/// Turns hwloc's objects into a machine.
@safe private struct Reading {
    let objects: UnsafeBufferPointer<te_hardware>

    init(_ objects: UnsafeBufferPointer<te_hardware>) { unsafe self.objects = objects }

    var machine: Machine {
        let pci = indices(TE_HARDWARE_PCI)
        let gpus = pci.filter(isGPU).map(device).sorted { $0.address < $1.address }
        var nics = nics(TE_HARDWARE_RDMA)
        if nics.isEmpty { nics = self.nics(TE_HARDWARE_NETWORK) }
        return Machine(nodes: nodes(), gpus: numbered(gpus), nics: nics)
    }

    private func numbered(_ gpus: [Machine.Device]) -> [Machine.Device] {
        gpus.enumerated().map { number, gpu in
            var gpu = gpu
            gpu.name = "gpu\(number)"
            return gpu
        }
    }

    private func object(_ index: Int) -> te_hardware { unsafe objects[index] }

    private func indices(_ kind: te_hardware_kind) -> [Int] {
        unsafe objects.indices.filter { unsafe objects[$0].kind == Int32(kind.rawValue) }
    }

    /// Those above an object, the nearest first.
    private func above(_ index: Int) -> [Int] {
        var chain: [Int] = []
        var next = object(index).parent
        while next >= 0 {
            chain.append(Int(next))
            next = object(Int(next)).parent
        }
        return chain
    }

    private func hasKind(_ index: Int, _ kind: te_hardware_kind) -> Bool {
        object(index).kind == Int32(kind.rawValue)
    }

    // MARK: Processors and memory

    private func nodes() -> [Machine.Node] {
        // A processor whose core is not told is one of its own.
        let threads = Dictionary(grouping: indices(TE_HARDWARE_PROCESSOR)) { processor in
            above(processor).first { hasKind($0, TE_HARDWARE_CORE) } ?? processor
        }
        let cores = Dictionary(grouping: threads.keys.sorted()) { Int(object($0).node) }
        return indices(TE_HARDWARE_NODE).map { index in
            let number = Int(object(index).number)
            return Machine.Node(
                number: number, byteCount: object(index).memory,
                cores: (cores[number] ?? []).map { (threads[$0] ?? []).map { Int(object($0).number) } })
        }.sorted { $0.number < $1.number }
    }

    // MARK: Devices

    /// 3D controllers, other display controllers and processing accelerators are. A VGA controller is when a maker of GPUs
    /// made it and a runtime for GPUs knows it: virtual machines have a console that some runtimes' devices are listed at.
    private func isGPU(_ index: Int) -> Bool {
        let object = object(index)
        switch object.class_id {
        case 0x0302, 0x0380, 0x1200: return true
        case 0x0300:
            let makers: [UInt16] = [0x10DE, 0x1002, 0x8086]
            return makers.contains(object.vendor)
                && indices(TE_HARDWARE_ACCELERATOR).contains { self.object($0).parent == Int32(index) }
        default: return false
        }
    }

    /// One for each PCI function that has an interface of this kind; the name is the interface's.
    private func nics(_ kind: te_hardware_kind) -> [Machine.Device] {
        var nics: [Machine.Device] = []
        for index in indices(kind) {
            let place = above(index).first { hasKind($0, TE_HARDWARE_PCI) }
            var nic = device(place ?? index)
            nic.name = name(index)
            let link = place.map { object($0).link } ?? 0
            nic.gigabitsPerSecond = link > 0 ? Double(link * 8) : nil
            nics.append(nic)
        }
        return nics.sorted { ($0.address, $0.name) < ($1.address, $1.name) }
    }

    private func device(_ index: Int) -> Machine.Device {
        let object = object(index)
        let bridges = above(index).compactMap { above -> Machine.Bridge? in
            if hasKind(above, TE_HARDWARE_HOST_BRIDGE) { return Machine.Bridge(id: above, isHost: true) }
            return hasKind(above, TE_HARDWARE_BRIDGE) ? Machine.Bridge(id: above, isHost: false) : nil
        }
        return Machine.Device(
            name: name(index), model: model(index),
            address: hasKind(index, TE_HARDWARE_PCI) ? address(object) : "",
            node: object.node < 0 ? nil : Int(object.node), bridges: bridges.reversed())
    }

    private func address(_ object: te_hardware) -> String {
        func hex(_ value: Int, _ width: Int) -> String {
            let digits = String(value, radix: 16)
            return String(repeating: "0", count: width - digits.count) + digits
        }
        return "\(hex(Int(object.domain), 4)):\(hex(Int(object.bus), 2)):\(hex(Int(object.slot), 2))."
            + "\(object.function)"
    }

    private func name(_ index: Int) -> String {
        var name = object(index).name
        return unsafe withUnsafeBytes(of: &name) { unsafe text($0) }
    }

    /// What the accelerator's runtime calls it, else what the list of PCI devices does.
    private func model(_ index: Int) -> String {
        let runtime = indices(TE_HARDWARE_ACCELERATOR).first { object($0).parent == Int32(index) }
        for candidate in [runtime, index].compactMap(\.self) {
            var model = object(candidate).model
            let words = unsafe withUnsafeBytes(of: &model) { unsafe text($0) }
            if !words.isEmpty { return words }
        }
        return ""
    }

    private func text(_ bytes: UnsafeRawBufferPointer) -> String {
        let end = unsafe bytes.firstIndex(of: 0) ?? bytes.count
        return unsafe String(decoding: UnsafeRawBufferPointer(rebasing: bytes[..<end]), as: UTF8.self)
    }
}
