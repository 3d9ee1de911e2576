public import TransferEngine

/// A metric and its values at one moment.
public struct MetricFamily: Hashable, Sendable {
    /// What kind of number it is.
    public enum Kind: String, Sendable {
        /// Only rises.
        case counter
        /// Rises and falls.
        case gauge
        /// Counts how many were at most so large, by the label `le`, with their sum and number.
        case histogram
    }

    /// A value.
    public struct Sample: Hashable, Sendable {
        /// What it is of, in order.
        public var labels: [Label]
        /// The number.
        public var value: Double
        /// Which part of a histogram it is: `_bucket`, `_sum` or `_count`. Otherwise empty.
        public var suffix = ""

        package init(labels: [Label], value: Double, suffix: String = "") {
            self.labels = labels
            self.value = value
            self.suffix = suffix
        }
    }

    /// A name and what it stands for.
    public struct Label: Hashable, Sendable {
        /// `nic`, `peer`, ...
        public var name: String
        /// Which one.
        public var value: String

        package init(_ name: String, _ value: String) {
            self.name = name
            self.value = value
        }
    }

    /// Its name in Prometheus.
    public var name: String
    /// What it is, in one sentence.
    public var help: String
    /// What kind of number it is.
    public var kind: Kind
    /// Its values.
    public var samples: [Sample]

    package init(name: String, help: String, kind: Kind, samples: [Sample]) {
        self.name = name
        self.help = help
        self.kind = kind
        self.samples = samples
    }

    /// All metrics of some engines. Every family is there, also when it has no values.
    public static func all(of engines: [EngineStatistics]) -> [MetricFamily] {
        nics(engines) + operations(engines) + [latencies(engines)] + peers(engines)
    }

    private static func family<Part>(
        _ name: String, _ kind: Kind, _ help: String, _ engines: [EngineStatistics],
        _ parts: (EngineStatistics) -> [Part], _ labels: (Part) -> [Label], _ value: (Part) -> Double
    ) -> MetricFamily {
        MetricFamily(
            name: "transfer_engine_" + name, help: help, kind: kind,
            samples: engines.flatMap { engine in
                parts(engine).map {
                    Sample(labels: [Label("engine", engine.name)] + labels($0), value: value($0))
                }
            })
    }

    private static func nics(_ engines: [EngineStatistics]) -> [MetricFamily] {
        func nic(
            _ name: String, _ kind: Kind, _ help: String, _ value: @escaping (EngineStatistics.NIC) -> UInt64
        ) -> MetricFamily {
            family(
                "nic_" + name, kind, help, engines, \.nics,
                { [Label("nic", $0.name), Label("fabric", $0.fabric)] }, { Double(value($0)) })
        }
        return [
            nic("requests_total", .counter, "Work requests that the NIC took.") { $0.requests },
            nic("bytes_total", .counter, "Bytes of the work requests that the NIC took.") { $0.bytes },
            nic("requests_in_flight", .gauge, "Work requests that have not ended.") { $0.inFlight },
            nic("requests_failed_total", .counter, "Work requests that failed.") { $0.failed },
            nic("pushed_back_total", .counter, "Times the NIC took no more and was tried again.") {
                $0.pushedBack
            },
            nic("taken_over_total", .counter, "Work requests taken over from NICs that failed.") {
                $0.takenOver
            },
            nic("link_failures_total", .counter, "Connections to a peer that were given up.") {
                $0.linkFailures
            },
            nic("speed_bytes_per_second", .gauge, "What the NIC can carry.") {
                UInt64($0.megabitsPerSecond) * 125_000
            },
        ]
    }

    private static func operations(_ engines: [EngineStatistics]) -> [MetricFamily] {
        func operation(
            _ name: String, _ kind: Kind, _ help: String,
            _ value: @escaping (EngineStatistics.Operation) -> UInt64
        ) -> MetricFamily {
            family(
                name, kind, help, engines, \.operations, { [Label("operation", $0.name)] },
                { Double(value($0)) })
        }
        return [
            operation("operations_total", .counter, "Operations that have begun.") { $0.begun },
            operation("operations_in_flight", .gauge, "Operations that have not ended.") { $0.inFlight },
            operation("operations_failed_total", .counter, "Operations that ended with an error.") {
                $0.failed
            },
            operation("operations_stalled_total", .counter, "Operations whose deadline passed.") {
                $0.stalled
            },
            operation("operation_bytes_total", .counter, "Bytes that operations were to move.") { $0.bytes },
        ]
    }

    private static func latencies(_ engines: [EngineStatistics]) -> MetricFamily {
        var samples: [Sample] = []
        for engine in engines {
            for operation in engine.operations where operation.total.counts.contains(where: { $0 > 0 }) {
                let labels = [Label("engine", engine.name), Label("operation", operation.name)]
                samples += Self.samples(operation.total, labels + [Label("stage", "total")])
                guard operation.posting.counts.contains(where: { $0 > 0 }) else { continue }
                samples += Self.samples(operation.posting, labels + [Label("stage", "posting")])
            }
        }
        return MetricFamily(
            name: "transfer_engine_operation_seconds",
            help: "How long operations took, and how long until the NICs had taken all of them.",
            kind: .histogram, samples: samples)
    }

    private static func samples(_ latency: EngineStatistics.Latency, _ labels: [Label]) -> [Sample] {
        var sum = 0.0
        var samples: [Sample] = []
        let bounds = EngineStatistics.Latency.bounds.map { "\(Double($0) / 1e9)" } + ["+Inf"]
        for (count, bound) in zip(latency.counts, bounds) {
            sum += Double(count)
            samples.append(Sample(labels: labels + [Label("le", bound)], value: sum, suffix: "_bucket"))
        }
        samples.append(Sample(labels: labels, value: Double(latency.nanoseconds) / 1e9, suffix: "_sum"))
        samples.append(Sample(labels: labels, value: sum, suffix: "_count"))
        return samples
    }

    private static func peers(_ engines: [EngineStatistics]) -> [MetricFamily] {
        func peer(
            _ name: String, _ kind: Kind, _ help: String, _ value: @escaping (EngineStatistics.Peer) -> UInt64
        ) -> MetricFamily {
            family(
                "peer_" + name, kind, help, engines, \.peers,
                { [Label("peer", $0.name), Label("peer_id", $0.engine.map { "\($0)" } ?? "others")] },
                { Double(value($0)) })
        }
        return [
            peer("operations_total", .counter, "Operations that had the peer as a target.") { $0.operations },
            peer("bytes_total", .counter, "Bytes of those operations.") { $0.bytes },
            peer("lost", .gauge, "1 while the peer does not answer.") { $0.isLost ? 1 : 0 },
        ]
    }
}
