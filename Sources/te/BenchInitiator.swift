internal import CPlatform
internal import Glibc
internal import Platform
internal import Synchronization
internal import TransferEngine

/// The side that writes and measures.
final class BenchInitiator {
    private let options: PointToPoint
    private let side: BenchSide
    private let child: ChildProcess
    private let regionBytes: Int
    /// Those that the sides are pinned to, if they are.
    private let pins: [Int]
    /// Noted before anything is pinned.
    private static let pair = pairOfProcessors()
    private var sent: UInt64 = 0
    private var stops: UInt64 = 0
    private var isClosed = false

    init(_ options: PointToPoint, progress: String = "manual") throws {
        self.options = options
        regionBytes = options.regionMiB << 20
        pins = options.softNic ? [] : Self.pair
        if let own = pins.first { _ = te_pin_self(Int32(own)) }
        showProgress("starting")
        (child, side) = try startPair(
            provider: options.provider, nicCount: options.nicCount, nics: options.nics,
            targetNICs: options.targetNics, targetCommand: options.targetCommand, progress: progress,
            targetProgress: options.softNic ? "adaptive" : progress, processors: pins,
            regionBytes: regionBytes, callerMemory: options.callerMemory,
            traceEvents: options.traceEvents)
    }

    func close() {
        guard !isClosed else { return }
        isClosed = true
        child.end()
        side.close()
    }

    // MARK: Rows

    private func row(
        _ test: String, _ size: Int, _ ours: [Double], _ limits: [Double], _ limitName: String,
        _ report: inout Report
    ) {
        var row: Report.Row = [
            ("provider", .text(options.provider)), ("test", .text(test)),
            ("memory", .text(options.callerMemory ? "caller" : "engine")),
            ("nics", .integer(options.numberOfNICs)),
            ("size", .integer(size)), ("gbps", .number(median(ours) / 1e9)),
        ]
        if !limits.isEmpty {
            row.append(("limit", .number(median(limits) / 1e9)))
            row.append(("ratio", .number(median(zip(ours, limits).map { $0 / $1 }))))
            row.append(("limit_is", .text(limitName)))
        }
        report.add(row)
    }

    /// How many writes are outstanding: more of the smaller ones.
    private static func window(_ size: Int) -> Int {
        switch size {
        case ...4096: 64
        case ...65536: 32
        case ...262_144: 16
        case ...(1 << 20): 8
        default: 2
        }
    }

    /// One-sided writes of one size with an immediate each, several outstanding; time ends when the target has counted
    /// all.
    func writes(_ report: inout Report, isHot: Bool) throws {
        let limit = try Limit(self)
        defer { limit.close() }
        for size in options.sizes(usually: [4096, 65536, 262_144, 1 << 20, 32 << 20]) {
            let window = Self.window(size)
            showProgress("\(isHot ? "hot " : "")write of \(size) bytes")
            var ours: [Double] = []
            var limits: [Double] = []
            let span = isHot ? size : regionBytes
            _ = try stream(size, window, span, 0.03)
            for _ in 0..<options.repeats {
                if options.against == .limits { limits.append(limit.write(size, span)) }
                ours.append(try stream(size, window, span, options.seconds))
            }
            row(isHot ? "write-hot" : "write", size, ours, limits, limit.name, &report)
        }
    }

    /// 1024 random pages a request, one request at a time.
    func pages(_ report: inout Report) throws {
        let limit = try Limit(self)
        defer { limit.close() }
        for size in options.sizes(usually: [1024, 8192, 16384, 65536]) {
            guard regionBytes / size >= PageLists.count else {
                throw TransferError(
                    .invalidArgument, "\(PageLists.count) pages of \(size) bytes need a larger --region-mi-b")
            }
            showProgress("pages of \(size) bytes")
            let lists = PageLists(pageBytes: size, regionBytes: regionBytes)
            defer { lists.deallocate() }
            var ours: [Double] = []
            var limits: [Double] = []
            _ = try streamPages(lists, 0.03)
            for _ in 0..<options.repeats {
                if options.against == .limits { limits.append(limit.pages(lists)) }
                ours.append(try streamPages(lists, options.seconds))
            }
            row("paged", size, ours, limits, limit.name, &report)
        }
    }

