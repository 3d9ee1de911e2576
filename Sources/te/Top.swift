#if HTTP
    internal import ArgumentParser
    internal import CPlatform
    internal import Glibc
    internal import TransferEngine

    /// `te top`: what engines do now, from the page that `MetricsServer` serves.
    struct Top: ParsableCommand {
        static let configuration = CommandConfiguration(
            commandName: "top",
            abstract: "Show what running engines do: NICs, operations and peers, each second.",
            discussion: """
                Reads the pages that MetricsServer, or anything that exports the same numbers for \
                Prometheus, serves: a program has to be told to serve one. Rates are of the time between \
                two looks; the rest counts since the engine was opened.
                """)

        @Argument(help: "HOST:PORT, PORT or http://HOST:PORT/PATH of each program")
        var sources: [String] = ["127.0.0.1:9464"]
        @Option(help: "seconds between two looks")
        var interval = 1.0
        @Option(help: "how often to show something; without it until it is interrupted")
        var count: Int?
        @Flag(help: "one JSON object per line")
        var json = false

        func validate() throws {
            guard interval >= 0.05, interval <= 3600 else {
                throw ValidationError("--interval must be 0.05 to 3600 seconds")
            }
            if let count, count < 1 { throw ValidationError("--count must be at least 1") }
        }

        func run() throws {
            let places = try sources.map { try TopSource($0) }
            let begin = te_monotonic_nanoseconds()
            var looks = places.map { Look($0, within: interval) }
            let reasons = looks.compactMap(\.failure)
            if reasons.count == looks.count, let reason = reasons.first { throw reason }
            var shown = 0
            while shown < count ?? .max {
                shown += 1
                Self.sleep(until: begin + UInt64(Double(shown) * interval * 1e9))
                let next = places.map { Look($0, within: interval) }
                let seconds = Double(te_monotonic_nanoseconds() - begin) / 1e9
                show(zip(places, zip(looks, next)).map { ($0, $1.0, $1.1) }, seconds)
                // Rates go on from the last answer.
                looks = zip(looks, next).map { $1.failure == nil ? $1 : $0 }
            }
        }

        private static func sleep(until time: UInt64) {
            var place = timespec(tv_sec: Int(time / 1_000_000_000), tv_nsec: Int(time % 1_000_000_000))
            while clock_nanosleep(CLOCK_MONOTONIC, Int32(TIMER_ABSTIME), &place, nil) == EINTR {}
        }

        /// What a page said at a time, or why it did not.
        private struct Look {
            let time: UInt64
            var samples: [TopSample] = []
            var failure: TransferError?

            init(_ source: TopSource, within seconds: Double) {
                do throws(TransferError) {
                    samples = try source.read(within: max(0.5, min(10, seconds)))
                } catch {
                    failure = error
                }
                time = te_monotonic_nanoseconds()
            }
        }

        private func show(_ looks: [(source: TopSource, before: Look, now: Look)], _ seconds: Double) {
            if !json, isatty(1) == 1 { print("\u{1B}[H\u{1B}[J", terminator: "") }
            for table in TopTable.all {
                var report = Report(json: json)
                for look in looks where look.now.failure == nil {
                    let elapsed = Double(look.now.time - look.before.time) / 1e9
                    for row in table.rows(
                        before: look.before.failure == nil ? look.before.samples : nil, now: look.now.samples,
                        seconds: elapsed, all: json)
                    {
                        let whence: Report.Row =
                            json
                            ? [
                                ("kind", .text(table.kind)), ("source", .text(look.source.name)),
                                ("seconds", .number(seconds)),
                            ] : looks.count > 1 ? [("source", .text(look.source.name))] : []
                        report.add(whence + row)
                    }
                }
                report.finish()
                if !json { print() }
            }
            for look in looks {
                guard let failure = look.now.failure else { continue }
                if json {
                    var report = Report(json: true)
                    report.add([
                        ("kind", .text("error")), ("source", .text(look.source.name)),
                        ("seconds", .number(seconds)), ("message", .text("\(failure)")),
                    ])
                } else {
                    print(failure)
                }
            }
            fflush(nil)
        }
    }
#endif
