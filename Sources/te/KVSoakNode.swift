internal import ArgumentParser
internal import CPlatform
internal import Glibc
internal import KVCacheTransfer
internal import Platform
internal import SharedMemoryProvider
internal import Synchronization
internal import TransferEngine

/// What both kinds of processes of `te kv soak` have: an engine, pages that are handed out, and a content for every request.
final class KVSoakPages: @unchecked Sendable {
    // SAFETY: `free` is guarded by its lock; a page's bytes belong to whoever it was handed out to, and else to nobody.
    static let pageCount = 512
    static let canary: UInt8 = 0xA5
    static let layout = KVLayout(
        model: KVModel(
            name: "soak", elementType: "u8",
            groups: [CacheGroup(layers: Array(0..<8), heads: 4, keyBytes: 64, valueBytes: 64)]),
        formats: [PageFormat(pageTokens: 16)])

    let rank: KVRank
    private let free = Mutex<[UInt32]>(Array(0..<UInt32(KVSoakPages.pageCount)))

    init(_ name: String, provider: String) throws {
        let engine = try TransferEngine(
            Configuration(
                name: name, nics: makeNICs(provider: provider, count: 1, nics: "", callerMemory: .automatic)))
        let placement = KVPlacement.contiguous(Self.layout, rank: 0, pageCount: Self.pageCount)
        let region = try engine.allocate(byteCount: placement.regionBytes(Self.layout, rank: 0)[0])
        memset(region.baseAddress, Int32(Self.canary), region.byteCount)
        rank = KVRank(engine: engine, regions: [region], placement: placement)
    }

    var isWhole: Bool { free.withLock { $0.count } == Self.pageCount }

    /// Hands pages out; nil when there are not enough. The ones used longest ago first.
    func take(_ count: Int) -> [UInt32]? {
        free.withLock { free in
            guard free.count >= count else { return nil }
            defer { free.removeFirst(count) }
            return Array(free.prefix(count))
        }
    }

    /// Takes pages back; from now on they must not change.
    func give(_ pages: [UInt32]) {
        for layer in 0..<8 {
            for page in pages {
                forPage(layer, page) { $0.initializeMemory(as: UInt8.self, repeating: Self.canary) }
            }
        }
        free.withLock { $0 += pages }
    }

    /// Pages that changed while they were nobody's.
    func damaged(_ pages: [UInt32]) -> Int {
        pages.count { page in
            (0..<8).contains { layer in
                var isDamaged = false
                forPage(layer, page) { bytes in isDamaged = bytes.contains { $0 != Self.canary } }
                return isDamaged
            }
        }
    }

    func fill(_ content: UInt64, layer: Int, _ pages: [UInt32]) {
        for (index, page) in pages.enumerated() {
            forPage(layer, page) { bytes in
                for (word, place) in stride(from: 0, to: bytes.count, by: 8).enumerated() {
                    bytes.storeBytes(
                        of: Self.word(content, layer, index, word), toByteOffset: place, as: UInt64.self)
                }
            }
        }
    }

    func holds(_ content: UInt64, _ pages: [UInt32]) -> Bool {
        (0..<8).allSatisfy { layer in
            pages.enumerated().allSatisfy { index, page in
                var isRight = true
                forPage(layer, page) { bytes in
                    for (word, place) in stride(from: 0, to: bytes.count, by: 8).enumerated()
                    where bytes.load(fromByteOffset: place, as: UInt64.self)
                        != Self.word(content, layer, index, word)
                    {
                        isRight = false
                    }
                }
                return isRight
            }
        }
    }

    private func forPage(_ layer: Int, _ page: UInt32, _ body: (UnsafeMutableRawBufferPointer) -> Void) {
        let plane = rank.placement.layers[layer][0]
        let begin = plane.offset + Int(page) * plane.stride
        body(UnsafeMutableRawBufferPointer(rebasing: rank.regions[0].bytes[begin..<begin + plane.stride]))
    }

    private static func word(_ content: UInt64, _ layer: Int, _ page: Int, _ word: Int) -> UInt64 {
        (content &* 0x9E37_79B9_7F4A_7C15 ^ UInt64(layer << 40 | page << 20 | word)) &* 0xBF58_476D_1CE4_E5B9
    }

