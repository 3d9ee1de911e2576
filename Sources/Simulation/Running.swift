internal import SimulatedProvider
internal import TransferCore
internal import TransferEngine

/// An operation that has been begun, and what must be true when it ends.
final class Running {
    let number: Int
    let operation: Operation
    let owner: SimulatedProcess
    private let transfer: Transfer
    private let begun: UInt64
    private var parts: [Part] = []
    private(set) var isEnded = false
    /// Whether it belongs to the check at the end, when nothing may fail any more.
    var isCheckUp = false
    private let receipt = Receipt()
    private var isCancelled = false

    /// What one target gets.
    private struct Part {
        var process: SimulatedProcess
        var grant = -1
        /// Bytes of the source for each range of the target, in order.
        var pieces: [(source: Int, target: Int, count: Int)] = []
        var counts: Int
    }

    private final class Receipt: @unchecked Sendable {
        // SAFETY: a simulation has one thread.
        var value: CancelReceipt?
    }

    private var immediate: Immediate { Immediate(truncatingIfNeeded: number + 1) }

    /// Begins an operation; nil when a target has no room left.
    init?(
        _ number: Int, _ operation: Operation, _ owner: SimulatedProcess, _ processes: [SimulatedProcess],
        _ seed: UInt64, _ now: UInt64
    ) throws(TransferError) {
        self.number = number
        self.operation = operation
        self.owner = owner
        begun = now
        var random = SeededGenerator(seed: seed &* 31 &+ UInt64(number))
        let to = processes[operation.to]
        let engine = owner.engine
        let immediate = Immediate(truncatingIfNeeded: number + 1)
        let trafficClass = Self.trafficClass(number, seed)
        switch operation.kind {
        case .write(let bytes):
            guard let part = Self.part(to, bytes, &random) else { return nil }
            parts = [part]
            transfer = try engine.write(
                from: owner.source, sourceOffset: part.pieces[0].source, byteCount: bytes,
                to: engine.attach(to.descriptor, as: trafficClass), targetOffset: part.pieces[0].target,
                immediate: immediate)
        case .pages(let count, let bytes):
            guard let part = Self.pages(to, count, bytes, &random) else { return nil }
            parts = [part.part]
            let remote = try engine.attach(to.descriptor, as: trafficClass)
            transfer = try Self.writePages(part, count, bytes, owner, remote, immediate)
        case .scatter(let bytes):
            var slices: [(slice: ScatterSlice, target: RemoteMemory)] = []
            for process in processes where process.isAlive && process !== owner {
                guard let part = Self.part(process, bytes, &random) else { return nil }
                parts.append(part)
                let piece = part.pieces[0]
                let slice = ScatterSlice(
                    sourceOffset: piece.source, byteCount: bytes, targetOffset: piece.target)
                slices.append((slice, try engine.attach(process.descriptor, as: trafficClass)))
            }
            transfer = try engine.scatter(from: owner.source, slices, immediate: immediate)
        case .immediate:
            parts = [Part(process: to, counts: 1)]
            transfer = try engine.send(immediate: immediate, to: engine.attach(to.descriptor))
        case .message(let bytes):
            var payload = [UInt8](repeating: UInt8(truncatingIfNeeded: number), count: 4 + bytes)
            for byte in 0..<4 { payload[byte] = UInt8(truncatingIfNeeded: number >> (8 * byte)) }
            transfer = try engine.send(payload, to: engine.connect(to: to.engine.address))
        case .await:
            transfer = try engine.expect(immediate, count: 1, from: [engine.connect(to: to.engine.address)])
        case .revoke:
            return nil
        }
    }

    private static func part(
        _ process: SimulatedProcess, _ bytes: Int, _ random: inout SeededGenerator
    ) -> Part? {
        guard let grant = process.grant(bytes) else { return nil }
        let source = Int.random(in: 0...(SimulatedProcess.sourceBytes - bytes), using: &random)
        let target = process.grants[grant].range.lowerBound
        return Part(process: process, grant: grant, pieces: [(source, target, bytes)], counts: 1)
    }

    private typealias Paged = (part: Part, sources: [UInt32], targets: [UInt32])

    private static func pages(
        _ process: SimulatedProcess, _ count: Int, _ bytes: Int, _ random: inout SeededGenerator
    ) -> Paged? {
        guard let grant = process.grant(count * bytes) else { return nil }
        let begin = process.grants[grant].range.lowerBound
        let last = UInt32(SimulatedProcess.sourceBytes / bytes)
        let sources = (0..<count).map { _ in UInt32.random(in: 0..<last, using: &random) }
        var targets = (0..<UInt32(count)).map { $0 }
        if Bool.random(using: &random) { targets.shuffle(using: &random) }
        let pieces = zip(sources, targets).map {
            (source: Int($0) * bytes, target: begin + Int($1) * bytes, count: bytes)
        }
        return (Part(process: process, grant: grant, pieces: pieces, counts: count), sources, targets)
    }

