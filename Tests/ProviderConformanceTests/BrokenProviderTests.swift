import SimulatedProvider
import Testing
import TransferEngine

/// The suite itself, held against providers that break the contract in the ways that matter: each must be caught.
@Suite struct BrokenProviderTests {
    private func make(_ fault: BrokenDomain.Fault) -> MakeCluster {
        { nics in try Cluster(.simulated, nics: nics, wrap: { BrokenDomain($0, fault) }) }
    }

    @Test func aProviderWithoutFaultsPasses() throws {
        #expect(try WriteChecks.sizes(make(.none)).violations.isEmpty)
        #expect(try PageChecks.lists(make(.none), nics: [2, 2]).violations.isEmpty)
    }

    @Test func aDroppedLastByteIsCaught() throws {
        #expect(try !WriteChecks.sizes(make(.dropsLastByte)).violations.isEmpty)
        #expect(try !PageChecks.lists(make(.dropsLastByte), nics: [1, 1]).violations.isEmpty)
    }

    @Test func aDoubleCountIsCaught() throws {
        #expect(try !WriteChecks.sizes(make(.countsTwice)).violations.isEmpty)
        #expect(try !PageChecks.lists(make(.countsTwice), nics: [1, 1]).violations.isEmpty)
    }

    @Test func anEarlyCompletionIsCaught() throws {
        #expect(try !WriteChecks.sizes(make(.completesEarly)).violations.isEmpty)
    }

    @Test func aCountBeforeTheDataIsCaught() throws {
        #expect(try !WriteChecks.countAfterData(make(.countsEarly), nics: [1, 1]).violations.isEmpty)
    }
}

/// A domain with a fault, around one that works.
final class BrokenDomain: FabricDomain {
    enum Fault { case none, dropsLastByte, countsTwice, completesEarly, countsEarly }

    private let inner: any FabricDomain
    private let fault: Fault

    init(_ inner: any FabricDomain, _ fault: Fault) {
        self.inner = inner
        self.fault = fault
    }

    var attributes: DomainAttributes { inner.attributes }
    var address: [UInt8] { inner.address }
    var wakeDescriptor: Int32 { inner.wakeDescriptor }
    func prepareToSleep() -> Bool { inner.prepareToSleep() }
    func close() { inner.close() }

    func register(_ region: LocalRegion) throws(TransferError) -> DomainKey { try inner.register(region) }
    func deregister(_ region: LocalRegion, key: DomainKey) { inner.deregister(region, key: key) }
    func importRegion(_ remote: RemoteRegion, nic: Int) throws(TransferError) -> ImportedKey {
        try inner.importRegion(remote, nic: nic)
    }
    func releaseImport(_ key: ImportedKey) { inner.releaseImport(key) }

    func send(
        _ payload: UnsafeRawBufferPointer, to target: UnsafePointer<ImportedKey>, context: UInt64
    ) -> PostResult { inner.send(payload, to: target, context: context) }

    func post(_ requests: UnsafeBufferPointer<WorkRequest>) -> PostResult {
        guard fault != .none, let first = requests.first else { return inner.post(requests) }
        var request = first
        switch fault {
        case .dropsLastByte: request.length = max(0, request.length - 1)
        case .countsTwice, .countsEarly:
            var extra = request
            extra.length = 0
            extra.context = .max
            if fault == .countsEarly { request.eighths = 0 }
            if extra.eighths > 0 { _ = post(one: extra) }
        case .none, .completesEarly: break
        }
        if fault == .completesEarly {
            request.context = .max
            return PostResult(accepted: post(one: request).accepted, isComplete: true, status: .success)
        }
        return post(one: request)
    }

    private func post(one request: WorkRequest) -> PostResult {
        withUnsafePointer(to: request) { inner.post(UnsafeBufferPointer(start: $0, count: 1)) }
    }

    /// Leaves out the completions of requests that the engine did not make.
    func poll(_ completions: UnsafeMutableBufferPointer<Completion>) -> Int {
        let count = inner.poll(completions)
        var kept = 0
        for index in 0..<count where completions[index].context != .max {
            completions[kept] = completions[index]
            kept += 1
        }
        return kept
    }
}
