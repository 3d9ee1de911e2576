import Glibc
import Testing
import TransferEngine
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

    @Test func modelsAreNamedInFourWays() throws {
        let tensors = [TensorDescription("a.weight", [4, 6], .f32), TensorDescription("b.weight", [6])]
        let model = try ModelDescription(name: "m", tensors: tensors)
        let folder = "/tmp/te-models-\(getpid())"
        mkdir(folder, 0o755)
        defer { for name in ["/m.json", "/m.safetensors", ""] { remove(folder + name) } }
        try write(Array(model.json.description.utf8), to: folder + "/m.json")
        let header = SafetensorsHeader.encode(tensors)
        try write(header + Array(repeating: 1, count: model.byteCount), to: folder + "/m.safetensors")
        #expect(try ModelDescription(named: "smollm2-135m") == PublishedModel.smolLM2.description)
        #expect(try ModelDescription(named: model.json.description) == model)
        #expect(try ModelDescription(named: folder + "/m.json") == model)
        #expect(try ModelDescription(named: folder + "/m.safetensors").tensors == tensors)
        #expect(try ModelDescription(named: folder).tensors == tensors)
        for (name, code) in [
            ("nothing", TransferError.Code.invalidArgument), (folder + "/n.json", .invalidArgument),
            ("{", .malformedDescriptor), ("/dev/null", .malformedDescriptor), ("/dev", .invalidArgument),
        ] {
            let error = #expect(throws: TransferError.self) { try ModelDescription(named: name) }
            #expect(error?.code == code, "\(name): \(error?.message ?? "")")
        }
    }

    private func write(_ bytes: [UInt8], to path: String) throws {
        let file = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0o644)
        defer { close(file) }
        try #require(Glibc.write(file, bytes, bytes.count) == bytes.count)
    }

    @Test(arguments: ["fsdp=1000000,replicas=1000000,tp=1000000,pp=1000000,ep=1000000", "fsdp=65537"])
    func thereAreNotAnyNumberOfTrainers(text: String) throws {
        let error = #expect(throws: TransferError.self) {
            try Planner.plan("smollm2-135m", from: text, to: "tp=1")
        }
        #expect(error?.code == .invalidArgument && error?.message.contains("ranks") == true)
    }

    @Test func thereAreNotAnyNumberOfReceivers() throws {
        for text in ["tp=1000000,dp=1000000", "ep=65537"] {
            let error = #expect(throws: TransferError.self) {
                try Planner.plan("smollm2-135m", from: "fsdp=1", to: text)
            }
            #expect(error?.message.contains("ranks") == true)
        }
    }
}
