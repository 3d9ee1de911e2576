import SimulatedProvider
import Testing
import TransferCore

@Suite struct RefusalTests {
    /// Lets the write happen, expects it to fail and to have done nothing.
    private func expectFailure(
        _ pair: Pair, _ status: WorkStatus, detail: Int32 = SimulatedDetail.none,
        location: SourceLocation = #_sourceLocation
    ) {
        pair.settle()
        let ends = pair.left.poll().completions
        #expect(ends.map(\.status) == [status], sourceLocation: location)
        #expect(ends.map(\.detail) == [detail], sourceLocation: location)
        #expect(pair.right.page.eighths(of: 1) == 0, "counted nowhere", sourceLocation: location)
        let isUntouched = pair.target.bytes.allSatisfy { $0 == 0 }
        #expect(isUntouched, "no partial write", sourceLocation: location)
    }

    @Test func anotherGeneration() throws {
        let pair = try Pair()
        pair.key.pointee.generation += 1
        try pair.left.write(pair.source, 100_000, to: pair.key, immediate: 1)
        expectFailure(pair, .staleRegion)
    }

    @Test func aRevokedRegion() throws {
        let pair = try Pair()
        try pair.left.write(pair.source, 100_000, to: pair.key, immediate: 1)
        pair.right.revoke(pair.target)
        expectFailure(pair, .staleRegion)
    }

