import Foundation
import Testing
import TransferCore

/// Every error has a page, and the pages are those that the code makes.
@Suite struct ErrorPageTests {
    private static let root = URL(fileURLWithPath: #filePath).deletingLastPathComponent()
        .deletingLastPathComponent().deletingLastPathComponent()

    private func text(_ path: String) throws -> String {
        try String(contentsOf: Self.root.appendingPathComponent(path), encoding: .utf8)
    }

    @Test(arguments: ErrorGuide.all.map { "\($0.code)" }) func pageIsCurrent(_ name: String) throws {
        let guide = try #require(ErrorGuide.all.first { "\($0.code)" == name })
        #expect(try text("docs/errors/\(name).md") == guide.page, "te error --write docs/errors")
        #expect(guide.sentence.hasSuffix(".") && guide.remedy.hasSuffix(".") && !guide.causes.isEmpty)
    }

    @Test func indexIsCurrent() throws {
        #expect(try text("docs/errors/README.md") == ErrorGuide.index, "te error --write docs/errors")
        let files = try FileManager.default.contentsOfDirectory(
            atPath: Self.root.appendingPathComponent("docs/errors").path)
        #expect(
            Set(files) == Set(ErrorGuide.all.map { "\($0.code).md" } + ["README.md"]), "no page is left over")
    }

    /// Numbers and names are those of the C header, which never change.
    @Test func numbersAreThoseOfC() throws {
        let header = try text("Sources/CTransferEngine/include/transfer_engine.h")
        var numbers: [String: Int] = [:]
        for match in header.matches(of: #/(TE_E[A-Z]+) = (-[0-9]+)/#) {
            numbers[String(match.1)] = Int(match.2)
        }
        for guide in ErrorGuide.all { #expect(numbers[guide.cName] == guide.number, "\(guide.code)") }
        #expect(Set(ErrorGuide.all.map(\.number)).count == ErrorGuide.all.count)
    }

    /// Names are as they have always been: programs and dashboards know them.
    @Test func namesAreStable() {
        let names = """
            invalidArgument outOfRange malformedDescriptor unsupportedVersion accessDenied staleRegion \
            backPressure limitReached unreachable peerLost providerFailed stalled cancelled unavailable \
            closed digestMismatch \
            unauthenticated forged replayed expired
            """
        #expect(
            Set(names.split(separator: " ").map(String.init)).isSubset(
                of: ErrorGuide.all.map { "\($0.code)" }))
    }

    /// Whoever reads the operators' table finds every code there.
    @Test func operationsNamesThemAll() throws {
        let operations = try text("docs/operations.md")
        #expect(operations.contains("(errors/README.md)"))
    }
}
