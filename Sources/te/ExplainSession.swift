internal import Glibc
internal import Platform
internal import TransferEngine

/// Two engines of this process, to explain and try a request between.
final class ExplainSession {
    private let options: Explain
    private let engine: TransferEngine
    private let peer: TransferEngine
    private let source: MemoryRegion
    private let target: MemoryRegion
    private let remote: RemoteMemory
    private let descriptor: RemoteRegion

    init(_ options: Explain) throws {
        self.options = options
        engine = try Self.open("initiator", options.nics, options)
        peer = try Self.open("peer", options.peerNics ?? options.nics, options)
        let byteCount = max(4096, Self.span(options))
        source = try engine.allocate(byteCount: byteCount)
        target = try peer.allocate(byteCount: byteCount)
        descriptor = peer.descriptor(of: target)
        remote = try engine.attach(descriptor)
    }

    func close() {
        engine.close()
        peer.close()
    }

    private static func open(_ name: String, _ list: String, _ options: Explain) throws -> TransferEngine {
        let isNamed = Set(list.split(separator: ",").filter { $0.contains(":") })
        let nics = try zip(NICDescription.list(list), list.split(separator: ",")).flatMap { nic, text in
            try nic.configuration(isNamed: isNamed.contains(text))
        }
        return try TransferEngine(
            Configuration(name: name, nics: nics, stripeBytes: options.stripeBytes))
    }

    /// Bytes that the request reaches over.
    private static func span(_ options: Explain) -> Int {
        guard let last = options.pageNumbers.last else { return options.bytes }
        return (Int(last) + 1) * options.bytes
    }

    func explain(_ request: TransferPlan.Request) throws -> Explanation {
        Explanation(
            of: request, local: engine.nics, remote: descriptor.nics, stripeBytes: options.stripeBytes,
            plan: try engine.plan(of: request, to: remote))
    }

    // MARK: Trying

    /// Does it some times; prints what was predicted beside what was measured.
    func analyze(_ explanation: Explanation, json: Bool) throws {
        _ = try time(explanation.request)
        let before = engine.statistics()
        guard let plan = try? engine.plan(of: explanation.request, to: remote) else { return }
        let first = try time(explanation.request)
        let after = engine.statistics()
        var times = [first]
        for _ in 0..<8 { times.append(try time(explanation.request)) }
        var report = Report(json: json)
        if !json { print() }
        for (number, nic) in after.nics.enumerated() {
            let parts = plan.parts.filter { plan.rails[$0.rail].local == number }
            func sum(_ value: (TransferPlan.Part) -> Int) -> Int { parts.reduce(0) { $0 + value($1) } }
            report.add([
                ("kind", .text("measured")), ("nic", .text(nic.name)),
                ("requests_predicted", .integer(sum(\.requests))),
                ("requests", .integer(Int(nic.requests - before.nics[number].requests))),
                ("bytes_predicted", .integer(sum(\.byteCount))),
                ("bytes", .integer(Int(nic.bytes - before.nics[number].bytes))),
            ])
        }
        report.finish()
        let typical = times.sorted()[times.count / 2]
        if !json { print() }
        report.add([
            ("kind", .text("time")),
            ("predicted_us", explanation.predictedNanoseconds.map { .number($0 / 1000) } ?? .null),
            ("median_us", .number(typical / 1000)), ("fastest_us", .number((times.min() ?? 0) / 1000)),
            ("times", .integer(times.count)),
        ])
        report.finish()
    }

    /// Nanoseconds until the peer has counted everything.
    private func time(_ request: TransferPlan.Request) throws -> Double {
        let clock = SystemClock()
        let begin = clock.nowNanoseconds
        switch request {
        case .write(let byteCount):
            let wait = try peer.expect(1, count: 1)
            try engine.wait(
                for: engine.write(from: source, byteCount: byteCount, to: remote, immediate: 1) { _ in })
            try peer.wait(for: wait)
        case .pages(let byteCount, let sources, _, _):
            let wait = try peer.expect(1, count: sources.count)
            let transfer = try sources.withUnsafeBufferPointer { pages in
                try engine.write(
                    pageBytes: byteCount, from: source, pages: Pages(pages, stride: byteCount), to: remote,
                    pages: Pages(pages, stride: byteCount), immediate: 1)
            }
            try engine.wait(for: transfer)
            try peer.wait(for: wait)
        case .scatter(let byteCount, let targets):
            let wait = try peer.expect(1, count: targets)
            let slice = ScatterSlice(sourceOffset: 0, byteCount: byteCount, targetOffset: 0)
            let slices = (0..<targets).map { _ in (slice: slice, target: remote) }
            try engine.wait(for: engine.scatter(from: source, slices, immediate: 1))
            try peer.wait(for: wait)
        }
        return Double(clock.nowNanoseconds - begin)
    }
}
