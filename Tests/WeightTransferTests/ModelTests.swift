import Testing
import WeightTransfer

@Suite struct ModelTests {
    /// As published with the checkpoints, without multi-token-prediction layers.
    static let published: [(PublishedModel, Int)] = [
        (.llama31, 8_030_261_248), (.smolLM2, 134_515_008), (.qwen3, 235_093_634_560),
        (.deepSeekV3, 671_026_419_200), (.kimiK2, 1_026_408_232_448),
    ]

    @Test(arguments: published) func parameterCountsAreThePublishedOnes(model: PublishedModel, count: Int) {
        #expect(model.description.parameterCount == count)
    }
}
