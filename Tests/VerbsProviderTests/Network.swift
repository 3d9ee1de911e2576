import CVerbs
import CVerbsStandIn
import Glibc
import Synchronization
import Testing
import TransferCore

@testable import VerbsProvider

/// The NICs, for as long as anybody uses them.
@safe final class StandIn {
    let network: OpaquePointer
    init(devices: Int, isEthernet: Bool) {
        unsafe network = te_standin_new(Int32(devices), isEthernet ? 1 : 0)
    }
    deinit { unsafe te_standin_free(network) }
}

/// Runs each test of a suite once for each way to hand over requests.
struct BothPostings: SuiteTrait, TestTrait, TestScoping {
    var isRecursive: Bool { true }

    @concurrent func provideScope(
        for test: Test, testCase: Test.Case?,
        performing function: @concurrent @Sendable () async throws -> Void
    ) async throws {
        for posting in [.calls, .lists] as [VerbsOptions.Posting] {
            try await Network.$posting.withValue(posting) { try await function() }
        }
    }
}

extension Trait where Self == BothPostings {
    static var bothPostings: Self { BothPostings() }
}

/// A network of stand-in NICs and the domains on it.
@safe final class Network {
    private let owner: StandIn
    private(set) var ends: [End] = []

    init(devices: Int = 2, isEthernet: Bool = true) {
        owner = StandIn(devices: devices, isEthernet: isEthernet)
    }

    var standIn: OpaquePointer { unsafe owner.network }

    /// What happened and what is to happen.
    var books: te_standin_books {
        _read { yield unsafe te_standin_books(standIn).pointee }
        _modify { yield unsafe &te_standin_books(standIn).pointee }
    }

    /// Objects of libibverbs that exist.
    var living: Int64 {
        let (books) = books
        return books.contexts + books.domains + books.regions + books.channels + books.completion_queues
            + books.shared_receives + books.queue_pairs + books.handles
    }

    /// How the domains that are opened hand over requests.
    @TaskLocal static var posting = VerbsOptions.Posting.automatic

    func options(_ device: Int) -> VerbsOptions {
        var options = VerbsOptions(
            device: unsafe String(cString: te_standin_name(standIn, Int32(device))))
        options.posting = Self.posting
        return options
    }

    /// Opens a domain on a device.
    @discardableResult
    func open(_ device: Int, _ change: (inout VerbsOptions) -> Void = { _ in }) throws -> End {
        var options = options(device)
        change(&options)
        let end = try End(UInt64(ends.count + 1) * 1000, options, device, owner)
        ends.append(end)
        return end
    }

    /// Two domains on two devices.
    static func pair(_ change: (inout VerbsOptions) -> Void = { _ in }) throws -> (Network, End, End) {
        let network = Network()
        return (network, try network.open(0, change), try network.open(1, change))
    }

    /// Polls all until `done`; false after so many rounds. Each round is a millisecond of the domains' clocks.
    @discardableResult func run(_ rounds: Int = 20000, until done: () -> Bool = { false }) -> Bool {
        for _ in 0..<rounds {
            if done() { return true }
            for end in ends where !end.isClosed {
                end.poll()
                end.domain.advanceClock(by: 1_000_000)
            }
        }
        return done()
    }

    func raise(_ device: Int, _ event: ibv_event_type, qp: UInt32 = 0) {
        unsafe te_standin_raise(standIn, Int32(device), event, qp)
    }
}

/// One engine's worth of state around a domain, as an engine would keep it.
@safe final class End {
    let page: TargetPage
    let domain: VerbsDomain
    let device: Int
    let length = 1 << 20
    let memory: UnsafeMutableRawPointer
    private let pageMemory: UnsafeMutableRawPointer
    private var region: LocalRegion
    private(set) var key = DomainKey(local: 0, remote: 0, base: 0)
    private let output: UnsafeMutableBufferPointer<Completion>
    private var targets: [UnsafeMutablePointer<ImportedKey>] = unsafe []
    private(set) var isClosed = false
    private let standIn: StandIn

    /// Requests that ended, by context, how the last one of each ended, and all messages.
    var ended: [UInt64: Int] = [:]
    var statuses: [UInt64: WorkStatus] = [:]
    var details: [UInt64: Int32] = [:]
    var messages: [(bytes: [UInt8], sender: UInt64)] = []

    init(_ number: UInt64, _ options: VerbsOptions, _ device: Int, _ standIn: StandIn) throws {
        self.standIn = standIn
        unsafe pageMemory = Self.map(TargetPage.byteCount)
        unsafe memory = Self.map(length)
        unsafe page = TargetPage.initialize(pageMemory, engine: EngineID(rawValue: number))
        self.device = device
        unsafe output = .allocate(capacity: 32)
        unsafe region = LocalRegion(
            index: 3, generation: 5, access: .remoteWrite, secret: number, base: memory, length: length,
            memoryFile: -1, isPopulated: false)
        do {
            domain = unsafe try VerbsDomain(
                options, page: page, engine: page.engine, api: te_standin_api())
        } catch {
            _ = unsafe munmap(memory, length)
            _ = unsafe munmap(pageMemory, TargetPage.byteCount)
            unsafe output.deallocate()
            throw error
        }
        key = try domain.register(region)
    }

