import Testing

/// The house rules. What breaks one of them fails here, with the place and what to do.
@Suite struct TidyTests {
    private func expectTidy(_ rule: Rule, _ files: [SourceFile] = Repository.files) {
        for complaint in files.flatMap(rule) { Issue.record("\(complaint)") }
    }

    /// Files whose strings are no code: these tests are full of violations.
    private var withoutSnippets: [SourceFile] { Repository.files.filter { !$0.path.contains("TidyTests") } }

    /// Without files every rule would hold.
    @Test func theRepositoryIsFound() {
        #expect(Repository.files.count > 100)
        for module in ["TransferCore", "TransferEngine", "SharedMemoryProvider", "te"] {
            #expect(Repository.files.contains { $0.module == module })
        }
    }

    @Test func filesAreShort() { expectTidy(Rules.filesAreShort) }
    @Test func functionsAreShort() { expectTidy(Rules.functionsAreShort) }
    @Test func linesAreShort() { expectTidy(Rules.linesAreShort) }
    @Test func importsSayTheirAccess() { expectTidy(Rules.importsSayTheirAccess) }
    @Test func foundationStaysAbove() { expectTidy(Rules.foundationStaysAbove) }
    @Test func arrowsPointDown() { expectTidy(Rules.arrowsPointDown) }
    @Test func promisesAreExplained() { expectTidy(Rules.promisesAreExplained, withoutSnippets) }
    @Test func orderingsNameTheirPartner() { expectTidy(Rules.orderingsNameTheirPartner) }
    @Test func nothingIsLeftOver() {
        expectTidy(Rules.nothingIsLeftOver, withoutSnippets)
    }
    @Test func publicIsDocumented() { expectTidy(Rules.publicIsDocumented) }

    @Test(arguments: Rules.unsafeBudget.sorted { $0.key < $1.key })
    func unsafeCodeStaysInSmallPlaces(module: String, budget: Int) {
        let marks = Repository.files.filter { $0.module == module }.reduce(0) { $0 + Rules.unsafeMarks($1) }
        #expect(
            marks <= budget,
            "\(module) has \(marks) unsafe marks, at most \(budget): use Table, Span or a checked type instead"
        )
    }
}

/// Each rule sees what it is there for, and leaves alone what it should.
@Suite struct TidyRuleTests {
    private func complaints(_ rule: Rule, _ text: String, in path: String = "Sources/TransferCore/A.swift")
        -> Int
    {
        rule(SourceFile(path: path, text: text)).count
    }

    @Test func longFilesAreFound() {
        #expect(complaints(Rules.filesAreShort, String(repeating: "\n", count: 801)) == 1)
        #expect(complaints(Rules.filesAreShort, String(repeating: "\n", count: 800)) == 0)
    }

    @Test func longFunctionsAreFound() {
        func function(_ lines: Int) -> String {
            "    func a(\n    ) {\n" + String(repeating: "        b()\n", count: lines - 3) + "    }\n"
        }
        #expect(complaints(Rules.functionsAreShort, function(71)) == 1)
        #expect(complaints(Rules.functionsAreShort, function(70)) == 0)
        #expect(complaints(Rules.functionsAreShort, "    func a()\n\n" + function(70)) == 0)
    }

    @Test func longLinesAreFound() {
        #expect(complaints(Rules.linesAreShort, String(repeating: "a", count: 111)) == 1)
        #expect(complaints(Rules.linesAreShort, "// " + String(repeating: "a", count: 120)) == 0)
        #expect(complaints(Rules.linesAreShort, "// " + String(repeating: "a", count: 128)) == 1)
    }

    @Test func bareImportsAreFound() {
        #expect(complaints(Rules.importsSayTheirAccess, "import Synchronization") == 1)
        #expect(complaints(Rules.importsSayTheirAccess, "    internal import Glibc") == 0)
        #expect(complaints(Rules.importsSayTheirAccess, "@_exported public import TransferCore") == 0)
    }

