import Glibc
import Simulation
import Testing
import TransferEngine
@testable import WeightTransfer

/// Members that say nothing, messages that come too late, memory that is damaged: what becomes of an update then.
@Suite(.serialized) struct DecisionTests {
    typealias Rig = UpdateTests.Rig

    /// One trainer, two replicas that serve version 1. Phases may take long: tests that wait for the end of one say so.
    static func rig() throws -> Rig {
        let rig = try Rig(
            .shm, trainer: ParallelTrainer(), inference: ParallelInference(replicas: 2))
        rig.run("joining") { rig.controller.isComplete }
        try rig.update(to: 1)
        rig.expect(1)
        return rig
    }

    /// Pushes a version of which some receivers will not hear that it is decided.
    static func decide(_ version: UInt64, _ rig: Rig) throws {
        rig.publish(version)
        try rig.controller.update(to: version)
        rig.run("deciding") { rig.controller.phase == .committing }
        rig.controller.options.phaseTimeout = .milliseconds(500)
        rig.run("version \(version)") { rig.controller.outcomes[version] != nil }
        rig.controller.options.phaseTimeout = .seconds(10)
    }

    /// The endpoint of a receiver of `rig()`.
    static func endpoint(of receiver: Int, _ rig: Rig) -> WeightEndpoint { rig.endpoints[1 + receiver] }

    @Test func whoDoesNotCommitIsLeftOutAndComesAfterwards() throws {
        let rig = try Self.rig()
        let deaf = Self.endpoint(of: 1, rig)
        deaf.isLost = { $0.kind == .commit || $0.kind == .open && $0.version == 2 && $0.others.count == 1 }
        try Self.decide(2, rig)
        #expect(rig.controller.outcomes[2] == .committed(leftOut: [1]))
        #expect(rig.receivers.map(\.activeVersion) == [2, 1])
        #expect(rig.controller.currentVersion == 2)
        deaf.isLost = nil
        rig.run("catching up") { rig.receivers[1].activeVersion == 2 && !rig.controller.isBusy }
        rig.expect(2)
    }

    /// The time of a phase runs from its beginning, not from when somebody last looked.
    @Test func aPauseBeforeARollbackIsNotPartOfIt() throws {
        let rig = try Self.rig()
        try rig.update(to: 2)
        rig.controller.options.phaseTimeout = .seconds(1)
        usleep(1_100_000)
        try rig.controller.rollback(to: 1)
        rig.run("rolling back") { !rig.controller.isBusy }
        #expect(rig.controller.rollbackOutcome == .committed(leftOut: []))
        rig.expect(1)
    }

    @Test(arguments: [WeightMessage.Kind.opened, .prepared])
    func everyPhaseHasAnEnd(_ lost: WeightMessage.Kind) throws {
        let rig = try Self.rig()
        (rig.controller.options.phaseTimeout, rig.controller.options.attempts) = (.seconds(3), 2)
        rig.endpoints[0].isLost = { $0.kind == lost && $0.rank == 1 }
        try rig.update(to: 2)
        guard case .failed(.attempts(2, let last)) = rig.controller.outcomes[2] else {
            Issue.record("\(String(describing: rig.controller.outcomes[2]))")
            return
        }
        #expect(last.contains("receivers [1] did not answer"))
        rig.expect(1)
    }

    @Test func aTrainerThatSaysNothingEndsTheUpdate() throws {
        let rig = try Self.rig()
        (rig.controller.options.phaseTimeout, rig.controller.options.attempts) = (.seconds(3), 2)
        rig.endpoints[0].isLost = { $0.kind == .start }
        try rig.update(to: 2)
        guard case .failed(.attempts(2, let last)) = rig.controller.outcomes[2] else {
            Issue.record("\(String(describing: rig.controller.outcomes[2]))")
            return
        }
        #expect(last.contains("trainers [0] did not answer"))
        rig.expect(1)
    }

    /// Nobody tells it that the attempt is over: it has an end of its own.
    @Test func aTrainerWhoseControllerIsLostEndsItsPart() throws {
        let rig = try Self.rig()
        rig.controller.options.phaseTimeout = .seconds(3)
        rig.endpoints[0].isLost = { $0.kind == .target }
        rig.publish(2)
        try rig.controller.update(to: 2)
        rig.run("training") { rig.trainers[0].isBusy }
        rig.endpoints[0].controller = nil
        rig.run("ending") { !rig.trainers[0].isBusy }
        rig.expect(1)
    }

    @Test func allAttemptsTogetherHaveAnEnd() throws {
        let rig = try Self.rig()
        rig.controller.options.updateTimeout = .milliseconds(500)
        Self.endpoint(of: 1, rig).isLost = { $0.kind == .open }
        try rig.update(to: 2)
        guard case .failed(.timedOut) = rig.controller.outcomes[2] else {
            Issue.record("\(String(describing: rig.controller.outcomes[2]))")
            return
        }
        rig.expect(1)
    }

