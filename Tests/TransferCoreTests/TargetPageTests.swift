import Synchronization
import Testing
import TransferCore

@Suite struct TargetPageTests {
    @Test func pagesNameTheirEngine() throws {
        let mapping = try #require(PageMapping(engine: 0xABC))
        #expect(mapping.page.isValid)
        #expect(mapping.page.engine == EngineID(rawValue: 0xABC))
        let blank = Scratch(4096)
        let base = try #require(blank.bytes.baseAddress)
        #expect(!TargetPage(mapped: base).isValid)
    }

    @Test func whatComesEarlyIsCounted() throws {
        let mapping = try #require(PageMapping(engine: 1))
        #expect(mapping.page.eighths(of: 7) == 0)
        #expect(!mapping.page.consume(eighths: 8, from: 7))
        mapping.page.add(eighths: 4, to: 7)
        mapping.page.add(eighths: 2, to: 7)
        #expect(!mapping.page.consume(eighths: 8, from: 7), "three quarters are not one")
        #expect(mapping.page.eighths(of: 7) == 6, "and are still there")
        mapping.page.add(eighths: 2, to: 7)
        mapping.page.add(eighths: 8, to: 7)
        #expect(mapping.page.consume(eighths: 8, from: 7))
        #expect(mapping.page.eighths(of: 7) == 8, "the second count is left for the next wait")
        #expect(mapping.page.consume(eighths: 0, from: 7))
    }

    @Test func everyImmediateHasItsOwnCounter() throws {
        let mapping = try #require(PageMapping(engine: 1))
        let immediates = [0, 1, 2, 511, 512, 1 << 29, Immediate.max.value - 1, Immediate.max.value]
        for (position, immediate) in immediates.enumerated() {
            mapping.page.add(eighths: UInt32(position + 1), to: immediate)
        }
        for (position, immediate) in immediates.enumerated() {
            #expect(mapping.page.eighths(of: immediate) == Int64(position + 1))
        }
        mapping.page.add(eighths: 1, to: 1 << 30 | 511)
        #expect(mapping.page.eighths(of: 511) == 5, "the upper two bits are not part of the immediate")
    }

    @Test func manyThreadsCountTogether() async throws {
        let mapping = try #require(PageMapping(engine: 1))
        let page = mapping.page
        await withTaskGroup(of: Void.self) { group in
            for _ in 0..<4 {
                group.addTask { for _ in 0..<50_000 { page.add(eighths: 1, to: 3) } }
            }
        }
        #expect(mapping.page.eighths(of: 3) == 200_000)
    }

    @Test func admitsWhatIsInside() throws {
        let mapping = try #require(PageMapping(engine: 1))
        let memory = Scratch(1000)
        mapping.publish(index: 4095, generation: 9, secret: 77, memory: memory.bytes)
        let base = try #require(memory.bytes.baseAddress)
        func admit(_ offset: UInt64, _ length: UInt64) -> Result<UnsafeMutableRawPointer, WorkStatus> {
            mapping.page.admit(index: 4095, generation: 9, secret: 77, offset: offset, length: length)
        }
        #expect(admit(0, 1000) == .success(base))
        #expect(admit(999, 1) == .success(base + 999))
        #expect(admit(1000, 0) == .success(base + 1000))
        #expect(admit(0, 0) == .success(base))
        #expect(admit(0, 1001) == .failure(.outOfRange))
        #expect(admit(1000, 1) == .failure(.outOfRange))
        #expect(admit(1001, 0) == .failure(.outOfRange))
        #expect(admit(.max, 0) == .failure(.outOfRange))
        #expect(admit(.max, 1) == .failure(.outOfRange))
        #expect(admit(.max, 2) == .failure(.outOfRange))
        #expect(admit(2, .max) == .failure(.outOfRange))
        #expect(admit(1 << 63, 1 << 63) == .failure(.outOfRange))
        #expect(admit(.max - 500, 600) == .failure(.outOfRange))
    }

    @Test func refusesWhatIsNotTheRegion() throws {
        let mapping = try #require(PageMapping(engine: 1))
        let memory = Scratch(64)
        mapping.publish(index: 5, generation: 2, secret: 77, memory: memory.bytes)
        func error(index: UInt32 = 5, generation: UInt32 = 2, secret: UInt64 = 77) -> WorkStatus? {
            switch mapping.page.admit(
                index: index, generation: generation, secret: secret, offset: 0, length: 1)
            {
            case .success: nil
            case .failure(let status): status
            }
        }
        #expect(error() == nil)
        #expect(error(index: 6) == .staleRegion)
        #expect(error(index: 4096) == .staleRegion)
        #expect(error(index: .max) == .staleRegion)
        #expect(error(generation: 1) == .staleRegion)
        #expect(error(generation: 3) == .staleRegion)
        #expect(error(secret: 78) == .accessDenied)
        mapping.publish(index: 5, generation: 3, secret: 77, memory: memory.bytes)
        #expect(error() == .staleRegion)
        mapping.publish(index: 5, generation: 2, secret: 77, memory: memory.bytes, access: .localOnly)
        #expect(error() != nil, "no peer writes into a local region")
        mapping.page.withdraw(5)
        #expect(error() == .staleRegion)
    }

    @Test func writersKeepARegionBusy() throws {
        let mapping = try #require(PageMapping(engine: 1))
        let memory = Scratch(64)
        mapping.publish(index: 0, generation: 1, secret: 5, memory: memory.bytes)
        let page = mapping.page
        let old = RegionSlot.state(generation: 1, access: .remoteWrite)
        page.openSeats(3)
        #expect(page.isQuiet(0))
        #expect(page.enter(0, expecting: old, seat: 0))
        #expect(page.enter(0, expecting: old, seat: 2))
        #expect(!page.isQuiet(0) && page.isQuiet(1))
        page.withdraw(0)
        #expect(!page.enter(0, expecting: old, seat: 1), "the region has ended")
        page.leave(seat: 0)
        #expect(!page.isQuiet(0), "one is still inside")
        page.leave(seat: 2)
        #expect(page.isQuiet(0))
        mapping.publish(index: 0, generation: 2, secret: 5, memory: memory.bytes)
        #expect(!page.enter(0, expecting: old, seat: 0), "another generation")
        #expect(page.isQuiet(0), "a refused writer leaves nothing behind")
        #expect(page.enter(0, expecting: RegionSlot.state(generation: 2, access: .remoteWrite), seat: 0))
    }

    @Test func statesDiffer() {
        let states: Set<UInt64> = [
            0, RegionSlot.state(generation: 0, access: .localOnly),
            RegionSlot.state(generation: 0, access: .remoteWrite),
            RegionSlot.state(generation: 1, access: .remoteWrite),
            RegionSlot.state(generation: .max, access: .remoteWrite),
        ]
        #expect(states.count == 5)
    }
}
