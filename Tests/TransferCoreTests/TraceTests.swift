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
        }
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
