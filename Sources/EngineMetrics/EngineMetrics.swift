#if Metrics
    public import CoreMetrics
    internal import Synchronization
    public import TransferEngine

    /// Hands the numbers of engines to swift-metrics, for whatever backend the application has.
    ///
    /// ```swift
    /// let metrics = EngineMetrics([engine])
    /// metrics.report()                       // every some seconds, from any thread
    /// ```
    /// Labels are those of `MetricFamily`; counters get what has been added since the last report.
    public final class EngineMetrics: Sendable {
        private let engines: [TransferEngine]
        private let factory: any MetricsFactory
        private let instruments = Mutex(Instruments())

        private struct Key: Hashable {
            var name: String
            var labels: [MetricFamily.Label]
        }

        /// A counter of the backend's. Sums of seconds are not whole.
        private enum Sum {
            case whole(Counter)
            case fractional(FloatingPointCounter)

            func add(_ value: Double) {
                switch self {
                case .whole(let counter): counter.increment(by: Int64(value))
                case .fractional(let counter): counter.increment(by: value)
                }
            }

            func destroy() {
                switch self {
                case .whole(let counter): counter.destroy()
                case .fractional(let counter): counter.destroy()
                }
            }
        }

        private struct Instruments {
            var counters: [Key: (counter: Sum, reported: Double)] = [:]
            var gauges: [Key: Gauge] = [:]
        }

        /// Metrics of some engines, which are kept alive.
        public init(_ engines: [TransferEngine], factory: any MetricsFactory = MetricsSystem.factory) {
            self.engines = engines
            self.factory = factory
        }

        /// The numbers of this moment.
        public func families() -> [MetricFamily] { MetricFamily.all(of: engines.map { $0.statistics() }) }

        /// Hands the numbers of this moment to the backend. Peers that are gone are forgotten there.
        public func report() {
            let families = families()
            instruments.withLock { instruments in
                var known = Set<Key>()
                for family in families {
                    for sample in family.samples {
                        let key = Key(name: family.name + sample.suffix, labels: sample.labels)
                        known.insert(key)
                        report(sample.value, family.kind, key, &instruments)
                    }
                }
                for (key, entry) in instruments.counters where !known.contains(key) {
                    entry.counter.destroy()
                    instruments.counters[key] = nil
                }
                for (key, gauge) in instruments.gauges where !known.contains(key) {
                    gauge.destroy()
                    instruments.gauges[key] = nil
                }
            }
        }

        private func report(
            _ value: Double, _ kind: MetricFamily.Kind, _ key: Key, _ instruments: inout Instruments
        ) {
            let dimensions = key.labels.map { ($0.name, $0.value) }
            switch kind {
            case .gauge:
                let gauge =
                    instruments.gauges[key]
                    ?? Gauge(label: key.name, dimensions: dimensions, factory: factory)
                instruments.gauges[key] = gauge
                gauge.record(value)
            case .counter, .histogram:
                let known = instruments.counters[key]
                let counter =
                    known?.counter
                    ?? (key.name.hasSuffix("_sum")
                        ? .fractional(
                            FloatingPointCounter(label: key.name, dimensions: dimensions, factory: factory))
                        : .whole(Counter(label: key.name, dimensions: dimensions, factory: factory)))
                // A place that has gone to another engine of the same name begins again at 0.
                let added = max(0, value - (known?.reported ?? 0))
                counter.add(added)
                instruments.counters[key] = (counter, value)
            }
        }
    }
#endif