    @Test func aRegionRevokedHalfWay() throws {
        let pair = try Pair()
        try pair.left.write(pair.source, pair.source.bytes.count, to: pair.key, immediate: 1)
        while pair.target.bytes.allSatisfy({ $0 == 0 }) { #expect(pair.network.step()) }
        pair.right.revoke(pair.target)
        let then = [UInt8](pair.target.bytes)
        pair.settle()
        #expect(pair.target.bytes.elementsEqual(then), "not a byte lands after the end of the region")
        #expect(pair.left.poll().completions.map(\.status) == [.staleRegion])
        #expect(pair.right.page.eighths(of: 1) == 0)
    }

    @Test func aRegionThatIsNotForPeers() throws {
        let pair = try Pair()
        let local = try pair.right.memory(64, access: .localOnly)
        try pair.left.write(pair.source, 64, to: try pair.left.key(local.remote), immediate: 1)
        pair.settle()
        #expect(pair.left.poll().completions.allSatisfy { $0.status != .success })
        #expect(local.bytes.allSatisfy { $0 == 0 })
        #expect(pair.right.page.eighths(of: 1) == 0)
    }

    @Test func wrongSecretsAndKeys() throws {
        let secret = try Pair()
        secret.key.pointee.secret += 1
        try secret.left.write(secret.source, 10, to: secret.key, immediate: 1)
        expectFailure(secret, .accessDenied)

        let key = try Pair()
        key.key.pointee.key += 1
        try key.left.write(key.source, 10, to: key.key, immediate: 1)
        expectFailure(key, .accessDenied, detail: SimulatedDetail.badRemoteKey)

        let gone = try Pair()
        try gone.left.write(gone.source, 10, to: gone.key, immediate: 1)
        gone.right.domain.deregister(gone.target.region, key: gone.target.key)
        expectFailure(gone, .accessDenied, detail: SimulatedDetail.badRemoteKey)
    }

    @Test(arguments: [1 << 20, (1 << 20) - 9_999, .max, .max - 5_000, 1 << 63] as [UInt64])
    func outsideOfTheRegion(offset: UInt64) throws {
        let pair = try Pair()
        try pair.left.write(pair.source, 10_000, to: pair.key, at: offset, immediate: 1)
        expectFailure(pair, .outOfRange)
    }

    @Test func aSourceThatWentAway() throws {
        let pair = try Pair()
        try pair.left.write(pair.source, 10, to: pair.key, immediate: 1)
        pair.left.domain.deregister(pair.source.region, key: pair.source.key)
        expectFailure(pair, .accessDenied, detail: SimulatedDetail.badLocalKey)
        let refused = try pair.left.write(pair.source, 10, to: pair.key, immediate: 1)
        #expect(refused.accepted == 0 && refused.status == .accessDenied)
        let empty = try pair.left.write(pair.source, 0, to: pair.key, immediate: 2)
        #expect(empty.accepted == 1, "an immediate without data has no source")
    }

    @Test func whatThisNICCannotDo() throws {
        let pair = try Pair(left: SimulatedNIC(name: "left", maximumWriteBytes: 1000))
        func detail(_ length: Int, eighths: UInt32 = 8, immediate: UInt32 = 1, from: Int = 0) throws -> Int32
        {
            let result = try pair.left.write(
                pair.source, from: from, length, to: pair.key, immediate: immediate, eighths: eighths)
            #expect((result.accepted == 1) == (result.status == .success))
            return result.detail
        }
        #expect(pair.key.pointee.maximumWriteBytes == 1000)
        #expect(try detail(1000) == 0)
        #expect(try detail(1001) == SimulatedDetail.tooLong)
        #expect(try detail(-1) == SimulatedDetail.tooLong)
        #expect(try detail(1, eighths: 3) == SimulatedDetail.badImmediate)
        #expect(try detail(1, eighths: 16) == SimulatedDetail.badImmediate)
        #expect(try detail(1, immediate: 1 << 30) == SimulatedDetail.badImmediate)
        #expect(try detail(2, from: (1 << 20) - 1) == SimulatedDetail.badLocalKey)
        #expect(try detail(1, from: -1) == SimulatedDetail.badLocalKey)
        #expect(try detail(1, eighths: 0) == 0)
        pair.settle()
        #expect(pair.right.page.eighths(of: 1) == 8)
    }

    @Test func someNICsCountMany() throws {
        let nic = SimulatedNIC(name: "left", countsMany: true, countsManyBytes: 1000)
        let pair = try Pair(left: nic)
        #expect(pair.left.domain.attributes.countsMany)
        #expect(try pair.left.write(pair.source, 1000, to: pair.key, immediate: 1, eighths: 80).accepted == 1)
        #expect(try pair.left.write(pair.source, 1001, to: pair.key, immediate: 1, eighths: 80).accepted == 0)
        pair.settle()
        #expect(pair.right.page.eighths(of: 1) == 80)
    }

    @Test func importsOfNobody() throws {
        let pair = try Pair()
        func code(nic: Int = 0, _ change: (inout RemoteRegion) -> Void) -> TransferError.Code? {
            var remote = pair.target.remote
            change(&remote)
            do {
                _ = try pair.left.domain.importRegion(remote, nic: nic)
                return nil
            } catch { return error.code }
        }
        #expect(code { _ in } == nil)
        #expect(code { $0.nics[0].address[0] ^= 1 } == .unreachable)
        #expect(code { $0.nics[0].address = [] } == .unreachable)
        #expect(code { $0.nics[0].address += [0] } == .unreachable)
        #expect(code { $0.nics[0].fabric = "tcp" } == .unreachable)
        #expect(code(nic: 1) { _ in } == .invalidArgument)
        pair.right.domain.close()
        #expect(code { _ in } == .unreachable)
    }

    @Test func aPeerThatClosed() throws {
        let pair = try Pair()
        try pair.left.write(pair.source, 100_000, to: pair.key, immediate: 1)
        pair.right.domain.close()
        pair.left.send([1], to: pair.key, context: 2)
        pair.settle()
        #expect(pair.network.nowNanoseconds > 10_000_000, "after the retry timeout")
        let ends = pair.left.poll().completions
        #expect(ends.map(\.status) == [.peerLost, .peerLost])
        #expect(Set(ends.map(\.context)) == [1, 2])
        #expect(pair.target.bytes.allSatisfy { $0 == 0 })
    }

    @Test func aSenderThatClosed() throws {
        let pair = try Pair()
        try pair.left.write(pair.source, 100_000, to: pair.key, immediate: 1)
        pair.left.send([1], to: pair.key)
        pair.left.domain.close()
        pair.left.domain.close()
        pair.settle()
        #expect(pair.right.poll().messages.isEmpty)
        #expect(pair.right.page.eighths(of: 1) == 0)
        #expect(pair.left.send([1], to: pair.key).detail == SimulatedDetail.closed)
        #expect(pair.left.poll().completions.isEmpty)
        #expect(throws: TransferError.self) { try pair.left.domain.register(pair.source.region) }
    }

    @Test func nothingIsKeptAlive() throws {
        weak var network: SimulatedNetwork?
        weak var domain: SimulatedDomain?
        do {
            let pair = try Pair()
            (network, domain) = (pair.network, pair.left.domain)
            try pair.left.write(pair.source, 100_000, to: pair.key)
            pair.left.send([1], to: pair.key)
            pair.network.step()
            #expect(network != nil && domain != nil)
        }
        #expect(network == nil && domain == nil)
    }
}
