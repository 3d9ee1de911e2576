import Testing
import TransferEngine

/// The contract, held against every provider that this build has. A provider that cannot be opened fails the suite: it is
/// never skipped.
@Suite(.serialized) struct ConformanceTests {
    private func make(_ fabric: Fabric) -> MakeCluster { { try Cluster(fabric, nics: $0) } }

    private func check(_ findings: Findings) {
        #expect(findings.violations.isEmpty, "\(findings.violations.prefix(5).joined(separator: "\n"))")
    }

    @Test(.timeLimit(.minutes(5)), arguments: Fabric.allCases) func writes(_ fabric: Fabric) throws {
        check(try WriteChecks.sizes(make(fabric)))
    }

    @Test(.timeLimit(.minutes(5)), arguments: Fabric.allCases) func writesOverManyNICs(_ fabric: Fabric)
        throws
    {
        for nics in [[1, 2], [2, 1], [4, 4], [2, 4], [4, 3], [8, 8]] where fabric.allowsManyEndpoints {
            check(try WriteChecks.sizes(make(fabric), nics: nics))
        }
        check(try WriteChecks.sizes(make(fabric), nics: [2, 2]))
    }

    @Test(.timeLimit(.minutes(5)), arguments: Fabric.allCases) func countAfterData(_ fabric: Fabric) throws {
        check(try WriteChecks.countAfterData(make(fabric), nics: [1, 1]))
        check(try WriteChecks.countAfterData(make(fabric), nics: [2, 2]))
    }

    @Test(.timeLimit(.minutes(5)), arguments: Fabric.allCases.filter { !$0.pinsMemory })
    func offsetsBeyondFourGiB(_ fabric: Fabric) throws {
        check(try WriteChecks.beyondFourGiB(make(fabric)))
    }

    @Test(.timeLimit(.minutes(5)), arguments: Fabric.allCases) func thousandRounds(_ fabric: Fabric) throws {
        check(
            try WriteChecks.rounds(
                make(fabric), nics: fabric.allowsManyEndpoints ? [2, 4] : [1, 1], rounds: 1000))
    }

    @Test(.timeLimit(.minutes(5)), arguments: Fabric.allCases) func pages(_ fabric: Fabric) throws {
        check(try PageChecks.lists(make(fabric), nics: [1, 1]))
        check(try PageChecks.lists(make(fabric), nics: fabric.allowsManyEndpoints ? [4, 2] : [2, 1]))
        check(try PageChecks.duplicates(make(fabric)))
    }

    @Test(.timeLimit(.minutes(5)), arguments: Fabric.allCases) func hundredThousandPages(_ fabric: Fabric)
        throws
    {
        check(try PageChecks.many(make(fabric)))
    }

    @Test(.timeLimit(.minutes(5)), arguments: Fabric.allCases) func scatter(_ fabric: Fabric) throws {
        check(
            try GroupChecks.scatter(make(fabric), peers: 3) {
                fabric.allowsManyEndpoints ? [2, 1, 4, 2][$0] : 1
            })
    }

    @Test(.timeLimit(.minutes(5)), arguments: Fabric.allCases) func sixtyFourPeers(_ fabric: Fabric) throws {
        check(try GroupChecks.scatter(make(fabric), peers: fabric.mostPeers) { _ in 1 })
    }

    @Test(.timeLimit(.minutes(5)), arguments: Fabric.allCases) func barriers(_ fabric: Fabric) throws {
        check(try GroupChecks.barrier(make(fabric), peers: 4))
    }

    @Test(.timeLimit(.minutes(5)), arguments: Fabric.allCases) func immediates(_ fabric: Fabric) throws {
        check(try GroupChecks.immediates(make(fabric)))
    }

    /// In virtual time nobody waits for files.
    @Test(.timeLimit(.minutes(5)), arguments: Fabric.allCases.filter { !$0.isSimulated })
    func engineAtRestIsWoken(_ fabric: Fabric) throws {
        check(try RestChecks.rests(fabric))
    }

    @Test(.timeLimit(.minutes(5)), arguments: Fabric.allCases) func messages(_ fabric: Fabric) throws {
        check(try GroupChecks.messages(make(fabric)))
    }

    @Test(.timeLimit(.minutes(5)), arguments: Fabric.allCases) func badArguments(_ fabric: Fabric) throws {
        check(try ErrorChecks.arguments(make(fabric)))
    }

    @Test(.timeLimit(.minutes(5)), arguments: Fabric.allCases) func badDescriptors(_ fabric: Fabric) throws {
        // libfabric's shm (1.17) says nothing about a wrong key: there it is the deadline that ends the write.
        let refusals: [TransferError.Code] = fabric.reportsWrongKeys ? [] : [.stalled]
        check(try ErrorChecks.descriptors(make(fabric), alsoRefusedBy: refusals))
        check(try ErrorChecks.deregistered(make(fabric), alsoRefusedBy: refusals))
    }

    @Test(.timeLimit(.minutes(5)), arguments: Fabric.allCases) func forgedDescriptors(_ fabric: Fabric) throws
    {
        check(try ErrorChecks.forgeries(make(fabric)))
    }

    @Test(.timeLimit(.minutes(5)), arguments: Fabric.allCases) func damagedDescriptors(_ fabric: Fabric)
        throws
    {
        check(try ErrorChecks.mutations(make(fabric)))
    }

    /// Says in the report which providers the suite was not built with.
    @Test(.enabled(if: Fabric.leftOut.isEmpty, "built without the traits \(Fabric.leftOut)"))
    func everyProviderIsBuilt() { #expect(Fabric.leftOut.isEmpty) }

    #if Verbs
        /// Says in the report that the verbs provider was not run on a device; `TE_REQUIRE_VERBS=1` makes that a failure.
        @Test(.enabled(if: Fabric.isVerbsExpected, "this machine has no RDMA device that can be used"))
        func verbsHasDevices() {
            #expect(!Fabric.verbsDevices.isEmpty, "TE_REQUIRE_VERBS is set and there is no RDMA device")
        }
    #endif
}