    /// With every other seed the writes are of all classes.
    private static func trafficClass(_ number: Int, _ seed: UInt64) -> TrafficClass {
        seed % 2 == 0 ? .normal : TrafficClass.allCases[number % TrafficClass.allCases.count]
    }

    private static func writePages(
        _ paged: Paged, _ count: Int, _ bytes: Int, _ owner: SimulatedProcess, _ remote: RemoteMemory,
        _ immediate: Immediate
    ) throws(TransferError) -> Transfer {
        let offset = paged.part.process.grants[paged.part.grant].range.lowerBound
        let result = unsafe paged.sources.withUnsafeBufferPointer { sources in
            unsafe paged.targets.withUnsafeBufferPointer { targets -> Result<Transfer, TransferError> in
                do throws(TransferError) {
                    return .success(
                        try owner.engine.write(
                            pageBytes: bytes, from: owner.source,
                            pages: unsafe Pages(sources, stride: bytes), to: remote,
                            pages: unsafe Pages(targets, stride: bytes, offset: offset),
                            immediate: immediate))
                } catch {
                    return .failure(error)
                }
            }
        }
        return try result.get()
    }

    func cancel(timeout: Duration) {
        isCancelled = true
        let receipt = receipt
        try? owner.engine.cancel(transfer, timeout: timeout) { receipt.value = $0 }
    }

    // MARK: The end

    /// Looks whether the operation is over, and checks what it promised. Returns whether it can be forgotten.
    func look(_ world: World) -> Bool {
        let now = world.network.nowNanoseconds
        if isCancelled { return lookAfterCancel(world, now) }
        let status = owner.engine.status(of: transfer)
        if status == .pending {
            if now > begun + World.timeout + World.interval {
                world.violate("operation \(number) passed its deadline: \(operation)")
                isEnded = true
            }
            return isEnded
        }
        isEnded = true
        switch status {
        case .complete:
            world.outcome.completed += 1
            for part in parts { checkComplete(part, world) }
            if case .message = operation.kind { checkMessage(world) }
            if operation.kind == .await {
                world.violate("operation \(number): a wait ended that nobody answered")
            }
        case .failed(let error):
            world.outcome.failed += 1
            if isCheckUp { world.violate("after all was well again: \(error)") }
            for part in parts { checkCounts(part, world, atMost: true) }
        case .pending: break
        }
        return true
    }

    private func lookAfterCancel(_ world: World, _ now: UInt64) -> Bool {
        guard let receipt = receipt.value else {
            if now > begun + 3 * World.timeout {
                world.violate("operation \(number): cancelled, and no receipt")
                return true
            }
            return false
        }
        isEnded = true
        if case .failed(let error) = owner.engine.status(of: transfer), error.code == .stalled {
            world.violate("operation \(number) stalled after it was cancelled")
        }
        if receipt == .quiescent {
            world.outcome.quiescent += 1
            for part in parts where part.process.isAlive && part.grant >= 0 {
                part.process.freeze(part.grant)
            }
            for part in parts { checkCounts(part, world, atMost: true) }
        } else {
            world.outcome.unproven += 1
        }
        return true
    }

    private func checkComplete(_ part: Part, _ world: World) {
        guard part.process.isAlive else { return }
        for piece in part.pieces {
            let wanted = owner.sourceBytes(piece.source..<piece.source + piece.count)
            if part.process.bytes(piece.target..<piece.target + piece.count) != wanted {
                // After a revocation the bytes of before may be those of that moment.
                if part.process.grants[part.grant].frozen != nil { continue }
                world.violate("operation \(number): wrong bytes at \(piece.target): \(operation)")
                break
            }
        }
        checkCounts(part, world, atMost: false)
        if part.grant >= 0, part.process.grants[part.grant].frozen == nil { part.process.freeze(part.grant) }
    }

    private func checkCounts(_ part: Part, _ world: World, atMost: Bool) {
        guard part.process.isAlive else { return }
        let count = part.process.engine.count(of: immediate)
        if atMost ? count > part.counts : count != part.counts {
            world.violate("operation \(number): counted \(count) of \(part.counts): \(operation)")
        }
    }

    private func checkMessage(_ world: World) {
        let to = world.processes[operation.to]
        guard to.isAlive else { return }
        // A process that does not make progress has it and has not looked.
        if to.inbox.counts[UInt32(number)] ?? 0 > 1 {
            world.violate("operation \(number): a message came twice")
        }
    }
}
