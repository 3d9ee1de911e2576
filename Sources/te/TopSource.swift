#if HTTP
    internal import Dispatch
    internal import EngineMetrics
    internal import Synchronization
    internal import TransferEngine

    /// Where `te top` reads metrics from.
    struct TopSource {
        private let page: MetricsPage

        var name: String { page.name }

        init(_ text: String) throws(TransferError) { page = try MetricsPage(text) }

        /// What the page says now.
        /// - Throws: When it does not answer within `seconds`, or with anything else than a page.
        func read(within seconds: Double) throws(TransferError) -> [TopSample] {
            let question = Question()
            // A task of its own: whoever looks a name up may do so for longer than anybody waits.
            Task.detached { [page] in
                let answer: Result<String, TransferError>
                do throws(TransferError) {
                    answer = .success(try await page.text(within: .seconds(seconds)))
                } catch {
                    answer = .failure(error)
                }
                question.answer.withLock { $0 = answer }
                question.isAnswered.signal()
            }
            _ = question.isAnswered.wait(timeout: .now() + seconds + 0.1)
            guard let answer = question.answer.withLock({ $0 }) else {
                throw TransferError(.peerLost, "\(name) does not answer: is its name known here?")
            }
            return TopSample.decode(try answer.get())
        }

        private final class Question: Sendable {
            let answer = Mutex<Result<String, TransferError>?>(nil)
            let isAnswered = DispatchSemaphore(value: 0)
        }
    }
#endif
