internal import CPlatform
internal import Platform
internal import Synchronization
internal import TransferCore

/// The last events of an engine, in a ring of fixed size: always on, without allocation and without a lock.
///
/// Only the progress thread writes; any thread may take a snapshot, also while the progress thread hangs. An entry is four
/// words. `count` is raised after the words of an entry have been written, so a reader that looks at it once more after it
/// has copied the ring knows which entries may have been written over meanwhile, and leaves those out.
///
/// Reading the time is the dearest part of an event, so events that belong together share one reading: `tick()` takes it.
struct FlightRecorder: ~Copyable {
    struct Entry: ~Copyable {
        let time = Atomic<UInt64>(0)
        let word = Atomic<UInt64>(0)
        let first = Atomic<UInt64>(0)
        let second = Atomic<UInt64>(0)
    }

    /// What the writer alone uses.
    struct Writer {
        var time: UInt64 = 0
        var writesAtOnce: UInt64 = 0
        var bytesAtOnce: UInt64 = 0
        /// Whether `time` is of this moment, for the next event.
        var isFresh = false
        /// A moment in both units, and how many nanoseconds 2^32 ticks take; 0 until that is known.
        var syncTicks: UInt64 = 0
        var syncNanoseconds: UInt64 = 0
        var rate: UInt64 = 0
        /// When `last` looked at all events.
        var lastSearch: UInt64 = 0
        /// When a trace was last written because of a stall, and how many have been.
        var lastFile: UInt64 = 0
        var files = 0
    }

    /// No transfer and no NIC.
    static let nothing: UInt64 = 0xFFFF
    static let noNIC = 0xF
    private static let writesPerEvent: UInt64 = 64

    private let entries: Table<Entry>
    private let mask: Int
    /// Events written since the beginning.
    private let count = Atomic<UInt64>(0)
    private let writer = Cell(Writer())
    /// For each transfer the NICs that push it back, so that one that is tried again and again makes one event.
    private let pushing = Table<UInt8>(repeating: 0, count: Limits.transfers)
    private let clock: any TransferClock
    /// Whether times are those of the processor's clock, and not those of `clock`.
    private let usesTicks: Bool
    private let firstTicks: UInt64
    private let firstNanoseconds: UInt64
    /// Where traces of stalls go; nil is nowhere.
    let directory: String?

    /// Room for at least `capacity` events, up to a power of two; 0 records nothing.
    init(capacity: Int, clock: any TransferClock, directory: String?) {
        var size = capacity > 0 ? 64 : 0
        while size > 0, size < min(capacity, Trace.maximumEvents) { size *= 2 }
        entries = Table(count: size) { _ in Entry() }
        mask = size - 1
        self.clock = clock
        usesTicks = clock is SystemClock && te_ticks_are_steady() != 0
        self.directory = directory
        firstNanoseconds = clock.nowNanoseconds
        firstTicks = usesTicks ? te_ticks() : firstNanoseconds
        writer.value.time = firstTicks
        writer.value.syncTicks = firstTicks
        writer.value.syncNanoseconds = firstNanoseconds
    }

    // MARK: Writing, on the progress thread

    /// Reads the time for the events that follow.
    @inline(__always) func tick() {
        if mask >= 0 { readTime() }
    }

    @inline(__always) private func readTime() {
        writer.value.time = usesTicks ? te_ticks() : clock.nowNanoseconds
        if writer.value.writesAtOnce > 0 { flush() }
    }

    /// As `tick`, unless `now` has just done it.
    @inline(__always) func tickUnlessFresh() {
        if writer.value.isFresh { writer.value.isFresh = false } else { tick() }
    }

    /// The engine's time in nanoseconds, for the next event too. From the processor's clock, which is read in half the time;
    /// that is set right by the engine's clock once a second, and taken for a true one after it has run for 10 ms.
    @inline(__always) func now() -> UInt64 {
        readTime()
        writer.value.isFresh = true
        return nanosecondsOfTime()
    }

    /// The engine's time in nanoseconds when it was last read for an event; nil where none are kept.
    @inline(__always) var lastTime: UInt64? { mask >= 0 ? nanosecondsOfTime() : nil }

    @inline(__always) private func nanosecondsOfTime() -> UInt64 {
        guard usesTicks else { return writer.value.time }
        let passed = (writer.value.time &- writer.value.syncTicks).multipliedFullWidth(by: writer.value.rate)
        let nanoseconds = passed.high << 32 | passed.low >> 32
        guard writer.value.rate > 0, passed.high >> 32 == 0,
            nanoseconds < Self.longestExtrapolation
        else { return synchronize() }
        return writer.value.syncNanoseconds &+ nanoseconds
    }

    private static let longestExtrapolation: UInt64 = 1_000_000_000

    @inline(never) private func synchronize() -> UInt64 {
        let now = clock.nowNanoseconds
        let time = te_ticks()
        let nanoseconds = now &- firstNanoseconds
        let ticks = time &- firstTicks
        if nanoseconds >= 10_000_000, ticks > nanoseconds >> 32 {
            writer.value.rate = ticks.dividingFullWidth((nanoseconds >> 32, nanoseconds << 32)).quotient
            writer.value.syncTicks = time
            writer.value.syncNanoseconds = now
        }
        return now
    }