    /// What submitting costs: 8 bytes with an immediate, in one go, without waiting for the target.
    func submissions(_ report: inout Report) throws {
        guard let remote = side.remote else { return }
        try counting {
            var samples: [Double] = []
            for _ in 0..<2000 {
                let start = te_monotonic_nanoseconds()
                for _ in 0..<16 {
                    try side.engine.write(
                        from: side.region, byteCount: 8, to: remote, immediate: BenchSide.dataImmediate)
                }
                samples.append(Double(te_monotonic_nanoseconds() - start) / 16_000)
                sent += 16
                try awaitCount()
            }
            report.add([
                ("provider", .text(options.provider)), ("test", .text("submit")), ("memory", .text("engine")),
                ("nics", .integer(options.numberOfNICs)), ("size", .integer(8)),
                ("lat_us_p50", .number(median(samples))),
                ("limit", .null), ("ratio", .null), ("limit_is", .text("-")),
            ])
            report.finish()
        }
    }

    /// Eight bytes with an immediate there, eight back; half of it.
    func pingPong(_ report: inout Report, progress: String) throws {
        showProgress("ping-pong, \(progress)")
        report.finish()
        var ours: [Double] = []
        var limits: [Double] = []
        for _ in 0..<options.repeats {
            // Busy engines leave no core for the flag: hold their time against the limit of the manual row.
            if options.against == .limits, progress == "manual" {
                limits.append(BenchLimits.flag(processor: Self.pair[1], seconds: options.seconds))
            }
            try child.send("pong")
            ours.append(progress == "busy" ? try pingFromCallbacks() : try pingByHand())
            try stopChild()
        }
        var row: Report.Row = [
            ("provider", .text(options.provider)), ("test", .text("pingpong")), ("progress", .text(progress)),
            ("nics", .integer(options.numberOfNICs)), ("size", .integer(8)),
            ("lat_us_p50", .number(median(ours))),
        ]
        if !limits.isEmpty {
            row.append(("limit", .number(median(limits))))
            row.append(("ratio", .number(median(zip(ours, limits).map { $0 / $1 }))))
            row.append(("limit_is", .text("flag between cores")))
        }
        report.add(row)
        report.finish()
    }

    // MARK: Measurements

    // The first batch of a ping-pong may have to connect, and is not counted.

    private func pingByHand() throws -> Double {
        var samples: [Double] = []
        let end = monotonicSeconds() + options.seconds
        while monotonicSeconds() < end || samples.count <= Pinger.fewestBatches {
            let start = te_monotonic_nanoseconds()
            for _ in 0..<side.pingBatch {
                try side.ping()
                while !side.engine.consume(BenchSide.pingImmediate, count: 1) { side.engine.progress() }
            }
            samples.append(Double(te_monotonic_nanoseconds() - start) / Double(2000 * side.pingBatch))
        }
        return median(Array(samples.dropFirst()))
    }

    private func pingFromCallbacks() throws -> Double {
        let pinger = Pinger(side, seconds: options.seconds)
        pinger.start()
        // pairs with the stores in Pinger.arm
        while !pinger.hasEnded.load(ordering: .acquiring) { usleep(2000) }
        return median(Array(pinger.samples.dropFirst()))
    }

    private func counting(_ body: () throws -> Void) throws {
        try child.send("count")
        try body()
        try stopChild()
    }

    private func stopChild() throws {
        stops += 1
        side.board.tell(.stop, stops)
        guard try child.receive() == "done" else { throw TransferError(.peerLost, "the target is confused") }
    }

    private func awaitCount() throws {
        let deadline = monotonicSeconds() + 30
        var spins = 0
        while side.board.read(.counted) < sent {
            side.engine.progress()
            spins += 1
            if spins & 0xFFFF == 0, monotonicSeconds() > deadline {
                throw TransferError(
                    .stalled, "the target has counted \(side.board.read(.counted)) of \(sent) immediates"
                )
            }
        }
    }

