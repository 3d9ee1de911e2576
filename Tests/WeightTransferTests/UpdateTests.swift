import Simulation
import Testing
import TransferEngine
@testable import WeightTransfer

#if Libfabric
    import LibfabricProvider
#endif

/// Updates over real engines: threads of their own, memory that other engines write into.
@Suite(.serialized) struct UpdateTests {
    enum Fabric: String, CaseIterable, Sendable {
        case shm
        #if Libfabric
            case tcp
        #endif

        #if Libfabric
            private static var loopback: LibfabricOptions {
                var options = LibfabricOptions(provider: "tcp")
                options.nic = "127.0.0.1"
                return options
            }
        #endif

        var nic: Configuration.NIC {
            switch self {
            case .shm: .sharedMemory
            #if Libfabric
                case .tcp: .libfabric(Self.loopback)
            #endif
            }
        }
    }

    final class Rig {
        let plan: Plan
        let oracle: WeightOracle
        var endpoints: [WeightEndpoint] = []
        var trainers: [WeightTrainer] = []
        var receivers: [WeightReceiver] = []
        var controller: WeightController
        var stopped: Set<Int> = []
        private let fabric: Fabric
        private let isManual: Bool

        init(
            _ fabric: Fabric, trainer: ParallelTrainer, inference: ParallelInference, taskBytes: Int = 8192,
            phaseTimeout: Duration = .seconds(10), model: ModelDescription? = nil, isManual: Bool = false
        ) throws {
            self.fabric = fabric
            self.isManual = isManual
            let model = try model ?? Self.model()
            let layout = try inference.layout(of: model)
            var options = Planner.Options()
            options.taskBytes = taskBytes
            options.watermarkBytes = 256 << 10
            plan = try Planner.plan(model, from: trainer.layout(of: model), to: layout, options: options)
            #expect(plan.lint() == [])
            oracle = WeightOracle(model: model, inference: layout)
            let first = try Self.endpoint(fabric, "trainer 0", isManual: isManual)
            var settings = WeightController.Options()
            settings.phaseTimeout = phaseTimeout
            controller = WeightController(first, plan: plan, options: settings)
            for rank in 0..<plan.trainers.worldSize {
                let endpoint =
                    rank == 0 ? first : try Self.endpoint(fabric, "trainer \(rank)", isManual: isManual)
                endpoints.append(endpoint)
                trainers.append(
                    try WeightTrainer(endpoint, rank: rank, plan: plan) { first.engine.address })
            }
            for rank in 0..<plan.inference.worldSize { try addReceiver(rank) }
        }

        deinit { for endpoint in endpoints { endpoint.engine.close() } }

        func addReceiver(_ rank: Int) throws {
            let endpoint = try Self.endpoint(fabric, "receiver \(rank)", isManual: isManual)
            let first = endpoints[0]
            endpoints.append(endpoint)
            let receiver = try WeightReceiver(endpoint, rank: rank, plan: plan) { first.engine.address }
            if rank < receivers.count { receivers[rank] = receiver } else { receivers.append(receiver) }
        }

        static func endpoint(
            _ fabric: Fabric, _ name: String, isManual: Bool = false
        ) throws -> WeightEndpoint {
            var configuration = Configuration(
                name: name, nics: [fabric.nic], progress: isManual ? .manual : .adaptive,
                timeout: .seconds(10))
            configuration.liveness = Liveness(interval: .milliseconds(200))
            return try WeightEndpoint(TransferEngine(configuration))
        }

        static func model() throws -> ModelDescription {
            let shapes: [(String, [Int])] = [
                ("self_attn.q_proj.weight", [256, 200]), ("self_attn.k_proj.weight", [64, 200]),
                ("self_attn.v_proj.weight", [64, 200]), ("self_attn.o_proj.weight", [200, 256]),
                ("mlp.gate_proj.weight", [300, 200]), ("mlp.up_proj.weight", [300, 200]),
                ("mlp.down_proj.weight", [200, 300]), ("input_layernorm.weight", [200]),
            ]
            return try ModelDescription(
                name: "small",
                tensors: (0..<2).flatMap { layer in
                    shapes.map { TensorDescription("model.layers.\(layer).\($0.0)", $0.1) }
                }, attention: AttentionShape(heads: 8, keyValueHeads: 2, headSize: 32))
        }