    @Test func foundationIsFound() {
        #expect(complaints(Rules.foundationStaysAbove, "internal import FoundationEssentials") == 1)
        #expect(complaints(Rules.foundationStaysAbove, "import Foundation", in: "Sources/te/A.swift") == 0)
    }

    @Test func wrongArrowsAreFound() {
        let provider = "Sources/SimulatedProvider/A.swift"
        #expect(complaints(Rules.arrowsPointDown, "import TransferEngine", in: provider) == 1)
        #expect(complaints(Rules.arrowsPointDown, "import SharedMemoryProvider", in: provider) == 1)
        #expect(complaints(Rules.arrowsPointDown, "import TransferCore", in: provider) == 0)
        #expect(complaints(Rules.arrowsPointDown, "internal import CPlatform") == 1)
        #expect(complaints(Rules.arrowsPointDown, "internal import Synchronization") == 0)
        #expect(complaints(Rules.arrowsPointDown, "import TransferCore", in: "Sources/te/A.swift") == 1)
    }

    @Test func unexplainedPromisesAreFound() {
        let promise = "final class A: @unchecked Sendable {"
        #expect(complaints(Rules.promisesAreExplained, promise) == 1)
        #expect(complaints(Rules.promisesAreExplained, promise + "\n    // SAFETY: it has no state.") == 0)
        #expect(complaints(Rules.promisesAreExplained, "nonisolated(unsafe) var a = 0") == 1)
        #expect(complaints(Rules.promisesAreExplained, promise + "\n\n\n\n\n// SAFETY: too far") == 1)
    }

    @Test func lonelyOrderingsAreFound() {
        let load = "a.load(ordering: .acquiring)"
        #expect(complaints(Rules.orderingsNameTheirPartner, load) == 1)
        #expect(complaints(Rules.orderingsNameTheirPartner, load + "  // pairs with the store in b") == 0)
        #expect(complaints(Rules.orderingsNameTheirPartner, "a.load(ordering: .relaxed)") == 0)
        #expect(complaints(Rules.orderingsNameTheirPartner, "/// Uses .acquiring) when") == 0)
    }

    @Test func leftoversAreFound() {
        #expect(complaints(Rules.nothingIsLeftOver, "// TO" + "DO: later") == 1)
        #expect(complaints(Rules.nothingIsLeftOver, "@Test(.disa" + "bled(\"flaky\"))") == 1)
        #expect(complaints(Rules.nothingIsLeftOver, "fatalError(\"not impl" + "emented\")") == 1)
        #expect(complaints(Rules.nothingIsLeftOver, "// to do is to be") == 0)
    }

    @Test func undocumentedDeclarationsAreFound() {
        #expect(complaints(Rules.publicIsDocumented, "public struct A {") == 1)
        #expect(complaints(Rules.publicIsDocumented, "/// A.\npublic struct A {") == 0)
        #expect(complaints(Rules.publicIsDocumented, "/// A.\n@inlinable\npublic func a() {") == 0)
        #expect(complaints(Rules.publicIsDocumented, "    @inlinable public static func a() {") == 1)
        #expect(complaints(Rules.publicIsDocumented, "    public private(set) var a = 0") == 1)
        #expect(complaints(Rules.publicIsDocumented, "    public var description: String {") == 0)
        #expect(complaints(Rules.publicIsDocumented, "    func a() {") == 0)
        #expect(complaints(Rules.publicIsDocumented, "@c @implementation public func a() {") == 0)
        #expect(complaints(Rules.publicIsDocumented, "@c @implementation\npublic func a() {") == 0)
        #expect(complaints(Rules.publicIsDocumented, "@c\npublic func a() {") == 1)
    }

    @Test func unsafeMarksAreCounted() {
        let file = SourceFile(path: "a", text: "unsafe a(unsafe b)  // unsafe\n// unsafe\n@unsafe func c()")
        #expect(Rules.unsafeMarks(file) == 2)
    }
}