    static func configuration(_ name: String, digests: Bool = false) -> KVConfiguration {
        var configuration = KVConfiguration(
            name: name, heartbeat: .milliseconds(200), cancelTimeout: .seconds(1),
            quarantine: .milliseconds(500))
        configuration.digests = digests
        return configuration
    }
}

/// A process of `te kv soak`.
struct KVSoakNode: ParsableCommand {
    static let configuration = CommandConfiguration(commandName: "kv-soak-node", shouldDisplay: false)

    @Option var role: String
    @Option var name: String
    @Option var provider: String
    @Option var seed: UInt64
    /// Where prefillers are found; nil is what the parent says.
    @Option var etcd: String?

    func run() throws {
        _ = te_die_with_parent()
        let pages = try KVSoakPages(name, provider: provider)
        let lines = ChildLines()
        if role == "prefiller" {
            let prefiller = try KVSoakPrefiller(name, pages)
            #if HTTP
                if let etcd { try KVSoakEtcd.announce(name, pages.rank.engine.address, etcd) }
            #endif
            try prefiller.run(lines)
        } else {
            #if HTTP
                if let etcd { try KVSoakEtcd.follow(etcd, lines) }
            #endif
            try KVSoakDecoder(name, pages, seed).run(lines)
        }
    }
}

/// Computes whatever comes, a layer after the other.
private final class KVSoakPrefiller: @unchecked Sendable {
    // SAFETY: `jobs` is guarded by its lock; everything else is written once.
    private struct Job {
        var job: KVJob
        var content: UInt64
        var pages: [UInt32]
        var isRunning = false
        var isStopped = false
        var isReleased = false
    }

    private let pages: KVSoakPages
    private let jobs = Mutex<[KVJob.ID: Job]>([:])
    private let queue = Mutex<[KVJob.ID]>([])
    private var role: KVPrefiller?

    init(_ name: String, _ pages: KVSoakPages) throws {
        self.pages = pages
        role = try KVPrefiller(
            KVSoakPages.configuration(name), layout: KVSoakPages.layout, ranks: [pages.rank]
        ) { [unowned self] in offer($0) }
    }

    private func offer(_ job: KVJob) {
        let content = job.input.enumerated().reduce(UInt64(0)) {
            $0 | UInt64($1.element) << (8 * UInt64($1.offset))
        }
        guard let taken = pages.take(job.span.end / 16) else {
            role?.refuse(job.id, KVError(.refused, "no pages"))
            return
        }
        jobs.withLock { $0[job.id] = Job(job: job, content: content, pages: taken) }
        role?.accept(job.id, sources: [PageTable(pages: taken)]) { [unowned self] event in
            jobs.withLock {
                if event == .released { $0[job.id]?.isReleased = true } else { $0[job.id]?.isStopped = true }
            }
            giveIfDone(job.id)
        }
        // Last: the model must not begin with a job that has not been accepted.
        queue.withLock { $0.append(job.id) }
    }

    private func giveIfDone(_ id: KVJob.ID) {
        let done = jobs.withLock { jobs -> Job? in
            guard let job = jobs[id], job.isReleased, !job.isRunning else { return nil }
            jobs[id] = nil
            return job
        }
        if let done { pages.give(done.pages) }
    }

    func run(_ lines: ChildLines) throws {
        guard let role else { return }
        // The model takes its time; heartbeats do not wait for it.
        let heart = PlatformThread(name: "te-heart") {
            while true {
                role.tick(nowNanoseconds: te_monotonic_nanoseconds())
                usleep(10_000)
            }
        }
        defer { _ = heart }
        _ = writeLine(hexadecimal(role.address.encoded()), to: 1)
        var finished: UInt64 = 0
        while lines.next() != "stop" {
            guard let id = queue.withLock({ $0.isEmpty ? nil : $0.removeFirst() }),
                let job = jobs.withLock({ jobs -> Job? in
                    guard let job = jobs[id], !job.isReleased else { return nil }
                    jobs[id]?.isRunning = true
                    return job
                })
            else {
                usleep(1000)
                continue
            }
            role.begin(forward: [KVChunk(job: id, tokens: 0..<job.job.span.end)])
            for layer in 0..<8 {
                pages.fill(job.content, layer: layer, job.pages)
                finished += 1
                role.computed(layers: finished)
            }
            jobs.withLock { $0[id]?.isRunning = false }
            giveIfDone(id)
        }
    }
}
