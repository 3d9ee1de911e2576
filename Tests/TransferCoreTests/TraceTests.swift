import Foundation
import Testing
import TransferCore

/// The flight recorder's file format and its conversion for Chrome and Perfetto.
@Suite struct TraceTests {
    // Made by a separate program that follows docs/wire-format.md.
    private static let golden =
        "54455401131211100f0e0d0c0c70726566696c6c2d3320c3bc02087463702065746830087463702065746831e8030000"
        + "0000000000f2052a01000000b80b000000000000e8f5052a010000000000ca67a7fc7a18070000000000000005000000"
        + "b0040000000000000300011f090000000010000000000000110000002800000078050000000000000300020109000000"
        + "28000000280000002800000000000000d007000000000000030004510900000028000000000000000000000000000000"
        + "d007000000000000ffff0a01000000006800000000000000000000000000000098080000000000000300055f09000000"
        + "2800000000000000680000000000000088948284"

    private static var goldenBytes: [UInt8] { bytes(golden) }

    private static func bytes(_ text: String) -> [UInt8] {
        var result: [UInt8] = []
        var digits = text.makeIterator()
        while let high = digits.next(), let low = digits.next() {
            result.append(UInt8(String([high, low]), radix: 16) ?? 0)
        }
        return result
    }

    @Test func goldenBytesAreRead() throws {
        let trace = try Trace(decoding: Self.goldenBytes)
        #expect(trace.engine.rawValue == 0x0C0D_0E0F_1011_1213)
        #expect(trace.name == "prefill-3 ü")
        #expect(trace.nics == ["tcp eth0", "tcp eth1"])
        #expect(trace.lost == 7)
        #expect(trace.events.map(\.kind) == [.started, .posted, .completed, .peerLost, .ended])
        #expect(trace.events.map(\.nic) == [nil, 1, 1, 1, nil])
        #expect(trace.events[0].operation == .pagedWrite)
        #expect(trace.events[2].status == .peerLost)
        #expect(trace.events[3].transfer == nil)
        #expect(Set(trace.events.compactMap(\.transfer)) == [0x9_0000_0003])
        // 2000 ticks are 1000 nanoseconds.
        #expect(trace.events.map { trace.nanoseconds(of: $0) - 5_000_000_000 } == [100, 200, 500, 500, 600])
        #expect(trace.line(trace.events[1]) == "tcp eth1: posted 40 requests, 40 in flight")
        #expect(trace.line(trace.events[4]) == "failed (peerLost, error 104) after 40 requests")
        #expect(trace.encoded() == Self.goldenBytes)
    }

    /// Whatever is cut off, added or changed is an error, and none a trap.
    @Test func damagedBytesAreRefused() {
        let whole = Self.goldenBytes
        for length in 0..<whole.count {
            #expect(throws: TransferError.self) { try Trace(decoding: whole.prefix(length)) }
        }
        #expect(throws: TransferError.self) { try Trace(decoding: whole + [0]) }
        for position in whole.indices {
            var damaged = whole
            damaged[position] ^= 0x10
            #expect(throws: TransferError.self) { try Trace(decoding: damaged) }
        }
    }

    /// Behind a right checksum, everything is still checked.
    @Test(arguments: [
        ("version", 3, 2), ("NICs", 25, 9), ("events", 92, 6), ("name", 15, 0xFF), ("kind", 106, 16),
        ("operation", 107, 0x7F),
    ])
    func soundBytesWithNonsenseAreRefused(what: String, position: Int, value: UInt8) {
        var bytes = Self.goldenBytes
        bytes[position] = value
        bytes.withChecksum()
        #expect(throws: TransferError.self, "\(what)") { try Trace(decoding: bytes) }
    }

