public import TransferCore

/// A network in one thread and in virtual time: NICs, wires, and a list of what happens next.
///
/// Nothing happens by itself. Whoever drives a simulation lets the engines do what they can, then calls
/// `step()`, and repeats. Every delay and every reordering is drawn from the seed, so that the same calls
/// give the same run: `traceHash` tells whether two runs were the same.
///
/// ```swift
/// let network = SimulatedNetwork(seed: 7)
/// let left = network.openDomain(SimulatedNIC(name: "left"), page: leftPage, engine: leftEngine)
/// let right = network.openDomain(SimulatedNIC(name: "right"), page: rightPage, engine: rightEngine)
/// while network.step() { poll(left); poll(right) }
/// ```
///
/// The network, its domains and the memory they were given belong to one thread.
public final class SimulatedNetwork: TransferClock, @unchecked Sendable {
    // SAFETY: a simulation is single-threaded: whoever made the network calls it, its domains and the engines
    // on top of it from one thread. It is Sendable only because it is also the clock, which real engines
    // share among threads.

    /// Rules for what goes wrong; may be replaced at any time.
    public var faults: any SimulatedFaults = NoFaults()
    /// Called with an engine when there is something for it to look at: the end of a request, a message, a count. For drivers
    /// of many engines, which then need not ask all of them. Must not call the network.
    public var onReady: (EngineID) -> Void = { _ in }
    /// What is moved of a write; nil is all of it.
    public let sample: SimulatedSample?
    /// Virtual nanoseconds since the network was made.
    public private(set) var nowNanoseconds: UInt64 = 0
    /// Events that have happened.
    public private(set) var eventCount: UInt64 = 0

    /// NICs that are open, by id.
    var ports: [UInt64: SimulatedPort] = [:]
    private var generator: SeededGenerator
    private var heap = EventHeap()
    private var planned: UInt64 = 0
    private var connections: UInt64 = 0
    private var trace = TraceHash()

    /// Makes an empty network; everything random in it comes from `seed`. With a `sample` writes move only a part of their bytes.
    public init(seed: UInt64, sample: SimulatedSample? = nil) {
        generator = SeededGenerator(seed: seed)
        self.sample = sample
    }

    /// A fingerprint of every event so far: time, kind, NICs, bytes, immediates, order. Contexts,
    /// keys and addresses are left out, so that it does not depend on where memory lies.
    public var traceHash: UInt64 { trace.value }

    /// When the next event is due, or nil when nothing is under way.
    public var nextEventNanoseconds: UInt64? { heap.nextTime }

    /// Adds a NIC whose owner is written to through `page`. It exists until the domain is closed or released.
    ///
    /// The page must stay mapped as long.
    public func openDomain(
        _ attributes: SimulatedNIC, page: TargetPage, engine: EngineID
    ) -> SimulatedDomain {
        var id = drawWord() >> 1  // fits into ImportedKey.peer
        while ports[id] != nil { id = drawWord() >> 1 }
        let port = SimulatedPort(id: id, nic: attributes, page: page, engine: engine, sample: sample)
        ports[id] = port
        return SimulatedDomain(network: self, port: port)
    }

    /// Advances to the next event and lets it happen; false when there is none.
    @discardableResult public func step() -> Bool {
        guard let event = heap.pop() else { return false }
        nowNanoseconds = max(nowNanoseconds, event.time)
        eventCount += 1
        record(event)
        switch event.action {
        case .transmit(let port): transmit(port)
        case .arrive(let segment, let tail, let isJudged): arrive(segment, tail: tail, isJudged: isJudged)
        case .deliver(let segment): deliver(segment)
        case .complete(let flight): complete(flight)
        case .echo(let message, let sender, let target): echo(message, from: sender, to: target)
        case .unpark(let port): unpark(port)
        }
        return true
    }

    /// Lets everything happen that is due at or before `nanoseconds`, and makes that the time.
    public func run(until nanoseconds: UInt64) {
        while let next = heap.nextTime, next <= nanoseconds { step() }
        nowNanoseconds = max(nowNanoseconds, nanoseconds)
    }

    /// Lets everything happen that is due in the next `nanoseconds`.
    public func advance(by nanoseconds: UInt64) { run(until: nowNanoseconds + nanoseconds) }

    /// Plans an event.
    func schedule(_ action: Event.Action, at time: UInt64) {
        planned += 1
        heap.push(Event(time: time, sequence: planned, action: action))
    }

    /// A number that no connection has had.
    func newConnection() -> UInt64 {
        connections += 1
        return connections
    }

    /// A random word, for keys and ids.
    func drawWord() -> UInt64 { generator.next() }

    /// A random number of `0..<bound`; `bound` is not 0.
    func draw(below bound: UInt64) -> UInt64 {
        generator.next().multipliedFullWidth(by: bound).high  // the bias is below bound / 2^64
    }

    /// The way between a NIC and any other, in either direction: its latency and a fresh jitter.
    func drawDelay(_ nic: SimulatedNIC) -> UInt64 {
        nic.latencyNanoseconds + (nic.jitterNanoseconds == 0 ? 0 : draw(below: nic.jitterNanoseconds + 1))
    }

    private func record(_ event: Event) {
        trace.add(event.time)
        trace.add(event.sequence)
        switch event.action {
        case .arrive(let segment, let tail, _):
            trace.add(1)
            trace.add(tail)
            record(segment.flight, segment.range)
        case .deliver(let segment):
            trace.add(2)
            record(segment.flight, segment.range)
        case .complete(let flight):
            trace.add(3)
            record(flight, 0..<flight.length)
        case .unpark(let port):
            trace.add(4)
            trace.add(port.id)
        case .transmit(let port):
            trace.add(5)
            trace.add(port.id)
        case .echo(let message, _, let target):
            trace.add(6)
            trace.add(target)
            trace.add(UInt64(message.count))
        }
    }

    private func record(_ flight: Flight, _ range: Range<Int>) {
        let count = flight.count
        trace.add(flight.source.id)
        trace.add(flight.target)
        trace.add(UInt64(range.lowerBound))
        trace.add(UInt64(range.upperBound))
        trace.add(UInt64(count.immediate) << 32 | UInt64(count.eighths))
        trace.add(UInt64(flight.status.rawValue))
    }
}
