#if Libfabric
    import CFabricStandIn
    @testable import LibfabricProvider
    import TransferCore

    extension Target {
        /// Everything that a peer's frames, writes and lost connections can do to a domain of libfabric's.
        static let frames = Target(
            name: "frames",
            seeds: {
                var atTheEnd = FrameRecord(messageOf: 8, from: 9)
                atTheEnd.generation = 8
                let record = withUnsafeBytes(of: FrameRecord(messageOf: 8, from: 9)) { Array($0) }
                let last = withUnsafeBytes(of: atTheEnd) { Array($0) }
                let payload: [UInt8] = [1, 2, 3, 4, 5, 6, 7, 8]
                func frame(_ fixes: UInt8, _ body: [UInt8]) -> [UInt8] {
                    var bytes = [UInt8](repeating: 0, count: FrameHeader.byteCount) + body
                    let count = bytes.count
                    bytes.insert(contentsOf: [0, fixes, UInt8(count & 255), UInt8(count >> 8)], at: 0)
                    return bytes
                }
                let poll: [UInt8] = [7, 15]
                let message = frame(0b0001_1111, record + payload)
                let write = frame(0b0101_1111, record + payload)
                let posted: [UInt8] = [5, 3, 5, 4, 6, 9, 7, 15, 3]
                return [
                    message + poll, write + poll, frame(0b0101_1111, last + payload) + poll,
                    message + write + poll + poll,
                    posted + frame(0b0011_0111, []) + poll,
                    posted + [4, 5] + poll,
                    posted + frame(0b0111_1111, record) + poll + [2, 1, 2, 3, 4, 5, 6, 7, 8] + poll,
                ]
            },
            run: { bytes in FrameFuzz.shared.run(copy bytes) })
    }

    /// A domain over a stand-in for an endpoint; each input gets a new one.
    private final class FrameFuzz {
        // SAFETY: a fuzzer and the replay have one thread.
        nonisolated(unsafe) static let shared = FrameFuzz()

        private static let engine: UInt64 = 1
        private static let peer: UInt64 = 0xBEEF
        private let fabric = te_fabric_standin_new()
        private let memory = FuzzMemory(engine: 1)
        private let output = UnsafeMutableBufferPointer<Completion>.allocate(capacity: 16)
        private let key = UnsafeMutablePointer<ImportedKey>.allocate(capacity: 1)
        /// Requests posted and not completed.
        private var open = 0

        /// A fresh domain, and its tables: copied back after each input, which is faster than making new ones.
        private var fresh: (state: DomainState, tables: [(place: UnsafeMutableRawPointer, content: [UInt8])])?

        func run(_ bytes: [UInt8]) {
            guard let fabric else { return }
            if fresh == nil, let state = domain(over: fabric) { fresh = (state, Self.tables(of: state)) }
            guard let fresh else { fatalError("no domain") }
            var state = fresh.state
            state.ledgers = EpochLedgers()
            for (place, content) in fresh.tables { place.copyMemory(from: content, byteCount: content.count) }
            te_fabric_standin_reset(fabric)
            state.unposted = DomainState.firstReceive
            state.postReceives()
            var choices = Choices(bytes)
            var steps = 0
            open = 0
            while !choices.isEmpty, steps < 200 {
                steps += 1
                step(&state, fabric, &choices)
            }
        }

        private static func tables(of state: DomainState) -> [(UnsafeMutableRawPointer, [UInt8])] {
            let tables = [
                UnsafeMutableRawBufferPointer(
                    start: state.slots, count: Int(DomainState.slotCount) * MemoryLayout<OperationSlot>.stride
                ),
                UnsafeMutableRawBufferPointer(
                    start: state.sendFrames, count: Tuning.sendFrames * MemoryLayout<SendFrame>.stride),
                // An input can make so many peers.
                UnsafeMutableRawBufferPointer(start: state.peers, count: 256 * MemoryLayout<Peer>.stride),
                UnsafeMutableRawBufferPointer(start: state.listed, count: 256 * MemoryLayout<Int32>.stride),
                UnsafeMutableRawBufferPointer(start: state.writers, count: 256 * MemoryLayout<Int32>.stride),
                UnsafeMutableRawBufferPointer(start: state.rings, count: CountedWrite.ringBytes),
            ]
            return tables.compactMap { table in table.baseAddress.map { ($0, Array(table)) } }
        }

        private func domain(over fabric: OpaquePointer) -> DomainState? {
            te_fabric_standin_reset(fabric)
            guard let info = te_fabric_standin_info(fabric), let object = te_fabric_standin_fabric(fabric),
                let domain = te_fabric_standin_domain(fabric),
                let queue = te_fabric_standin_completions(fabric),
                let addresses = te_fabric_standin_addresses(fabric),
                let endpoint = te_fabric_standin_endpoint(fabric)
            else { return nil }
            let handles = FabricHandles(
                info: info, fabric: object, domain: domain, completions: queue, addresses: addresses,
                endpoint: endpoint)
            guard
                var state = try? DomainState(
                    handles: handles, options: LibfabricOptions(provider: "tcp"), page: memory.page,
                    engine: EngineID(rawValue: Self.engine), writeFlags: 0, countsWrites: true,
                    address: [UInt8](repeating: 1, count: 16), nic: "stand-in")
            else { return nil }
            let found = [UInt8](repeating: 2, count: 16).withUnsafeBytes { address in
                address.baseAddress.map { state.findPeer(engine: Self.peer, address: $0, length: 16).index }
                    ?? -1
            }
            Target.require(found == 0, "the peer is the first one")
            let nic = RemoteRegion.NIC(fabric: "tcp", address: [], megabitsPerSecond: 1, key: 2, base: 0)
            let remote = RemoteRegion(
                engine: EngineID(rawValue: Self.peer), device: 0, index: 1, generation: 1,
                access: .remoteWrite,
                length: 1 << 20, base: 0, secret: 1, nics: [nic])
            key.initialize(to: ImportedKey(remote: remote, nic: 0, peer: 0, maximumWriteBytes: 1 << 30))
            return state
        }

        private func step(_ state: inout DomainState, _ fabric: OpaquePointer, _ choices: inout Choices) {
            switch choices.byte() % 10 {
            case 0, 1: deliver(&state, fabric, &choices)
            case 2: te_fabric_standin_arrive(fabric, choices.integer())
            case 3: _ = te_fabric_standin_finish(fabric, 0)
            case 4: _ = te_fabric_standin_finish(fabric, Int32(choices.byte()))
            case 5: post(&state, Int(choices.byte()))
            case 6:
                let payload = [UInt8](repeating: 3, count: Int(choices.byte()))
                let result = payload.withUnsafeBytes { state.send($0, to: 0, context: 7) }
                open += result.accepted
            case 7: poll(&state, 1 + Int(choices.byte() % 16))
            case 9:
                // The end of a write into the ring of the first peer, which may not have asked for one.
                let place = Int(state.peers.pointee.countedArrivals % CountedWrite.sequences)
                state.rings[place &+ Int(choices.byte() & 1)] = choices.integer()
            default: te_fabric_standin_refuse(fabric, Int32(choices.byte() % 4), FI_EAGAIN)
            }
        }

        private func post(_ state: inout DomainState, _ size: Int) {
            // Short ones become records, long ones writes of their own.
            let request = WorkRequest(
                context: 7, source: UnsafeRawPointer(memory.bytes), length: size < 128 ? size : 20_000 + size,
                localKey: 0, target: UnsafePointer(key), targetOffset: 0, immediate: 5,
                eighths: UInt32(1 << (size & 3)))
            // A record is copied from its source at once; the region is shorter than a long write, which nobody reads.
            let result = withUnsafePointer(to: request) {
                state.post(UnsafeBufferPointer(start: $0, count: 1))
            }
            Target.require(result.accepted <= 1 && !result.isComplete, "more than was posted")
            open += result.accepted
        }

        private func poll(_ state: inout DomainState, _ capacity: Int) {
            let count = state.poll(UnsafeMutableBufferPointer(rebasing: output[..<capacity]))
            Target.require(count >= 0 && count <= capacity, "more completions than room")
            for completion in output.prefix(count) {
                if completion.count == 0 {
                    Target.require(
                        completion.message.count <= Tuning.frameBytes, "a message that is too long")
                    var sum: UInt8 = 0
                    for byte in completion.message { sum &+= byte }
                    Target.require(sum &+ 1 != sum, "arithmetic")
                } else {
                    Target.require(completion.context == 7, "a context that was not given")
                    open -= Int(completion.count)
                }
            }
            Target.require(open >= 0, "a request was completed twice")
        }

        /// A frame into the oldest receive buffer. Some of its fields are made right where the input says so.
        private func deliver(_ state: inout DomainState, _ fabric: OpaquePointer, _ choices: inout Choices) {
            let fixes = choices.byte()
            let length = Int(choices.integer(UInt16.self)) & 0x3FF
            var capacity = 0
            guard let buffer = te_fabric_standin_receive_buffer(fabric, &capacity), length <= capacity else {
                return
            }
            let bytes = choices.take(length)
            buffer.initializeMemory(as: UInt8.self, repeating: 0, count: length)
            buffer.copyMemory(from: bytes, byteCount: bytes.count)
            if length >= FrameHeader.byteCount {
                let header = buffer.assumingMemoryBound(to: FrameHeader.self)
                let peer = state.peers
                if fixes & 1 != 0 {
                    header.pointee.magic = FrameHeader.magic
                    header.pointee.length = UInt32(length)
                    header.pointee.receiver = Self.engine
                }
                if fixes & 2 != 0 {
                    header.pointee.to = 0
                    header.pointee.sender = Self.peer
                }
                if fixes & 4 != 0 { header.pointee.start = UInt16(FrameHeader.byteCount) }
                if fixes & 8 != 0 {
                    header.pointee.epoch = peer.pointee.inEpoch
                    header.pointee.sequence = peer.pointee.arrived
                }
                if fixes & 16 != 0 { header.pointee.ackEpoch = peer.pointee.epoch }
                if fixes & 32 != 0 { header.pointee.ack = peer.pointee.nextSequence }
                if fixes & 64 != 0, length >= FrameHeader.byteCount + FrameRecord.byteCount {
                    let record = (buffer + FrameHeader.byteCount).assumingMemoryBound(to: FrameRecord.self)
                    record.pointee.aim()
                }
                if fixes & 128 != 0 {
                    header.pointee.flags |= FrameHeader.Flag.ack
                    header.pointee.writesAck = peer.pointee.countedWrites
                }
            }
            te_fabric_standin_deliver(fabric, length)
        }
    }
#endif