    private func stream(_ size: Int, _ window: Int, _ span: Int, _ seconds: Double) throws -> Double {
        guard let remote = side.remote else { return .nan }
        var rate = 0.0
        try counting {
            let end = span / size * size
            let engine = side.engine
            var pending = [Transfer?](repeating: nil, count: window)
            let start = monotonicSeconds()
            // A division takes as long as a tenth of a small write: both places are counted on.
            var count = 0, place = 0, offset = 0
            repeat {
                for _ in 0..<(size < 1 << 20 ? 16 : 1) {
                    if let before = pending[place] {
                        while engine.isPending(before) { engine.progress() }
                        if case .failed(let error) = engine.status(of: before) { throw error }
                    }
                    pending[place] = try engine.write(
                        from: side.region, sourceOffset: offset, byteCount: size, to: remote,
                        targetOffset: offset,
                        immediate: BenchSide.dataImmediate)
                    count += 1
                    place = place + 1 == window ? 0 : place + 1
                    offset = offset + size == end ? 0 : offset + size
                }
            } while monotonicSeconds() - start < seconds
            sent += UInt64(count)
            try awaitCount()
            rate = Double(count) * Double(size) / (monotonicSeconds() - start)
            for case .some(let transfer) in pending { try engine.wait(for: transfer) }
        }
        return rate
    }

    private func streamPages(_ lists: PageLists, _ seconds: Double) throws -> Double {
        guard let remote = side.remote else { return .nan }
        var rate = 0.0
        try counting {
            let start = monotonicSeconds()
            var count = 0
            repeat {
                let (from, to) = lists.list(count)
                let transfer = try side.engine.write(
                    pageBytes: lists.pageBytes, from: side.region,
                    pages: Pages(from, stride: lists.pageBytes),
                    to: remote, pages: Pages(to, stride: lists.pageBytes), immediate: BenchSide.dataImmediate)
                try side.engine.wait(for: transfer)
                count += 1
            } while monotonicSeconds() - start < seconds
            sent += UInt64(count * PageLists.count)
            try awaitCount()
            rate = Double(count * PageLists.count * lists.pageBytes) / (monotonicSeconds() - start)
        }
        return rate
    }

    /// The limit that belongs to the transport.
    private final class Limit {
        let owner: BenchInitiator
        let name: String
        private let target: SharedMapping
        private let socket: BenchSocket?

        init(_ owner: BenchInitiator) throws {
            self.owner = owner
            let options = owner.options
            // The same kind of memory that an engine allocates.
            target = try .create(
                name: "te-limit", byteCount: owner.regionBytes, hugePages: true, isPopulated: true)
            memset(target.base, 1, owner.regionBytes)
            if options.provider == "shm" {
                name = options.callerMemory ? "process_vm_writev" : "memcpy"
                socket = nil
            } else {
                name = "TCP socket"
                socket = try BenchSocket(
                    processor: BenchInitiator.pair[1], buffer: target.base, bufferBytes: owner.regionBytes
                )
            }
        }

        func close() {
            socket?.close()
            target.unmap()
        }

        func write(_ size: Int, _ span: Int) -> Double {
            let source = UnsafeRawPointer(owner.side.region.baseAddress)
            let seconds = owner.options.seconds
            if let socket {
                return socket.measure(from: source, regionBytes: span, size: size, seconds: seconds)
            }
            if owner.options.callerMemory, let descriptor = owner.side.remoteDescriptor {
                return BenchLimits.writeProcess(
                    owner.child.processIdentifier, from: source, to: descriptor.base, regionBytes: span,
                    size: size,
                    seconds: seconds)
            }
            return BenchLimits.copy(
                from: source, to: target.base, regionBytes: span, size: size, seconds: seconds)
        }

        func pages(_ lists: PageLists) -> Double {
            let source = UnsafeRawPointer(owner.side.region.baseAddress)
            let seconds = owner.options.seconds
            if let socket {
                return socket.measure(
                    from: source, regionBytes: owner.regionBytes, size: lists.pageBytes, seconds: seconds)
            }
            if owner.options.callerMemory, let descriptor = owner.side.remoteDescriptor {
                return BenchLimits.writeProcessPages(
                    owner.child.processIdentifier, from: source, to: descriptor.base, lists: lists,
                    seconds: seconds)
            }
            return BenchLimits.copyPages(from: source, to: target.base, lists: lists, seconds: seconds)
        }
    }
}
