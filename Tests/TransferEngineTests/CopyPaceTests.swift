import CPlatform
import Testing

@testable import SharedMemoryProvider

/// When copies to a peer go past the cache.
@Suite struct CopyPaceTests {
    /// A sample's time at so many bytes in a nanosecond.
    private func time(at rate: UInt64) -> UInt64 { UInt64(CopyPace.sampleBytes) / rate }

    /// Does `count` copies of `byteCount` that take their time at `rate`. Returns how many were streamed.
    private func copy(_ pace: inout CopyPace, _ count: Int, of byteCount: Int, at rate: UInt64) -> Int {
        var streamed = 0
        for _ in 0..<count {
            if pace.samples(byteCount: byteCount) {
                #expect(byteCount >= CopyPace.sampleBytes)
                pace.record(nanoseconds: time(at: rate))
            }
            if pace.streams(byteCount: byteCount) { streamed += 1 }
        }
        return streamed
    }

    @Test func copiesToNearCachesStayInThem() {
        var pace = CopyPace()
        let streamed1 = copy(&pace, 1000, of: 64 << 10, at: 30)
        #expect(streamed1 == 0)
        let streamed2 = copy(&pace, 1000, of: 4 << 20, at: 30)
        #expect(streamed2 == 0)
        let streamed3 = copy(&pace, 1000, of: 4096, at: 30)
        #expect(streamed3 == 0)
    }

    @Test func copiesToFarOnesAreStreamedAfterAWhileAndLongOnesAtOnce() {
        var pace = CopyPace()
        let streamed4 = copy(&pace, 100, of: 64 << 10, at: 2)
        #expect(streamed4 > 90)
        var other = CopyPace()
        let streamed5 = copy(&other, 10, of: 32 << 20, at: 2)
        #expect(streamed5 == 9)
    }

    /// Threads move: what was far can be near, and the other way round.
    @Test func itIsNoticedWhenThatChanges() {
        var pace = CopyPace()
        _ = copy(&pace, 100, of: 64 << 10, at: 2)
        let streamed6 = copy(&pace, 300, of: 64 << 10, at: 30)
        #expect(streamed6 < 150)
        let streamed7 = copy(&pace, 100, of: 64 << 10, at: 30)
        #expect(streamed7 == 0)
        _ = copy(&pace, 100, of: 64 << 10, at: 2)
        let streamed8 = copy(&pace, 100, of: 64 << 10, at: 2)
        #expect(streamed8 == 100)
    }

    /// One sample is not believed: the thread may have been interrupted in it.
    @Test func oneSlowSampleChangesNothing() {
        var pace = CopyPace()
        for number in 0..<1000 where pace.samples(byteCount: 64 << 10) {
            pace.record(nanoseconds: number % 3 == 0 ? 1_000_000 : time(at: 30))
            let isInDoubt = pace.samples(byteCount: 64 << 10)
            if isInDoubt { pace.record(nanoseconds: time(at: 30)) }
            let streams = pace.streams(byteCount: 64 << 10)
            #expect(!streams)
        }
    }

    /// Copies too short for a sample go by the last one, but not for ever.
    @Test func shortCopiesFollowForAWhile() {
        var pace = CopyPace()
        _ = copy(&pace, 100, of: 64 << 10, at: 2)
        let streamed9 = copy(&pace, 50, of: 4096, at: 2)
        #expect(streamed9 == 50)
        let streamed10 = copy(&pace, 50, of: 1024, at: 2)
        #expect(streamed10 == 0)
        _ = copy(&pace, 1000, of: 4096, at: 2)
        let streamed11 = copy(&pace, 100, of: 4096, at: 2)
        #expect(streamed11 == 0)
    }

    /// The longest page that is streamed is a number that Swift can compare with a length.
    @Test func theLimitOfStreamingIsPositive() {
        #expect(te_copy_streaming_limit() >= 32768)
    }
}