    @Test func clocksAreConvertedAtTheEdges() {
        let clock = Trace.Clock(
            firstTicks: 1000, firstNanoseconds: 500, lastTicks: 2000, lastNanoseconds: 1500,
            wallNanoseconds: 0)
        #expect(clock.nanoseconds(1000) == 500)
        #expect(clock.nanoseconds(900) == 400)
        #expect(clock.nanoseconds(0) == 0)
        #expect(clock.nanoseconds(.max) == UInt64.max - 500)
        let fast = Trace.Clock(
            firstTicks: 0, firstNanoseconds: 0, lastTicks: 1, lastNanoseconds: .max, wallNanoseconds: 0)
        #expect(fast.nanoseconds(2) == .max)
        let broken = Trace.Clock(
            firstTicks: 10, firstNanoseconds: 7, lastTicks: 10, lastNanoseconds: 3, wallNanoseconds: 0)
        #expect(broken.nanoseconds(12) == 9)
    }

    // MARK: JSON

    private struct Document: Decodable {
        struct Event: Decodable {
            struct Identifier: Decodable { var local: String }
            var ph: String
            var name: String
            var pid: Int
            var tid: Int
            var ts: Double?
            var id2: Identifier?
            var args: Arguments?
        }
        struct Arguments: Decodable { var name: String? }
        var traceEvents: [Event]
    }

    private static func document(_ traces: [Trace]) throws -> Document {
        try JSONDecoder().decode(Document.self, from: Data(Trace.json(traces).utf8))
    }

    /// Every beginning has its end behind it, in the same process under the same name.
    private static func expectBalanced(_ document: Document) {
        var open: [String: Document.Event] = [:]
        for event in document.traceEvents where event.ph == "b" || event.ph == "e" {
            let key = "\(event.pid) \(event.id2?.local ?? "")"
            if event.ph == "b" {
                #expect(open.updateValue(event, forKey: key) == nil, "a slice that begins twice")
            } else {
                let begin = open.removeValue(forKey: key)
                #expect(begin?.name == event.name, "a slice that never began")
                #expect(begin?.ts ?? .infinity <= event.ts ?? -.infinity)
            }
        }
        #expect(open.isEmpty, "slices that never end")
    }

    @Test func jsonIsReadAndBalanced() throws {
        var trace = try Trace(decoding: Self.goldenBytes)
        let document = try Self.document([trace])
        Self.expectBalanced(document)
        #expect(document.traceEvents.filter { $0.ph == "b" }.map(\.name) == ["pagedWrite"])
        #expect(document.traceEvents.filter { $0.ph == "i" }.map(\.tid) == [0, 2, 2, 2])
        #expect(document.traceEvents.filter { $0.ph == "M" }.count == 4)
        #expect(document.traceEvents.first { $0.ph == "b" }?.ts == 5_000_000.1)
        // Names may hold anything.
        trace.name = "a \"quoted\"\\ \n\u{1}name"
        #expect(try Self.document([trace]).traceEvents.count == document.traceEvents.count)
    }

    // MARK: Several hosts

    /// A trace of an engine whose clock shows `shift` more than the true time, and whose calendar is wrong by `error`.
    private static func trace(
        _ engine: UInt64, shift: Int64, error: Int64 = 0, _ events: [TraceEvent]
    ) -> Trace {
        func local(_ time: UInt64) -> UInt64 { UInt64(bitPattern: Int64(bitPattern: time) + shift) }
        let wall: Int64 = 1_700_000_000_000_000_000 + (1 << 40) - shift + error
        let clock = Trace.Clock(
            firstTicks: 0, firstNanoseconds: 0, lastTicks: 1 << 40, lastNanoseconds: 1 << 40,
            wallNanoseconds: UInt64(bitPattern: wall))
        return Trace(
            engine: EngineID(rawValue: engine), name: "engine \(engine)", nics: ["a"], clock: clock, lost: 0,
            events: events.map {
                var event = $0
                event.time = local(event.time)
                return event
            })
    }

