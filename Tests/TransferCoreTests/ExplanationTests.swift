import Testing
import TransferCore

/// Golden texts: what `te explain` says, for the cases that people ask about.
@Suite struct ExplanationTests {
    private func nic(
        _ name: String, _ fabric: String, _ gigabits: UInt32, limit: UInt64 = 1 << 30,
        countsMany: Bool = false
    ) -> DomainAttributes {
        DomainAttributes(
            provider: fabric, fabric: fabric, name: name, megabitsPerSecond: gigabits * 1000,
            maximumWriteBytes: limit, countsMany: countsMany)
    }

    private func peer(_ fabric: String, _ gigabits: UInt32) -> RemoteRegion.NIC {
        RemoteRegion.NIC(fabric: fabric, address: [], megabitsPerSecond: gigabits * 1000, key: 0, base: 0)
    }

    private func lines(
        _ request: TransferPlan.Request, _ local: [DomainAttributes], _ remote: [RemoteRegion.NIC],
        stripeBytes: Int = 65536
    ) -> [String] {
        Explanation(of: request, local: local, remote: remote, stripeBytes: stripeBytes).lines
    }

    /// Two equal NICs on both sides: half of the bytes each, one immediate each, which make one count.
    @Test func longWriteIsStriped() {
        #expect(
            lines(
                .write(byteCount: 1 << 20), [nic("mlx5_0", "roce", 400), nic("mlx5_1", "roce", 400)],
                [peer("roce", 400), peer("roce", 400)]) == [
                    "write of 1 MiB", "over roce, 2 of 2 NICs, 2 pairs of NICs",
                    "  mlx5_0 to NIC 0: 1 requests, 512 KiB, 4/8 counts; its share is 50 %",
                    "  mlx5_1 to NIC 1: 1 requests, 512 KiB, 4/8 counts; its share is 50 %",
                    "2 work requests, 2 immediates, counted 1 time",
                    "about 13.1 us, 80.1 GB/s, when nothing else goes on",
                ])
    }

    /// A short write takes one NIC; which one changes from write to write.
    @Test func shortWriteTakesTurns() {
        let local = [nic("mlx5_0", "roce", 400), nic("mlx5_1", "roce", 400)]
        let remote = [peer("roce", 400), peer("roce", 400)]
        let used = (1...4).map { sequence in
            Explanation(
                of: .write(byteCount: 4096), local: local, remote: remote, stripeBytes: 65536,
                sequence: UInt32(sequence)
            ).rejected.map(\.nic)
        }
        #expect(Set(used) == [["mlx5_0"], ["mlx5_1"]])
        #expect(
            lines(.write(byteCount: 4096), local, remote) == [
                "write of 4 KiB", "over roce, 1 of 2 NICs, 1 pairs of NICs",
                "  mlx5_0 to NIC 0: 1 requests, 4 KiB, 8/8 counts; its share is 50 %",
                "  not mlx5_1: it is another one's turn: less than 2 x 65536 bytes use one NIC",
                "1 work requests, 1 immediates, counted 1 time",
                "about 2.7 us, 1.5 GB/s, when nothing else goes on",
            ])
    }

    /// Four NICs against two of twice the speed: pairs that give every NIC its share. Shared memory is not the peer's.
    @Test func unequalSides() {
        let local = [nic("shm0", "shm", 100)] + (0..<4).map { nic("rdmap\($0)", "efa", 100) }
        #expect(
            lines(.write(byteCount: 64 << 20), local, [peer("efa", 200), peer("efa", 200)]) == [
                "write of 64 MiB", "over efa, 4 of 5 NICs, 4 pairs of NICs",
                "  rdmap0 to NIC 0: 1 requests, 16 MiB, 2/8 counts; its share is 25 %",
                "  rdmap1 to NIC 0: 1 requests, 16 MiB, 2/8 counts; its share is 25 %",
                "  rdmap2 to NIC 1: 1 requests, 16 MiB, 2/8 counts; its share is 25 %",
                "  rdmap3 to NIC 1: 1 requests, 16 MiB, 2/8 counts; its share is 25 %",
                "  not shm0: the peer has no NIC that speaks shm",
                "4 work requests, 4 immediates, counted 1 time",
                "about 1.4 ms, 49.4 GB/s, when nothing else goes on",
            ])
    }

    /// What is first in the configuration wins, although the other one is reachable too.
    @Test func orderDecides() {
        let local = [nic("shm0", "shm", 100, countsMany: true), nic("eth0", "tcp", 10)]
        let remote = [peer("tcp", 10), peer("shm", 100)]
        #expect(
            lines(.write(byteCount: 0), local, remote) == [
                "write of 0 B", "over shm, 1 of 2 NICs, 1 pairs of NICs",
                "  shm0 to NIC 1: 1 requests, 0 B, 8/8 counts; its share is 100 %",
                "  not eth0: tcp comes after shm in the configuration",
                "1 work requests, 1 immediates, counted 1 time",
                "about 360 ns, 0 GB/s, when nothing else goes on",
            ])
    }

    @Test func noCommonFabric() {
        let explanation = Explanation(
            of: .write(byteCount: 1), local: [nic("mlx5_0", "roce", 400)], remote: [peer("efa", 100)],
            stripeBytes: 65536)
        #expect(explanation.predictedNanoseconds == nil && explanation.plan == nil)
        #expect(
            explanation.lines == [
                "write of 1 B", "cannot be sent: no NIC of this side speaks what one of the peer's does",
                "  mlx5_0: it speaks roce, the peer speaks efa",
            ])
    }

    /// Neighbours travel as one request on a fabric that counts many, up to the longest write.
    @Test func pagesAreMerged() {
        let pages = (0..<64).map { UInt32($0 < 32 ? $0 : 1000 + $0) }
        let request = TransferPlan.Request.pages(
            byteCount: 4096, sources: pages, targets: pages, areAdjacent: true)
        #expect(
            lines(request, [nic("shm0", "shm", 100, limit: 1 << 40, countsMany: true)], [peer("shm", 100)])
                == [
                    "64 pages of 4 KiB, side by side", "over shm, 1 of 1 NICs, 1 pairs of NICs",
                    "  shm0 to NIC 0: 2 requests, 256 KiB, 512/8 counts; its share is 100 %",
                    "2 work requests, 2 immediates, counted 64 times",
                    "about 21.4 us, 12.3 GB/s, when nothing else goes on",
                ])
        let apart = lines(request, [nic("mlx5_0", "roce", 400)], [peer("roce", 400)])
        #expect(apart[4 - 1] == "64 work requests, 64 immediates, counted 64 times", "a NIC counts one each")
    }

    /// Longer than the longest write: the parts before the last go without an immediate, first.
    @Test func longerThanTheLongestWrite() {
        let explanation = lines(
            .write(byteCount: 5 << 20), [nic("n", "efa", 100, limit: 2 << 20)], [peer("efa", 100)])
        #expect(
            explanation == [
                "write of 5 MiB", "over efa, 1 of 1 NICs, 1 pairs of NICs",
                "  n to NIC 0: 3 requests, 2 without immediate, 5 MiB, 8/8 counts; its share is 100 %",
                "3 work requests, 1 immediates, counted 1 time",
                "in two stages: what carries no immediate has to be there first, because one write takes at most 2 MiB "
                    + "and eight immediates make one count",
                "about 450.3 us, 11.6 GB/s, when nothing else goes on",
            ])
    }

    @Test func scatterCountsForEachPeer() {
        let local = (0..<2).map { nic("n\($0)", "efa", 100) }
        let explanation = Explanation(
            of: .scatter(byteCount: 4096, targets: 7), local: local,
            remote: [peer("efa", 100), peer("efa", 100)],
            stripeBytes: 65536)
        #expect(explanation.plan?.requests == 7 && explanation.plan?.counts == 7)
        #expect(explanation.lines[0] == "scatter of 4 KiB to each of 7 peers")
        #expect(
            explanation.plan?.parts.map(\.requests) == [4, 3]
                || explanation.plan?.parts.map(\.requests) == [3, 4])
    }
}
