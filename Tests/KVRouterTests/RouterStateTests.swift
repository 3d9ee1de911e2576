#if HTTP
    import KVCacheTransfer
    import Testing
    import TransferDirectory

    @testable import KVRouter

    @Suite struct RouterStateTests {
        private func state(_ prefillers: Int, _ decoders: Int) -> RouterState {
            var state = RouterState(scheduler: PrefixAffinityScheduler(blockTokens: 4))
            for index in 0..<prefillers {
                state.add(.prefiller, "p\(index)")
                state.saw("p\(index)", isAlive: true, address: "at p\(index)")
            }
            for index in 0..<decoders {
                state.add(.decoder, "d\(index)")
                state.saw("d\(index)", isAlive: true, address: nil)
            }
            return state
        }

        private func begin(_ state: inout RouterState, _ prompt: [UInt32], output: Int = 1) throws
            -> RouterState.Choice
        {
            let choice = state.begin(prompt, output: output)
            return try #require(choice)
        }

        @Test func theLeastBusyIsAsked() throws {
            var state = state(2, 3)
            var choices: [RouterState.Choice] = []
            for request in 0..<6 {
                choices.append(try begin(&state, [UInt32(request)], output: 10))
            }
            for index in 0..<3 { #expect(choices.count { $0.decoder == "d\(index)" } == 2) }
            for index in 0..<2 { #expect(choices.count { $0.prefiller == "p\(index)" } == 3) }
            #expect(state.instances["d0"]?.load == 20 && state.instances["p0"]?.load == 3)
            #expect(choices.allSatisfy { $0.address == "at \($0.prefiller ?? "")" })
            for choice in choices { state.finish(choice) }
            #expect(state.instances.values.allSatisfy { $0.load == 0 && $0.open == 0 })
        }

        @Test func aPrefillerIsFreeWhenThePromptHasBeenComputed() throws {
            var state = state(2, 1)
            let prompt = (0..<100).map(UInt32.init)
            let first = try begin(&state, prompt, output: 1000)
            let second = try begin(&state, prompt.map { $0 + 1000 }, output: 1000)
            #expect(first.prefiller != second.prefiller)
            state.prefilled(first)
            state.prefilled(first)
            let free = try #require(first.prefiller)
            #expect(state.instances[free]?.load == 0 && state.instances[free]?.open == 1)
            for start in 200..<205 as Range<UInt32> {
                let next = try begin(&state, [start], output: 1)
                #expect(next.prefiller == free)
            }
            state.finish(first)
            #expect(state.instances[free]?.load == 5 && state.instances[free]?.open == 5)
            state.finish(second)
            #expect(state.instances[second.prefiller ?? ""]?.load == 0)
        }

        @Test func whoHadThePrefixIsAskedAgain() throws {
            var state = state(3, 3)
            let prompt = (0..<16).map(UInt32.init)
            let first = try begin(&state, prompt)
            state.finish(first)
            let other = try begin(&state, [9, 9, 9, 9])
            state.finish(other)
            let second = try begin(&state, prompt + [77])
            #expect(second.prefiller == first.prefiller && second.decoder == first.decoder)
            #expect(other.decoder != first.decoder)
        }

        @Test func whoFailedIsNotAskedBeforeItIsSeen() throws {
            var state = state(0, 2)
            let first = try begin(&state, [1])
            #expect(first.prefiller == nil && first.decodeTokens == 2)
            state.finish(first, failed: [first.decoder])
            for _ in 0..<3 {
                let next = try begin(&state, [1])
                #expect(next.decoder != first.decoder)
            }
            state.saw(first.decoder, isAlive: true, address: nil)
            let last = try begin(&state, [1])
            #expect(last.decoder == first.decoder)
            let none = state.begin([1], output: 1, excluded: ["d0", "d1"])
            #expect(none == nil)
        }

        @Test func aPrefillerWithoutAnAddressIsPassedOver() throws {
            var state = state(1, 1)
            state.saw("p0", isAlive: true, address: nil)
            let choice = try begin(&state, [1])
            #expect(choice.prefiller == nil)
        }

        @Test func whoDrainsIsForgottenWhenItHasNothing() throws {
            var state = state(0, 1)
            let choice = try begin(&state, [1])
            state.drain("d0")
            let none = state.begin([1], output: 1)
            #expect(none == nil && state.instances["d0"]?.open == 1)
            state.finish(choice)
            #expect(state.instances.isEmpty)
            // It may come back before that.
            state.add(.decoder, "d0")
            state.saw("d0", isAlive: true, address: nil)
            let again = try begin(&state, [1])
            state.drain("d0")
            state.add(.decoder, "d0")
            state.finish(again)
            _ = try begin(&state, [1])
        }
    }

    @Suite struct RequestBodyTests {
        private func body(_ text: String) throws -> RequestBody { try RequestBody(Array(text.utf8)) }
        private func text(_ body: RequestBody) -> String { String(decoding: body.bytes, as: UTF8.self) }

        @Test func everythingElseIsPassedOnByteForByte() throws {
            var body = try body(
                #" { "a" : 1.10e+2 , "b\"c": "}\\\"{" ,"d":[[1, {"e":"]"}],null] , "max_tokens":12, "f":-0 } "#
            )
            #expect(body.integer("max_tokens") == 12 && body.integer("a") == nil && body["nothing"] == nil)
            body.set("max_tokens", to: "1")
            body.set("f", to: nil)
            body.set("new", to: "{}")
            #expect(
                text(body)
                    == #"{"a":1.10e+2,"b\"c":"}\\\"{","d":[[1, {"e":"]"}],null],"max_tokens":1,"new":{}}"#)
        }

        @Test func ofTwoTheLastOneCountsAndBothAreReplaced() throws {
            var body = try body(#"{"n":1,"n":2}"#)
            #expect(body.integer("n") == 2)
            body.set("n", to: "3")
            #expect(text(body) == #"{"n":3}"#)
            #expect(text(try self.body(" {} ")) == "{}")
        }

        @Test(arguments: [
            "", " ", "{", "}", "{}{}", "[1]", "{1:2}", #"{"a"}"#, #"{"a":}"#, #"{"a":1,}"#, #"{"a":"b}"#,
            #"{"a":"b\"#,
            #"{"a":[}]}"#, #"{"a":{"b":[1}"#, #"{"a":1 2}"#, #"{"a":tr:ue}"#, #"{,}"#,
        ])
        func malformed(text: String) throws { #expect(throws: RequestBody.Malformed.self) { try body(text) } }

        @Test func bracketsAreNotFollowedForEver() {
            let text = #"{"a":"# + String(repeating: "[", count: 1_000_000)
            #expect(throws: RequestBody.Malformed.self) { try body(text) }
        }

        /// Any bytes are read or refused, and what is read and written again is the same.
        @Test func randomBytes() throws {
            var generator = SystemRandomNumberGenerator()
            let alphabet = Array(#"{}[]":,\ ae1"#.utf8)
            var read = 0
            for _ in 0..<20_000 {
                var bytes = Array("{\"a\":".utf8)
                for _ in 0..<Int.random(in: 0..<12, using: &generator) {
                    bytes.append(alphabet.randomElement(using: &generator) ?? 0)
                }
                if Bool.random(using: &generator) { bytes.append(UInt8(ascii: "}")) }
                guard let once = try? RequestBody(bytes) else { continue }
                read += 1
                #expect(try RequestBody(once.bytes).bytes == once.bytes)
            }
            #expect(read > 100)
        }

        @Test func promptsThatBeginAlikeHaveUnitsThatBeginAlike() throws {
            let short = KVRouter.units(try body(#"{"prompt":[1,2,3,4,5,6,7,8]}"#))
            let long = KVRouter.units(try body(#"{"max_tokens":1,"prompt":[1,2,3,4,5,6,7,8,9]}"#))
            #expect(short.count == 4 && long.starts(with: short))
            #expect(KVRouter.units(try body(#"{"messages":[{}],"prompt":1}"#)).count == 1)
            #expect(KVRouter.units(try body("{}")).isEmpty)
        }
    }
#endif
