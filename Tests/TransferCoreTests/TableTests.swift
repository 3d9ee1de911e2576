import Synchronization
import Testing
import TransferCore

@Suite struct TableTests {
    /// Counts how many of its kind are alive.
    private struct Counted: ~Copyable {
        let alive: Tally
        var value: Int
        init(_ alive: Tally, _ value: Int) {
            self.alive = alive
            self.value = value
            alive.count.wrappingAdd(1, ordering: .relaxed)
        }
        deinit { alive.count.wrappingSubtract(1, ordering: .relaxed) }
    }

    private final class Tally: Sendable {
        let count = Atomic(0)
        var value: Int { count.load(ordering: .relaxed) }
    }

    @Test func elementsKeepTheirPlacesAndValues() {
        let table = Table(count: 3) { $0 * 10 }
        table[1] += 5
        table[2 as UInt32] = 7
        #expect((0..<table.count).map { table[$0] } == [0, 15, 7])
        #expect(table[0 as UInt32] == 0)
        let span = table.span
        #expect(span.count == 3 && span[1] == 15)
        #expect(Table([4, 5])[1] == 5)
        #expect(Table(repeating: "x", count: 2)[1] == "x")
    }

    @Test func everyElementEndsOnce() {
        let tally = Tally()
        do {
            let table = Table(count: 5) { Counted(tally, $0) }
            #expect(tally.value == 5)
            table[3] = Counted(tally, 33)
            #expect(tally.value == 5, "a replaced element ends")
            #expect(table[3].value == 33)
            let cell = Cell(Counted(tally, 1))
            cell.value.value += 1
            #expect(cell.value.value == 2)
            #expect(tally.value == 6)
        }
        #expect(tally.value == 0)
    }

    @Test func aTableMayBeEmpty() {
        let table = Table(repeating: 1, count: 0)
        #expect(table.count == 0)
        #expect(table.span.count == 0)
    }

    @Test func tablesOfTables() {
        let tally = Tally()
        do {
            let rows = Table(count: 2) { row in Table(count: 3) { Counted(tally, row * 3 + $0) } }
            #expect(rows[1][2].value == 5)
            rows[0] = Table(count: 1) { Counted(tally, $0) }
            #expect(tally.value == 4)
        }
        #expect(tally.value == 0)
    }

    @Test(arguments: [-1, 3, Int.max, Int.min]) func readingOutsideTraps(index: Int) async {
        await #expect(processExitsWith: .failure) { [index] in
            let table = Table(repeating: 0, count: 3)
            print(table[index])
        }
    }

    @Test func writingOutsideTraps() async {
        await #expect(processExitsWith: .failure) {
            let table = Table(repeating: 0, count: 3)
            table[3] = 1
        }
        await #expect(processExitsWith: .failure) {
            let table = Table(repeating: 0, count: 3)
            table[UInt32.max] = 1
        }
        await #expect(processExitsWith: .failure) {
            let empty = Table(repeating: 0, count: 0)
            empty[0] = 1
        }
        await #expect(processExitsWith: .failure) { _ = Table(repeating: 0, count: -1).count }
    }
}