        func publish(_ version: UInt64) {
            for trainer in trainers {
                for tensor in plan.model.tensors.indices where trainer.layout.entries[tensor] != nil {
                    oracle.bytes(of: tensor, version: version).withUnsafeBytes {
                        trainer.layout.fill(
                            from: $0, tensor: tensor, model: plan.model, into: trainer.memory.bytes)
                    }
                }
                trainer.publish(version)
            }
        }

        /// Polls everybody until something is true; a test that waits longer than this fails.
        func run(_ what: String, seconds: Double = 60, until isDone: () -> Bool) {
            let clock = ContinuousClock()
            let begin = clock.now
            while !isDone() {
                let time = begin.duration(to: clock.now)
                guard time < .seconds(seconds) else {
                    Issue.record("\(what) took longer than \(seconds) s: \(controller.log)")
                    return
                }
                for (index, endpoint) in endpoints.enumerated() where !stopped.contains(index) {
                    if isManual { endpoint.engine.progress() }
                    endpoint.poll(at: time.inNanoseconds + base)
                }
            }
            base += begin.duration(to: clock.now).inNanoseconds
        }
        private var base: UInt64 = 1

        func update(to version: UInt64) throws {
            publish(version)
            try controller.update(to: version)
            run("version \(version)") { controller.outcomes[version] != nil }
        }

        func expect(_ version: UInt64) {
            for (rank, receiver) in receivers.enumerated() {
                let damage = receiver.read { found, weights in
                    found == version
                        ? oracle.damage(rank: rank, version: version, weights) : "version \(found)"
                }
                #expect(damage == .some(nil))
            }
        }
    }

    @Test(arguments: Fabric.allCases, [false, true])
    func versionsArriveWhole(fabric: Fabric, isQuantised: Bool) throws {
        let rig = try Rig(
            fabric, trainer: ParallelTrainer(fsdp: 3, tensor: 2, ranksPerNode: 2),
            inference: ParallelInference(tensor: 2, replicas: 2, isQuantised: isQuantised))
        #expect(rig.plan.tasks.contains { $0.preparation.contains(.gather) } == isQuantised)
        rig.run("joining") { rig.controller.isComplete }
        #expect(rig.receivers.allSatisfy { $0.activeVersion == nil })
        for version in UInt64(1)...3 {
            try rig.update(to: version)
            #expect(rig.controller.outcomes[version] == .committed(leftOut: []))
            rig.expect(version)
        }
        try rig.controller.rollback(to: 2)
        rig.run("rolling back") { !rig.controller.isBusy }
        rig.expect(2)
    }

    @Test func whatHasNotChangedIsNotSent() throws {
        let rig = try Rig(.shm, trainer: ParallelTrainer(fsdp: 2), inference: ParallelInference(replicas: 1))
        rig.run("joining") { rig.controller.isComplete }
        try rig.update(to: 1)
        let sent = { rig.trainers.reduce(0) { $0 + $1.sentBytes } }
        let whole = sent()
        #expect(whole == rig.plan.model.byteCount)
        try rig.update(to: 2)
        let changed = rig.plan.model.tensors.indices.filter { WeightOracle.change(of: $0, in: 2) == 2 }
        let bytes = changed.reduce(0) { $0 + rig.plan.model.tensors[$1].byteCount }
        #expect(bytes < whole && bytes > 0)
        // A matrix of two parameters is one task, of which a part that has changed takes the rest along.
        #expect(sent() - whole >= bytes && sent() - whole < whole)
        rig.expect(2)
    }

    @Test func readersKeepWhatTheyRead() throws {
        let rig = try Rig(.shm, trainer: ParallelTrainer(fsdp: 2), inference: ParallelInference())
        rig.run("joining") { rig.controller.isComplete }
        try rig.update(to: 1)
        let oracle = rig.oracle
        try rig.receivers[0].read { version, weights in
            try rig.update(to: 2)
            // The slot that is being read is the spare one now: the next version waits.
            rig.publish(3)
            try rig.controller.update(to: 3)
            var polls = 0
            rig.run("waiting") {
                polls += 1
                return polls > 3000
            }
            #expect(rig.receivers[0].activeVersion == 2)
            #expect(version == 1 && oracle.damage(rank: 0, version: 1, weights) == nil)
        }
        rig.run("version 3") { rig.controller.outcomes[3] != nil }
        rig.expect(3)
    }

