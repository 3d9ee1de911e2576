import TransferCore

// The binary forms: descriptors, traces, lists of digests. Each input is tried as it is, and with a right checksum.
extension Target {
    /// Tries to decode, and holds what was decoded against its own binary form.
    private static func decode<Form: Equatable>(
        _ bytes: [UInt8], _ decode: ([UInt8]) throws(TransferError) -> Form, _ encode: (Form) -> [UInt8],
        _ use: (Form) -> Void = { _ in }
    ) {
        for candidate in [bytes, bytes.sealed] {
            do throws(TransferError) {
                let form = try decode(candidate)
                use(form)
                require(encode(form) == candidate, "what was decoded is encoded in another way")
            } catch {
                require(
                    error.code == .malformedDescriptor || error.code == .unsupportedVersion,
                    "decoding ended with \(error)")
            }
        }
    }

    private static func region(nics: Int) -> RemoteRegion {
        RemoteRegion(
            engine: EngineID(rawValue: 0x0C0D_0E0F_1011_1213), device: 0x0203, index: 0x0405_0607,
            generation: 0x0809_0A0B, access: .remoteWrite, length: 0x1_2345_6789, base: 0x7F00_1122_3000,
            secret: 0x5EC2_E75E_C2E7_5EC2,
            nics: (0..<nics).map { index in
                RemoteRegion.NIC(
                    fabric: "efa", address: [UInt8](repeating: UInt8(index + 1), count: index * 8),
                    megabitsPerSecond: 100_000, key: 0xA0A1_A2A3, base: 0x7F00_1122_3000)
            })
    }

    /// `RemoteRegion` and `EngineAddress`.
    static let descriptors = Target(
        name: "descriptors",
        seeds: {
            [0, 1, 8].flatMap { nics in
                let region = region(nics: nics)
                let whole = [
                    region.encoded(), EngineAddress(name: "prefill-3 \u{FC}", landing: region).encoded(),
                ]
                return whole + whole.map { $0.dropLast(4) }
            }
        },
        run: { bytes in
            decode(
                copy bytes, { bytes throws(TransferError) in try RemoteRegion(decoding: bytes) },
                { $0.encoded() }
            ) {
                require($0.nics.count <= Limits.nicsPerDevice, "too many NICs")
                require($0.length <= UInt64(Int.max), "too long")
            }
            decode(
                copy bytes, { bytes throws(TransferError) in try EngineAddress(decoding: bytes) },
                { $0.encoded() })
        })

    /// `Trace`, and what `te trace` does with it.
    static let traces = Target(
        name: "traces",
        seeds: {
            let events = TraceEvent.Kind.allCases.enumerated().compactMap { index, kind in
                TraceEvent(
                    time: UInt64(1000 + index * 10),
                    word: TraceEvent.word(
                        index < 9 ? 3 | 7 << 32 : 0xFFFF, kind, nic: index % 3, detail: UInt8(index % 5)),
                    first: UInt64(index), second: 5 << 32 | 9)
            }
            return [0, 3, events.count].flatMap { count in
                let trace = Trace(
                    engine: EngineID(rawValue: 0x1011_1213), name: "prefill-3", nics: ["tcp a", "tcp b"],
                    clock: Trace.Clock(
                        firstTicks: 1000, firstNanoseconds: 500, lastTicks: 2000, lastNanoseconds: 900,
                        wallNanoseconds: 1),
                    lost: 7, events: Array(events.prefix(count))
                ).encoded()
                return [trace, trace.dropLast(4)]
            }
        },
        run: { bytes in
            decode(
                copy bytes, { bytes throws(TransferError) in try Trace(decoding: bytes) }, { $0.encoded() }
            ) { trace in
                var lines = 0
                for event in trace.events {
                    lines += trace.line(event).utf8.count
                    _ = trace.nanoseconds(of: event)
                }
                _ = trace.next
                // Another host's, whose clock began at another time.
                var other = trace
                other.clock.wallNanoseconds &+= 1 << 40
                require(Trace.json([trace, other]).utf8.count > lines, "too little JSON")
            }
        })

    /// `DigestList`.
    static let digests = Target(
        name: "digests",
        seeds: {
            let ranges: [DigestRanges] = [
                .stripes(offset: 4096, byteCount: 10000, stripeBytes: 4096),
                .stripes(offset: 0, byteCount: 0, stripeBytes: 4096),
                .pages(pageBytes: 1000, stride: 1024, offset: 7, indices: [9, 4, 9]),
                .pages(pageBytes: 0, stride: 0, offset: 0, indices: []),
            ]
            return ranges.flatMap { ranges -> [[UInt8]] in
                let digests = (0..<ranges.count).map { Digest(low: UInt64($0), high: 1) }
                guard let list = try? DigestList(ranges, digests).encoded() else { return [] }
                return [list, list.dropLast(4)]
            }
        },
        run: { bytes in
            decode(
                copy bytes, { bytes throws(TransferError) in try DigestList(decoding: bytes) },
                { $0.encoded() }
            ) { list in
                require(list.parts.count == list.ranges.count, "parts without ranges")
                for number in 0..<list.ranges.count {
                    let (offset, byteCount) = list.ranges[number]
                    require(offset + byteCount <= UInt64(Int.max), "a range beyond every region")
                    _ = list.ranges.name(of: number)
                }
                _ = list.mismatches(list.parts.map { Digest(low: $0, high: 0) })
            }
        })
}
