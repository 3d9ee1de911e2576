// The fuzzer's program has its own entry.
#if !FUZZ
    import Foundation
    import Testing

    /// Every input that the fuzzer's corpus keeps, and every one that once found something, once more.
    @Suite(.serialized) struct ReplayTests {
        private static let corpus = URL(fileURLWithPath: #filePath).deletingLastPathComponent()
            .deletingLastPathComponent().appendingPathComponent("corpus")

        @Test(.timeLimit(.minutes(2)), arguments: Target.all.map(\.name)) func corpusIsHarmless(
            _ name: String
        )
            throws
        {
            let target = try #require(Target.all.first { $0.name == name })
            let folder = Self.corpus.appendingPathComponent(name)
            let names = try FileManager.default.contentsOfDirectory(atPath: folder.path).sorted()
            #expect(!names.isEmpty)
            for name in names {
                target.run([UInt8](try Data(contentsOf: folder.appendingPathComponent(name))))
            }
            for seed in target.seeds() { target.run(seed) }
        }

        /// Seeds reach into the decoders: at least one of them is decoded.
        @Test func seedsAreInputs() {
            for target in Target.all {
                #expect(target.seeds().count >= 3)
                for seed in target.seeds() where seed.count > 4 {
                    target.run(Array(seed.dropLast()))
                    target.run(seed + [1])
                }
            }
        }
    }
#endif
