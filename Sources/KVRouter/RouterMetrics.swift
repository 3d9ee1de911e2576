#if HTTP
    internal import EngineMetrics
    internal import TransferDirectory

    /// What a router counts, beside what it knows of instances.
    struct RouterMetrics {
        /// How requests ended.
        enum Outcome: String, CaseIterable {
            /// The answer of a decoder was passed on, whatever it says.
            case answered
            /// The client went away.
            case abandoned
            /// It was no request of the kind.
            case malformed
            /// Nobody took it, or too many are open.
            case refused
            /// All who were asked failed, or the answer broke off.
            case failed
        }

        /// Upper bounds in seconds.
        static let bounds = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30]

        private var outcomes: [Outcome: Int] = [:]
        private var firstBytes = [Int](repeating: 0, count: bounds.count + 1)
        private var seconds = 0.0
        var open = 0
        var retried = 0
        var withoutPrefiller = 0

        mutating func ended(_ outcome: Outcome) { outcomes[outcome, default: 0] += 1 }

        mutating func firstByte(after time: Duration) {
            let taken = time / .seconds(1)
            seconds += taken
            firstBytes[Self.bounds.firstIndex { taken <= $0 } ?? Self.bounds.count] += 1
        }

        /// In the order of the documentation.
        func families(_ instances: [RouterState.Instance]) -> [MetricFamily] {
            func single(_ name: String, _ kind: MetricFamily.Kind, _ help: String, _ value: Int)
                -> MetricFamily
            {
                MetricFamily(
                    name: "transfer_engine_router_" + name, help: help, kind: kind,
                    samples: [.init(labels: [], value: Double(value))])
            }
            func each(
                _ name: String, _ kind: MetricFamily.Kind, _ help: String,
                _ value: (RouterState.Instance) -> Int
            ) -> MetricFamily {
                MetricFamily(
                    name: "transfer_engine_router_instance_" + name, help: help, kind: kind,
                    samples: instances.map {
                        .init(
                            labels: [.init("role", $0.role.rawValue), .init("url", $0.url)],
                            value: Double(value($0)))
                    })
            }
            return [
                MetricFamily(
                    name: "transfer_engine_router_requests_total", help: "Requests that have ended.",
                    kind: .counter,
                    samples: Outcome.allCases.map {
                        .init(labels: [.init("outcome", $0.rawValue)], value: Double(outcomes[$0] ?? 0))
                    }),
                single("requests_open", .gauge, "Requests that have not ended.", open),
                single(
                    "retried_total", .counter, "Requests given to another decoder after one failed.", retried),
                single(
                    "without_prefiller_total", .counter, "Requests whose prompt a decoder computes.",
                    withoutPrefiller),
                firstByteFamily,
                each("up", .gauge, "1 while the instance answers.") { $0.isAlive ? 1 : 0 },
                each("draining", .gauge, "1 while the instance finishes what it has.") {
                    $0.isDraining ? 1 : 0
                },
                each("requests_open", .gauge, "Requests that the instance has.") { $0.open },
                each("load_tokens", .gauge, "Tokens of the requests that the instance has.") { $0.load },
                each("requests_total", .counter, "Requests that the instance was given.") { $0.requests },
                each("failures_total", .counter, "Requests that the instance failed.") { $0.failures },
            ]
        }

        private var firstByteFamily: MetricFamily {
            var sum = 0
            var samples: [MetricFamily.Sample] = []
            for (count, bound) in zip(firstBytes, Self.bounds.map { "\($0)" } + ["+Inf"]) {
                sum += count
                samples.append(.init(labels: [.init("le", bound)], value: Double(sum), suffix: "_bucket"))
            }
            samples.append(.init(labels: [], value: seconds, suffix: "_sum"))
            samples.append(.init(labels: [], value: Double(sum), suffix: "_count"))
            return MetricFamily(
                name: "transfer_engine_router_first_byte_seconds",
                help: "From a request to the first byte of its answer.", kind: .histogram, samples: samples)
        }
    }
#endif