    @Test func anUpdateOfNobodyFails() throws {
        let rig = try Self.rig()
        rig.controller = WeightController(
            rig.endpoints[0], plan: rig.plan, term: 2, options: rig.controller.options)
        rig.controller.options.phaseTimeout = .milliseconds(200)
        rig.endpoints[0].isLost = { $0.kind == .join && !$0.isTrainer }
        rig.publish(2)
        try rig.controller.update(to: 2)
        rig.run("version 2") { rig.controller.outcomes[2] != nil }
        #expect(rig.controller.outcomes[2] == .failed(.nobodyThere("receiver")))
    }

    /// The receiver keeps what it is receiving when a question of an earlier attempt comes late.
    @Test func anEarlierAttemptThatComesLateUndoesNothing() throws {
        let rig = try Self.rig()
        let receiver = rig.receivers[0]
        let before = receiver.attempt
        var open = WeightMessage(.open)
        (open.term, open.version, open.attempt, open.others) = (1, 2, before + 2, [0, 1])
        receiver.handle(open)
        #expect(receiver.attempt == before + 2)
        open.attempt = before + 1
        receiver.handle(open)
        #expect(receiver.attempt == before + 2)
    }

    @Test func whatArrivesDamagedIsSentAgain() throws {
        let rig = try Self.rig()
        let sent = rig.trainers[0].sentBytes
        rig.trainers[0].isDelta = false
        var spoilt = 0
        rig.receivers[0].spoil = { region in
            spoilt += 1
            if spoilt == 1 { region.bytes[1000] ^= 1 }
        }
        try rig.update(to: 2)
        #expect(rig.controller.outcomes[2] == .committed(leftOut: []))
        #expect(spoilt == 2)
        let whole = 2 * rig.plan.model.byteCount
        let again = rig.trainers[0].sentBytes - sent - whole
        // The task that was damaged, to both, and nothing else.
        #expect(again > 0 && again <= 2 * 8192)
        rig.expect(2)
    }

    @Test func rollingBackIsForAllOrNone() throws {
        let rig = try Self.rig()
        try rig.update(to: 2)
        rig.stopped = [2]
        rig.endpoints[2].engine.close()
        try rig.addReceiver(1)
        rig.run("catching up") { rig.receivers[1].activeVersion == 2 && !rig.controller.isBusy }
        try rig.controller.rollback(to: 1)
        rig.run("rolling back") { rig.controller.rollbackOutcome != nil }
        #expect(rig.controller.rollbackOutcome == .failed(.notKept(1, receiver: 1)))
        rig.expect(2)
    }

    @Test func whoMissesARollbackComesAfterwards() throws {
        let rig = try Self.rig()
        try rig.update(to: 2)
        Self.endpoint(of: 1, rig).isLost = { $0.kind == .rollback || $0.kind == .open }
        try rig.controller.rollback(to: 1)
        rig.run("deciding") { rig.controller.phase == .rollingBack }
        rig.controller.options.phaseTimeout = .milliseconds(500)
        rig.run("rolling back") { rig.controller.rollbackOutcome != nil }
        #expect(rig.controller.rollbackOutcome == .committed(leftOut: [1]))
        rig.controller.options.phaseTimeout = .seconds(10)
        #expect(rig.receivers.map(\.activeVersion) == [1, 2])
        // A controller that follows learns which of the two was decided last.
        rig.controller = WeightController(
            rig.endpoints[0], plan: rig.plan, term: 2, options: rig.controller.options)
        Self.endpoint(of: 1, rig).isLost = nil
        rig.publish(1)
        rig.run("catching up") { rig.receivers[1].activeVersion == 1 && !rig.controller.isBusy }
        #expect(rig.controller.currentVersion == 1)
        rig.expect(1)
    }

    @Test func aControllerThatFollowsTakesOverWhatWasDecided() throws {
        let rig = try Self.rig()
        let deaf = Self.endpoint(of: 1, rig)
        deaf.isLost = { $0.kind == .commit || $0.kind == .open && $0.others.count == 1 }
        try Self.decide(2, rig)
        #expect(rig.receivers.map(\.activeVersion) == [2, 1])
        rig.controller = WeightController(
            rig.endpoints[0], plan: rig.plan, term: 2, options: rig.controller.options)
        deaf.isLost = nil
        try rig.controller.update(to: 2)
        rig.run("version 2") { rig.controller.outcomes[2] != nil }
        #expect(rig.controller.outcomes[2]?.isCommitted == true)
        rig.run("catching up") { rig.receivers[1].activeVersion == 2 && !rig.controller.isBusy }
        rig.expect(2)
    }

    @Test func whatIsWithdrawnIsNotSent() throws {
        let rig = try Self.rig()
        (rig.controller.options.phaseTimeout, rig.controller.options.attempts) = (.seconds(1), 2)
        try rig.trainers[0].withdraw()
        try rig.controller.update(to: 2)
        rig.run("version 2") { rig.controller.outcomes[2] != nil }
        #expect(rig.controller.outcomes[2]?.isCommitted == false)
        rig.expect(1)
    }

    @Test func whatNobodyKeepsIsGivenBack() throws {
        weak var endpoint: WeightEndpoint?
        weak var trainer: WeightTrainer?
        do {
            let rig = try Self.rig()
            (endpoint, trainer) = (rig.endpoints[0], rig.trainers[0])
            #expect(endpoint != nil && trainer != nil)
        }
        #expect(endpoint == nil && trainer == nil)
    }
}
