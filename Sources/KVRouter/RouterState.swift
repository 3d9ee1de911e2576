#if HTTP
    internal import KVCacheTransfer
    internal import TransferDirectory

    /// Who is there, what each of them has to do, and who gets the next request. Without a thread, a clock or a socket.
    struct RouterState {
        /// An engine's HTTP server.
        struct Instance: Hashable, Sendable {
            var role: DirectoryEntry.Role
            var url: String
            /// Whether it answered when it was last looked at.
            var isAlive = false
            /// It finishes what it has, and is forgotten then.
            var isDraining = false
            /// Of a prefiller: where decoders find its engine, as it says itself.
            var address: String?
            /// Tokens of the requests that it has.
            var load = 0
            /// Requests that it has.
            var open = 0
            /// Tokens it was ever given: of two that are equally busy, the one that had less is asked.
            var given = 0
            var requests = 0
            var failures = 0

            var takesRequests: Bool { isAlive && !isDraining && (role == .decoder || address != nil) }
        }

        /// Who does a request.
        struct Choice: Hashable, Sendable {
            /// Its number among all choices.
            var number: Int
            /// Nil when no prefiller is there: the decoder computes the prompt itself.
            var prefiller: String?
            var address: String?
            var decoder: String
            /// Tokens of load on each of both.
            var promptTokens: Int
            var decodeTokens: Int
        }

        private(set) var instances: [String: Instance] = [:]
        private var scheduler: any KVScheduler
        private var choices = 0
        /// Choices whose prompts are still being computed.
        private var prefilling: Set<Int> = []

        init(scheduler: any KVScheduler) { self.scheduler = scheduler }

        mutating func add(_ role: DirectoryEntry.Role, _ url: String) {
            if instances[url]?.role != role { instances[url] = Instance(role: role, url: url) }
            instances[url]?.isDraining = false
        }

        mutating func drain(_ url: String) {
            instances[url]?.isDraining = true
            forget(url)
        }

        private mutating func forget(_ url: String) {
            if let instance = instances[url], instance.isDraining, instance.open == 0 { instances[url] = nil }
        }

        /// What a look at an instance said: nil when it did not answer.
        mutating func saw(_ url: String, isAlive: Bool, address: String?) {
            instances[url]?.isAlive = isAlive
            instances[url]?.address = isAlive ? address : nil
        }

        /// Chooses who does a request, and counts it as theirs until `finish`. Nil when no decoder takes requests.
        /// - Parameters:
        ///   - prompt: Stands for the tokens of the prompt: equal beginnings have equal values.
        ///   - output: How many tokens may be generated.
        ///   - excluded: Instances that have just failed.
        mutating func begin(_ prompt: [UInt32], output: Int, excluded: Set<String> = []) -> Choice? {
            func able(_ role: DirectoryEntry.Role) -> [Instance] {
                instances.values.filter { $0.role == role && $0.takesRequests && !excluded.contains($0.url) }
                    .sorted { ($0.given, $0.url) < ($1.given, $1.url) }
            }
            let (prefillers, decoders) = (able(.prefiller), able(.decoder))
            func workers(_ instances: [Instance]) -> [KVWorker] {
                instances.map { KVWorker(name: $0.url, load: $0.load) }
            }
            // A decoder that computes the prompt is its own prefiller.
            let firsts = prefillers.isEmpty ? decoders : prefillers
            guard
                let chosen = scheduler.choose(
                    prompt, prefillers: workers(firsts), decoders: workers(decoders))
            else { return nil }
            let prefiller = prefillers.isEmpty ? nil : prefillers[chosen.prefiller]
            choices += 1
            let choice = Choice(
                number: choices, prefiller: prefiller?.url, address: prefiller?.address,
                decoder: decoders[chosen.decoder].url,
                promptTokens: prompt.count,
                decodeTokens: (prefiller == nil ? prompt.count : 0) + output)
            if choice.prefiller != nil { prefilling.insert(choice.number) }
            count(choice, 1)
            return choice
        }

        /// The prompt has been computed: it is no load of the prefiller any more, although it is needed until `finish`.
        mutating func prefilled(_ choice: Choice) {
            guard prefilling.remove(choice.number) != nil, let url = choice.prefiller else { return }
            instances[url]?.load -= choice.promptTokens
        }

        /// Ends what `begin` began.
        mutating func finish(_ choice: Choice, failed: Set<String> = []) {
            prefilled(choice)
            count(choice, -1)
            for url in failed { self.failed(url) }
            for url in [choice.prefiller, choice.decoder].compactMap(\.self) { forget(url) }
        }

        /// An instance did not do what it was asked for. It is not asked again before it has been looked at.
        mutating func failed(_ url: String) {
            instances[url]?.failures += 1
            instances[url]?.isAlive = false
        }

        private mutating func count(_ choice: Choice, _ sign: Int) {
            for (url, tokens) in [
                (choice.prefiller, choice.promptTokens), (choice.decoder, choice.decodeTokens),
            ] {
                guard let url else { continue }
                // What a prefiller has to do ends before the request does: `prefilled`.
                if sign > 0 || url == choice.decoder { instances[url]?.load += sign * tokens }
                instances[url]?.open += sign
                if sign > 0 {
                    instances[url]?.given += tokens
                    instances[url]?.requests += 1
                }
            }
        }
    }
#endif