    /// For those who cannot be inside of `read` meanwhile.
    @Test func aReadingIsEndedBySomebodyElse() throws {
        let rig = try Rig(.shm, trainer: ParallelTrainer(fsdp: 2), inference: ParallelInference())
        #expect(rig.receivers[0].beginReading() == nil)
        rig.run("joining") { rig.controller.isComplete }
        try rig.update(to: 1)
        let first = try #require(rig.receivers[0].beginReading())
        let again = try #require(rig.receivers[0].beginReading())
        try rig.update(to: 2)
        #expect(first.version == 1 && rig.oracle.damage(rank: 0, version: 1, first.weights) == nil)
        rig.receivers[0].end(first)
        rig.publish(3)
        try rig.controller.update(to: 3)
        var polls = 0
        rig.run("waiting for the other reading") {
            polls += 1
            return polls > 3000
        }
        #expect(rig.receivers[0].activeVersion == 2)
        #expect(rig.oracle.damage(rank: 0, version: 1, again.weights) == nil)
        rig.receivers[0].end(again)
        rig.run("version 3") { rig.controller.outcomes[3] != nil }
        rig.expect(3)
    }

    @Test func aClosedEndpointHasNoMemoryAndNoPart() throws {
        let rig = try Rig(.shm, trainer: ParallelTrainer(fsdp: 2), inference: ParallelInference(replicas: 2))
        rig.run("joining") { rig.controller.isComplete }
        try rig.update(to: 1)
        // With an update under way.
        rig.publish(2)
        try rig.controller.update(to: 2)
        var polls = 0
        rig.run("beginning") {
            polls += 1
            return polls > 20
        }
        for endpoint in rig.endpoints {
            polls = 0
            while !endpoint.close(), polls < 1_000_000 {
                endpoint.poll(at: 1 << 60)
                polls += 1
            }
            #expect(polls < 1_000_000)
        }
        for trainer in rig.trainers {
            let error = #expect(throws: TransferError.self) { try trainer.engine.deregister(trainer.memory) }
            #expect(error?.code == .staleRegion)
        }
        #expect(rig.receivers.allSatisfy { $0.activeVersion == 1 })
    }