    private static func event(
        _ time: UInt64, _ kind: TraceEvent.Kind, place: UInt64 = 0xFFFF, detail: UInt8 = 0,
        _ first: UInt64 = 0, _ second: UInt64 = 0
    ) throws -> TraceEvent {
        try #require(
            TraceEvent(
                time: time, word: TraceEvent.word(place, kind, nic: 0, detail: detail), first: first,
                second: second))
    }

    /// Messages between engines 1 and 2, and between 2 and 3, with delays from 20 us on.
    private static func talk(
        _ pairs: [(UInt64, UInt64)], seed: UInt64
    ) throws -> [UInt64: [TraceEvent]] {
        var random = SeededGenerator(seed: seed)
        var events: [UInt64: [TraceEvent]] = [:]
        var number: UInt64 = 0
        for round in 0..<20 {
            for (one, other) in pairs {
                for (from, to) in [(one, other), (other, one)] {
                    number += 1
                    let time = UInt64(1_000_000_000 + round * 1_000_000)
                    let delay = 20_000 + UInt64.random(in: 0...500_000, using: &random)
                    events[from, default: []].append(try event(time, .messageOut, number << 32 | 100))
                    events[to, default: []].append(
                        try event(time + delay, .messageIn, number << 32 | 100, from))
                }
            }
        }
        return events
    }

    /// The true offset is within what is said, also over a host in between, whatever calendars say.
    @Test(arguments: 1...20) func messagesTellHowClocksDiffer(_ seed: UInt64) throws {
        var random = SeededGenerator(seed: seed)
        let shifts = (0..<3).map { _ in Int64.random(in: -500_000_000...500_000_000_000, using: &random) }
        let events = try Self.talk([(1, 2), (2, 3)], seed: seed)
        var traces: [Trace] = []
        for index in 0..<3 {
            let error = Int64(index) * 3_000_000_000
            let own = events[UInt64(index + 1)] ?? []
            traces.append(Self.trace(UInt64(index + 1), shift: shifts[index], error: error, own))
        }
        let offsets = Trace.clockOffsets(traces)
        #expect(offsets[0] == ClockOffset(nanoseconds: 0, source: .shared))
        for index in 1...2 {
            guard case .messages(let uncertainty) = offsets[index].source else {
                Issue.record("\(offsets[index])")
                continue
            }
            let error = (offsets[index].nanoseconds - (shifts[0] - shifts[index])).magnitude
            #expect(error <= uncertainty)
            #expect(uncertainty < UInt64(index) * 300_000)
        }
    }

    /// Engines of one host have one clock, and without an answer only the calendar is left.
    @Test func withoutMessagesTheCalendarIsBelieved() throws {
        let out = try Self.event(1_000_000_000, .messageOut, 1 << 32 | 8)
        let came = try Self.event(1_000_020_000, .messageIn, 1 << 32 | 8, 1)
        let traces = [
            Self.trace(1, shift: 0, [out]), Self.trace(4, shift: 0, error: 2_000_000, []),
            Self.trace(2, shift: 7_000_000_000, error: 50_000_000, [came]),
        ]
        let offsets = Trace.clockOffsets(traces)
        #expect(offsets[1] == ClockOffset(nanoseconds: 0, source: .shared))
        #expect(offsets[2] == ClockOffset(nanoseconds: -6_950_000_000, source: .calendar))
        #expect(Trace.clockOffsets([]) == [])
    }

    /// A message, and a write with the wait that it ended, are arrows between two hosts, on one time line.
    @Test func whatHappenedOnTwoHostsIsJoined() throws {
        let write = TraceEvent.Operation.write.rawValue
        let wait = TraceEvent.Operation.counterWait.rawValue
        var events = try Self.talk([(1, 2)], seed: 3)
        let start = 1_100_000_000 as UInt64
        // Attachment 5, and attachment 0 of which the trace knows nothing.
        let (known, unknown) = (6 << TraceEvent.lengthBits as UInt64, 1 << TraceEvent.lengthBits as UInt64)
        events[1, default: []] += [
            try Self.event(start, .attached, 2, 5),
            try Self.event(
                start + 1000, .started, place: 0, detail: write, 6 << TraceEvent.lengthBits | 4096,
                1 << 32 | 77),
            try Self.event(start + 2000, .ended, place: 0),
            // To somebody else's region, and without a wait for it.
            try Self.event(
                start + 3000, .started, place: 1, detail: write, unknown | 1, 1 << 32 | 77),
            try Self.event(
                start + 3000, .started, place: 2, detail: write, known | 1, 1 << 32 | 78),
        ]
        events[2, default: []] += [
            try Self.event(start - 5000, .waitBegan, place: 4, detail: wait, 1, 77),
            try Self.event(start + 900_000, .ended, place: 4),
        ]
        let traces = [
            Self.trace(1, shift: 5, events[1] ?? []), Self.trace(2, shift: -900_000_000, events[2] ?? []),
        ]
        let document = try Self.document(traces)
        Self.expectBalanced(document)
        let (begins, ends) = (
            document.traceEvents.filter { $0.ph == "s" }, document.traceEvents.filter { $0.ph == "f" }
        )
        #expect(begins.count == 41 && ends.count == 41)
        #expect(Set(begins.map(\.name)).count == 41)
        #expect(begins.map(\.name) == ends.map(\.name))
        let last = try #require(zip(begins, ends).first { $0.0.name == "immediate 77" })
        #expect(last.0.pid == 1 && last.1.pid == 2)
        let distance = (last.1.ts ?? 0) - (last.0.ts ?? 0)
        // Microseconds, but for what is not known better of the clocks' difference.
        #expect(abs(distance - 899) < 300)
        // Each arrow begins and ends at a slice.
        let slices = document.traceEvents.filter { $0.ph == "X" }
        #expect(slices.count == 82)
        #expect(
            document.traceEvents.first { $0.ph == "M" && $0.pid == 2 }?.args?.name?.contains("clock moved")
                == true)
    }

    /// However a ring cuts the events, and whatever order they have, slices stay balanced.
    @Test(arguments: 1...30) func slicesStayBalanced(_ seed: Int) throws {
        var generator = SeededGenerator(seed: UInt64(seed))
        var events: [TraceEvent] = []
        for time in 0..<400 {
            let kind = try #require(TraceEvent.Kind.allCases.randomElement(using: &generator))
            let context =
                UInt64.random(in: 0..<6, using: &generator) | UInt64.random(in: 1...2, using: &generator)
                << 32
            let word = TraceEvent.word(
                Bool.random(using: &generator) ? context : 0xFFFF, kind,
                nic: Int.random(in: 0..<16, using: &generator),
                detail: UInt8.random(in: 0..<6, using: &generator))
            events.append(
                try #require(TraceEvent(time: UInt64(time), word: word, first: 1, second: .max)))
        }
        let clock = Trace.Clock(
            firstTicks: 0, firstNanoseconds: 0, lastTicks: 500, lastNanoseconds: 500, wallNanoseconds: 0)
        let trace = Trace(
            engine: EngineID(rawValue: 1), name: "random", nics: ["a", "b"], clock: clock, lost: 0,
            events: events)
        #expect(try Trace(decoding: trace.encoded()) == trace)
        let document = try Self.document([trace, trace])
        Self.expectBalanced(document)
        #expect(document.traceEvents.contains { $0.ph == "b" && $0.pid == 2 })
    }
}

extension [UInt8] {
    /// Puts the right CRC-32C at the end.
    mutating func withChecksum() {
        var sum = ~UInt32(0)
        for byte in dropLast(4) {
            sum ^= UInt32(byte)
            for _ in 0..<8 { sum = sum & 1 == 0 ? sum >> 1 : sum >> 1 ^ 0x82F6_3B78 }
        }
        for index in 0..<4 { self[count - 4 + index] = UInt8(truncatingIfNeeded: ~sum >> UInt32(8 * index)) }
    }
}
