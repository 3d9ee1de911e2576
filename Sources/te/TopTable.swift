/// Which numbers `te top` shows of what.
struct TopTable {
    /// `nic`, `operation` or `peer`: of what there is a row each.
    let kind: String
    /// The labels that tell rows apart, and their names here.
    private let labels: [(label: Substring, name: String)]
    private let columns: [Column]

    private struct Column {
        let name: String
        /// Without `transfer_engine_`.
        let metric: String
        let form: Form
    }

    private enum Form {
        /// What has been added in a second, divided.
        case rate(Double)
        /// The number itself.
        case value
        case flag
        /// What has been added in a second, of a limit.
        case share(of: String)
        /// So many of those that have been added to a histogram took at most this, in microseconds.
        case quantile(Double)
    }

    static let all = [
        TopTable(
            kind: "nic", labels: [("engine", "engine"), ("nic", "nic"), ("fabric", "fabric")],
            columns: [
                Column(name: "gbps", metric: "nic_bytes_total", form: .rate(1e9)),
                Column(
                    name: "used", metric: "nic_bytes_total", form: .share(of: "nic_speed_bytes_per_second")),
                Column(name: "requests_per_s", metric: "nic_requests_total", form: .rate(1)),
                Column(name: "in_flight", metric: "nic_requests_in_flight", form: .value),
                Column(name: "pushed_back_per_s", metric: "nic_pushed_back_total", form: .rate(1)),
                Column(name: "failed", metric: "nic_requests_failed_total", form: .value),
                Column(name: "taken_over", metric: "nic_taken_over_total", form: .value),
                Column(name: "link_failures", metric: "nic_link_failures_total", form: .value),
            ]),
        TopTable(
            kind: "operation", labels: [("engine", "engine"), ("operation", "operation")],
            columns: [
                Column(name: "per_s", metric: "operations_total", form: .rate(1)),
                Column(name: "gbps", metric: "operation_bytes_total", form: .rate(1e9)),
                Column(name: "p50_us", metric: "operation_seconds_bucket", form: .quantile(0.5)),
                Column(name: "p99_us", metric: "operation_seconds_bucket", form: .quantile(0.99)),
                Column(name: "in_flight", metric: "operations_in_flight", form: .value),
                Column(name: "failed", metric: "operations_failed_total", form: .value),
                Column(name: "stalled", metric: "operations_stalled_total", form: .value),
            ]),
        TopTable(
            kind: "peer", labels: [("engine", "engine"), ("peer", "peer"), ("peer_id", "id")],
            columns: [
                Column(name: "per_s", metric: "peer_operations_total", form: .rate(1)),
                Column(name: "gbps", metric: "peer_bytes_total", form: .rate(1e9)),
                Column(name: "lost", metric: "peer_lost", form: .flag),
            ]),
    ]

    /// A row for each NIC, operation or peer that is there now, in the order of the page.
    /// Rates are missing without a look before; operations that have never begun, unless `all` are wanted.
    func rows(before: [TopSample]?, now: [TopSample], seconds: Double, all: Bool) -> [Report.Row] {
        func values(_ samples: [TopSample]) -> [String: [[String]: Double]] {
            var result: [String: [[String]: Double]] = [:]
            for sample in samples where sample.name.hasPrefix(Self.prefix) {
                result[String(sample.name.dropFirst(Self.prefix.count)), default: [:]][names(of: sample)] =
                    sample.value
            }
            return result
        }
        let (old, new) = (values(before ?? []), values(now))
        let first = Self.prefix + columns[0].metric
        return now.filter { $0.name == first && (all || kind != "operation" || $0.value > 0) }.map { sample in
            let key = names(of: sample)
            /// A counter that has fallen began again at 0.
            func added(_ metric: String) -> Double? {
                guard before != nil else { return nil }
                let (last, value) = (old[metric]?[key] ?? 0, new[metric]?[key] ?? 0)
                return (value < last ? value : value - last) / seconds
            }
            return zip(labels, key).map { ($0.name, .text($1)) }
                + columns.map { column in
                    let value = new[column.metric]?[key] ?? 0
                    let field: Field =
                        switch column.form {
                        case .rate(let unit): added(column.metric).map { .number($0 / unit) } ?? .null
                        case .value: Int(exactly: value).map { .integer($0) } ?? .number(value)
                        case .flag: .flag(value != 0)
                        case .quantile(let share):
                            before.flatMap { quantile(share, key, $0, now) } ?? .null
                        case .share(let limit): share(added(column.metric), of: new[limit]?[key])
                        }
                    return (column.name, field)
                }
        }
    }

    /// Between two bounds as if they were spread evenly, as Prometheus does it. Nil when nothing has been added.
    private func quantile(_ share: Double, _ key: [String], _ before: [TopSample], _ now: [TopSample])
        -> Field?
    {
        func buckets(_ samples: [TopSample]) -> [String: Double] {
            let own = samples.filter {
                $0.name == Self.prefix + "operation_seconds_bucket" && $0.labels["stage"] == "total"
                    && names(of: $0) == key
            }
            return Dictionary(own.map { ($0.labels["le"] ?? "", $0.value) }) { $1 }
        }
        let (old, new) = (buckets(before), buckets(now))
        let began = new["+Inf"] ?? 0 < old["+Inf"] ?? 0
        let added = new.map { bound, count in
            (
                bound: Double(bound == "+Inf" ? "inf" : bound) ?? .infinity,
                count: count - (began ? 0 : old[bound] ?? 0)
            )
        }.sorted { $0.bound < $1.bound }
        guard let all = added.last?.count, all > 0 else { return nil }
        var last = (bound: 0.0, count: 0.0)
        for bucket in added {
            if bucket.count >= share * all {
                // Above all bounds nobody knows how much.
                guard bucket.bound.isFinite else { return .number(last.bound * 1e6) }
                let part = (share * all - last.count) / (bucket.count - last.count)
                return .number((last.bound + (bucket.bound - last.bound) * part) * 1e6)
            }
            last = bucket
        }
        return nil
    }

    private func share(_ value: Double?, of limit: Double?) -> Field {
        guard let value, let limit, limit > 0 else { return .null }
        return .number(value / limit)
    }

    private static let prefix = "transfer_engine_"

    private func names(of sample: TopSample) -> [String] { labels.map { sample.labels[$0.label] ?? "" } }
}