    /// The thread that makes progress quantises into the memory of the only receiver: rows that follow each other there
    /// (gate, up), rows that do not (o_proj, whose columns are divided among trainers), and what was put together before
    /// (where two trainers have rows of a block). Everything else is written as ever.
    @Test func whatIsQuantisedIsMadeWhereItIsToLie() throws {
        let shapes: [(String, [Int])] = [
            ("self_attn.o_proj.weight", [260, 512]), ("mlp.gate_proj.weight", [256, 384]),
            ("mlp.up_proj.weight", [256, 384]), ("mlp.down_proj.weight", [384, 256]),
            ("input_layernorm.weight", [200]),
        ]
        let model = try ModelDescription(
            name: "blocks", tensors: shapes.map { TensorDescription("model.layers.0.\($0.0)", $0.1) })
        let rig = try Rig(
            .shm, trainer: ParallelTrainer(fsdp: 2, tensor: 2),
            inference: ParallelInference(isQuantised: true),
            taskBytes: 1 << 20, model: model, isManual: true)
        let tasks = rig.plan.tasks.filter { $0.preparation.contains(.quantise) }
        #expect(tasks.contains { $0.preparation.contains([.fuse, .gather]) })
        for trainer in rig.trainers { trainer.isDelta = false }
        #expect(
            tasks.contains { task in
                !rig.plan.strips(of: task, rig.plan.writes[Int(task.writes.first)]).isContiguous
            })
        rig.run("joining") { rig.controller.isComplete }
        for version: UInt64 in 1...3 {
            try rig.update(to: version)
            #expect(rig.controller.outcomes[version] == .committed(leftOut: []))
            rig.expect(version)
        }
        let made = tasks.reduce(0) { $0 + rig.plan.outputBytes(of: $1) }
        #expect(rig.trainers.reduce(0) { $0 + $1.inPlaceBytes } == 3 * made)
        #expect(rig.trainers.reduce(0) { $0 + $1.sentBytes } > 3 * made)
    }

    /// Replicas get the same bytes, made once; and where somebody else makes progress nothing is made in its memory.
    @Test(arguments: [(2, true), (1, false)])
    func othersAreMadeHereAndWritten(replicas: Int, isManual: Bool) throws {
        let model = try ModelDescription(
            name: "block", tensors: [TensorDescription("model.layers.0.mlp.down_proj.weight", [256, 256])])
        let rig = try Rig(
            .shm, trainer: ParallelTrainer(fsdp: 1),
            inference: ParallelInference(replicas: replicas, isQuantised: true), model: model,
            isManual: isManual)
        rig.run("joining") { rig.controller.isComplete }
        try rig.update(to: 1)
        rig.expect(1)
        #expect(rig.trainers[0].inPlaceBytes == 0)
        #expect(rig.trainers[0].sentBytes >= replicas * 256 * 256)
    }

    @Test func anotherReplicaTakesOverForALostTrainer() throws {
        let rig = try Rig(
            .shm, trainer: ParallelTrainer(fsdp: 2, replicas: 2),
            inference: ParallelInference(tensor: 2, isQuantised: true))
        rig.run("joining") { rig.controller.isComplete }
        try rig.update(to: 1)
        rig.publish(2)
        rig.stopped = [3]
        rig.endpoints[3].engine.close()
        try rig.controller.update(to: 2)
        rig.run("version 2") { rig.controller.outcomes[2] != nil }
        #expect(rig.controller.outcomes[2] == .committed(leftOut: []))
        #expect(rig.controller.log.contains { $0.contains("trainer 3") })
        rig.expect(2)
    }

    @Test func withoutAReplicaTheOldVersionStays() throws {
        let rig = try Rig(.shm, trainer: ParallelTrainer(fsdp: 2), inference: ParallelInference(tensor: 2))
        rig.run("joining") { rig.controller.isComplete }
        try rig.update(to: 1)
        rig.publish(2)
        rig.stopped = [1]
        rig.endpoints[1].engine.close()
        try rig.controller.update(to: 2)
        rig.run("version 2") { rig.controller.outcomes[2] != nil }
        guard case .failed(let reason) = rig.controller.outcomes[2] else {
            Issue.record("\(String(describing: rig.controller.outcomes[2]))")
            return
        }
        #expect(reason.description.contains("lost trainer ranks"))
        rig.expect(1)
    }

    @Test func aReceiverThatComesLateGetsTheCurrentVersion() throws {
        let rig = try Rig(.shm, trainer: ParallelTrainer(fsdp: 2), inference: ParallelInference(replicas: 2))
        rig.run("joining") { rig.controller.isComplete }
        try rig.update(to: 1)
        rig.stopped = [3]
        rig.endpoints[3].engine.close()
        try rig.addReceiver(1)
        rig.run("catching up") { rig.receivers[1].activeVersion == 1 && !rig.controller.isBusy }
        rig.expect(1)
    }

    /// What a trainer's kernel or memory spoils after the digest was made is never served.
    @Test func aWrongByteIsNeverServed() throws {
        let rig = try Rig(.shm, trainer: ParallelTrainer(fsdp: 1), inference: ParallelInference())
        rig.run("joining") { rig.controller.isComplete }
        try rig.update(to: 1)
        rig.receivers[0].spoil = { for index in 1000..<1008 { $0.bytes[index] = 0xA5 } }
        try rig.update(to: 2)
        #expect(rig.controller.log.contains { $0.contains("is not what that trainer sent") })
        #expect(
            rig.controller.outcomes[2]
                == .failed(
                    .damaged(parameter: rig.plan.inference.targets[0].name, trainer: 0, times: 3)))
        rig.expect(1)
    }

    @Test(arguments: Array(1...12) + [62, 67, 935]) func crashesAtAnyStepDoNoHarm(seed: UInt64) throws {
        let outcome = try simulateWeights(seed: seed)
        #expect(outcome.violations == [])
        #expect(outcome.completed + outcome.failed > 0)
    }

    @Test func aSeedIsARun() throws {
        #expect(try simulateWeights(seed: 5) == simulateWeights(seed: 5))
    }
}