    deinit {
        close()
        _ = unsafe munmap(memory, length)
        _ = unsafe munmap(pageMemory, TargetPage.byteCount)
        unsafe output.deallocate()
        unsafe targets.forEach { unsafe $0.deallocate() }
    }

    func close() {
        if !isClosed { domain.close() }
        isClosed = true
    }

    private static func map(_ bytes: Int) -> UnsafeMutableRawPointer {
        let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE
        guard let place = unsafe mmap(nil, bytes, PROT_READ | PROT_WRITE, flags, -1, 0),
            unsafe place != MAP_FAILED
        else { fatalError("mmap of \(bytes) bytes") }
        return unsafe place
    }

    /// What a peer is sent.
    var descriptor: RemoteRegion {
        RemoteRegion(
            engine: page.engine, device: 0, index: 3, generation: 5, access: .remoteWrite,
            length: UInt64(length), base: key.base, secret: 1,
            nics: [
                .init(
                    fabric: domain.attributes.fabric, address: domain.address, megabitsPerSecond: 1,
                    key: key.remote, base: key.base)
            ])
    }

    func attach(_ other: End) throws -> UnsafeMutablePointer<ImportedKey> {
        let target = UnsafeMutablePointer<ImportedKey>.allocate(capacity: 1)
        unsafe target.initialize(to: try domain.importRegion(other.descriptor, nic: 0))
        unsafe targets.append(target)
        return unsafe target
    }

    /// Polls with room for `capacity` completions.
    func poll(capacity: Int = 32) {
        let count = unsafe domain.poll(UnsafeMutableBufferPointer(rebasing: output[..<capacity]))
        for index in 0..<count {
            let entry = unsafe output[index]
            if entry.count == 0 {
                unsafe messages.append((Array(entry.message), entry.context))
            } else {
                ended[entry.context, default: 0] += Int(entry.count)
                statuses[entry.context] = entry.status
                details[entry.context] = entry.detail
            }
        }
    }

    func request(
        _ context: UInt64, to target: UnsafeMutablePointer<ImportedKey>, length: Int = 128, from: Int = 0,
        at: Int = 0, immediate: UInt32 = 1, eighths: UInt32 = 8
    ) -> WorkRequest {
        unsafe WorkRequest(
            context: context, source: memory + from, length: length, localKey: key.local,
            target: UnsafePointer(target), targetOffset: UInt64(at), immediate: immediate, eighths: eighths)
    }

    @discardableResult func post(_ requests: [WorkRequest]) -> PostResult {
        unsafe requests.withUnsafeBufferPointer { unsafe domain.post($0) }
    }

    /// Requests with the contexts `range`, each counted.
    @discardableResult
    func post(_ range: Range<UInt64>, to target: UnsafeMutablePointer<ImportedKey>, length: Int = 128)
        -> PostResult
    {
        post(range.map { unsafe request($0, to: target, length: length) })
    }

    func send(_ bytes: [UInt8], to target: UnsafeMutablePointer<ImportedKey>, context: UInt64) -> PostResult {
        unsafe bytes.withUnsafeBytes { unsafe domain.send($0, to: target, context: context) }
    }

    var address: NICAddress {
        let bytes = domain.address
        return unsafe NICAddress(bytes.span.bytes) ?? NICAddress()
    }

    func count(of immediate: UInt32) -> Int { Int(page.eighths(of: immediate) / 8) }

    var statistics: VerbsStatistics { domain.statistics }

    /// What tests look at in a connection.
    struct ConnectionView {
        var generation: UInt16
        var queuePair: UInt32
        var grantedImmediates: UInt32
        var grantedMessages: UInt32
        var attempt: UInt32
        var remoteAttempt: UInt32
    }

    /// Connections by state, among the places that tests come to use.
    func connections(_ state: Connection.State) -> [ConnectionView] {
        (0..<16).compactMap { place in
            let connection = unsafe domain.state.pointee.connections.address(of: place)
            guard unsafe connection.pointee.state == state else { return nil }
            return unsafe ConnectionView(
                generation: connection.pointee.generation, queuePair: connection.pointee.writes.number,
                grantedImmediates: connection.pointee.grantedImmediates,
                grantedMessages: connection.pointee.grantedMessages,
                attempt: connection.pointee.attempt, remoteAttempt: connection.pointee.remoteAttempt)
        }
    }

    var isReady: Bool { !connections(.ready).isEmpty }
}
