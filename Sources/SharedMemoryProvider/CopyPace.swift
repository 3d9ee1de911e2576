/// Whether copies to a peer go past the cache.
///
/// A line that is not in the core's own caches must be fetched before it can be overwritten, and taken from a core that has
/// read or written it. Where cores share a cache that is quick, and a reader finds there what was written. Where they do not
/// (another socket, another cluster of cores) it takes ten times as long as writing past all caches, and fetching from memory
/// takes twice as long. Neither processors nor hypervisors say which cores share what, and threads move: so the beginning of
/// a copy is timed now and then.
///
/// Ask `samples` and `streams` before a copy; copy the first `sampleBytes` through the cache if the former says so, and
/// `record` how long that took.
struct CopyPace {
    /// The beginning that is timed. A core holds back stores to less than this, and the clock would not see them.
    static let sampleBytes = 16 << 10
    /// Of so many bytes every copy is timed: it costs nothing beside them.
    private static let alwaysBytes = 1 << 20
    /// What fits between a store and its reader anyhow is not streamed.
    private static let leastBytes = 2 << 10
    /// Bytes in a nanosecond. Slower than this, the lines are in memory or in somebody else's cache.
    private static let least: UInt64 = 12
    /// Copies that are too short to be timed and still go by the last sample.
    private static let trust: UInt8 = 128

    /// Whether copies through the cache are slow.
    private var isSlow = false
    private var turn: UInt8 = 0
    /// Whether the last sample contradicted that.
    private var isInDoubt = false
    private var trusted: UInt8 = 0

    /// Whether the next copy begins with a sample: `sampleBytes` through the cache.
    mutating func samples(byteCount: Int) -> Bool {
        guard byteCount >= Self.sampleBytes else { return false }
        turn &+= 1
        // Not the first ones: they are of memory that nobody has touched yet.
        return isInDoubt || byteCount >= Self.alwaysBytes || turn % (isSlow ? 64 : 16) == 4
    }

    /// Whether the next copy goes past the cache: all of it, or what is behind a sample.
    mutating func streams(byteCount: Int) -> Bool {
        guard isSlow, byteCount >= Self.leastBytes else { return false }
        if byteCount >= Self.sampleBytes { return true }
        guard trusted > 0 else { return false }
        trusted -= 1
        return true
    }

    /// What a sample took. Two in a row change what is done: one may have been interrupted.
    mutating func record(nanoseconds: UInt64) {
        let isDifferent = (UInt64(Self.sampleBytes) < nanoseconds &* Self.least) != isSlow
        if isDifferent, isInDoubt { isSlow.toggle() }
        isInDoubt = isDifferent && !isInDoubt
        trusted = Self.trust
    }
}
