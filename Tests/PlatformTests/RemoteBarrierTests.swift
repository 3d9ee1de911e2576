import CMemoryOrder
import CPlatform
import Platform
import Testing

@Suite("RemoteBarrier", .enabled(if: RemoteBarrier.isUsable)) struct RemoteBarrierTests {
    /// How often a writer that passes no barrier itself was inside although the owner had closed, passed `barrier`, and seen that
    /// nobody was announced.
    private func violations(_ rounds: Int, barrier: @convention(c) () -> Int32) throws -> Int {
        let litmus = try #require(te_litmus_new())
        defer { te_litmus_free(litmus) }
        // SAFETY: its words are atomic, and it is freed after the thread has ended.
        nonisolated(unsafe) let shared = litmus
        let writer = try #require(PlatformThread(name: "writer") { te_litmus_write(shared) })
        let count = (0..<rounds).count { _ in te_litmus_close(litmus, barrier) != 0 }
        let entries = te_litmus_end(litmus)
        writer.join()
        #expect(entries > 0)
        return count
    }

    @Test func theOwnerOrdersItsWriters() throws {
        #expect(try violations(100_000, barrier: te_remote_barrier) == 0)
    }

    /// The test above can fail: without the barrier what was announced is sometimes still on its way when the owner looks.
    @Test(.enabled(if: allowedProcessors().count > 1, "takes two cores"))
    func withoutTheBarrierItWouldNot() throws {
        var found = 0
        for _ in 0..<20 where found == 0 { found = try violations(100_000) { 0 } }
        #expect(found > 0)
    }
}