    /// Records an event at the time of the last `tick`.
    @inline(__always) func record(
        _ kind: TraceEvent.Kind, _ context: UInt64, nic: Int = noNIC, detail: UInt8 = 0,
        _ first: UInt64, _ second: UInt64
    ) {
        guard mask >= 0 else { return }
        let number = count.load(ordering: .relaxed)
        write(
            entries[Int(truncatingIfNeeded: number) & mask],
            TraceEvent.word(context, kind, nic: nic, detail: detail), first, second)
        count.store(number &+ 1, ordering: .releasing)  // pairs with the loads in snapshot
    }

    @inline(__always) private func write(
        _ entry: borrowing Entry, _ word: UInt64, _ first: UInt64, _ second: UInt64
    ) {
        // Each store is behind the `count` before it for a reader that sees it: pairs with the loads in snapshot.
        entry.time.store(writer.value.time, ordering: .releasing)
        entry.word.store(word, ordering: .releasing)  // pairs with snapshot
        entry.first.store(first, ordering: .releasing)  // pairs with snapshot
        entry.second.store(second, ordering: .releasing)  // pairs with snapshot
    }

    /// Whether that a NIC pushes a transfer back is news.
    @inline(__always) func isNews(_ index: UInt32, _ nic: Int, isPushedBack: Bool) -> Bool {
        let bit = UInt8(1) << UInt8(truncatingIfNeeded: nic & 7)
        let before = pushing[index]
        pushing[index] = isPushedBack ? before | bit : before & ~bit
        return before & bit == 0
    }

    /// Notes a short write that was complete when it was submitted; many make one event.
    @inline(__always) func wroteAtOnce(_ byteCount: Int) {
        writer.value.writesAtOnce &+= 1
        writer.value.bytesAtOnce &+= UInt64(truncatingIfNeeded: byteCount)
        if writer.value.writesAtOnce == Self.writesPerEvent { tick() }
    }

    @inline(never) private func flush() {
        record(.wroteAtOnce, Self.nothing, writer.value.writesAtOnce, writer.value.bytesAtOnce)
        writer.value.writesAtOnce = 0
        writer.value.bytesAtOnce = 0
    }

    // MARK: Reading, on any thread

    /// The number of the event that comes next.
    var next: UInt64 { count.load(ordering: .relaxed) }

    /// What the ring holds, oldest first, and how many events there were before.
    func snapshot() -> (events: [TraceEvent], lost: UInt64) {
        let capacity = UInt64(entries.count)
        let end = count.load(ordering: .acquiring)  // pairs with the store in record
        let start = end - min(end, capacity)
        var copies: [(UInt64, UInt64, UInt64, UInt64)] = []
        copies.reserveCapacity(Int(end - start))
        for number in start..<end { copies.append(read(entries[Int(truncatingIfNeeded: number) & mask])) }
        // Event `after` may be being written, in place of event `after - capacity`.
        let after = count.load(ordering: .acquiring)  // pairs with the store in record
        let first = after < capacity ? start : max(start, min(end, after - capacity + 1))
        let events = copies.dropFirst(Int(first - start)).compactMap {
            TraceEvent(time: $0.0, word: $0.1, first: $0.2, second: $0.3)
        }
        return (events, first)
    }

    private func read(_ entry: borrowing Entry) -> (UInt64, UInt64, UInt64, UInt64) {
        // Whoever sees a new word here sees the `count` that was stored before it: pairs with the stores in write.
        (
            entry.time.load(ordering: .acquiring), entry.word.load(ordering: .acquiring),
            entry.first.load(ordering: .acquiring), entry.second.load(ordering: .acquiring)
        )  // pairs with write
    }

    /// The last events of one transfer, oldest first. On the progress thread.
    ///
    /// Looks at all events, but once a millisecond: when many transfers stall at a time, at the newest 256 for the others.
    func last(_ limit: Int, of transfer: UInt64, at nanoseconds: UInt64) -> [TraceEvent] {
        let isFull = writer.value.lastSearch == 0 || nanoseconds &- writer.value.lastSearch >= 1_000_000
        if isFull { writer.value.lastSearch = max(1, nanoseconds) }
        let end = count.load(ordering: .relaxed)
        var number = end
        let first = end - min(end, isFull ? UInt64(entries.count) : 256, UInt64(entries.count))
        var events: [TraceEvent] = []
        while number > first, events.count < limit {
            number -= 1
            let index = Int(truncatingIfNeeded: number) & mask
            let word = entries[index].word.load(ordering: .relaxed)
            guard word & TraceEvent.transferMask == transfer else { continue }
            let copy = read(entries[index])
            let event = TraceEvent(time: copy.0, word: copy.1, first: copy.2, second: copy.3)
            guard let event, event.kind != .stalled else { continue }
            events.append(event)
            if event.kind == .started { break }
        }
        return events.reversed()
    }

    /// How the times of events become nanoseconds, as well as that is known now.
    func calibration() -> Trace.Clock {
        let now = clock.nowNanoseconds
        return Trace.Clock(
            firstTicks: firstTicks, firstNanoseconds: firstNanoseconds,
            lastTicks: usesTicks ? te_ticks() : now, lastNanoseconds: now,
            wallNanoseconds: clock is SystemClock ? te_wall_nanoseconds() : 0)
    }

    /// Whether a stall may write a file now: at most one a second, and `Limits.traceFiles` in all.
    func mayWriteFile(at nanoseconds: UInt64) -> Int? {
        let isFirst = writer.value.files == 0
        guard writer.value.files < Limits.traceFiles,
            isFirst || nanoseconds &- writer.value.lastFile >= 1_000_000_000
        else { return nil }
        writer.value.files += 1
        writer.value.lastFile = nanoseconds
        return writer.value.files
    }
}
