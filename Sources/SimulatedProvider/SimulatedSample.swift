/// Which part of a write is moved, so that more can be simulated than there is memory. Time is charged for all of its bytes.
///
/// Of each write the first `byteCount` bytes are moved, and every region keeps what is moved closely packed at its beginning:
/// what belongs to its offset `o` lies at `place(of: o)`. Writes that begin in one stretch of `spacing` bytes have one place,
/// and overwrite each other. The rest of a region is never touched, so that it need not be backed by memory.
public struct SimulatedSample: Hashable, Sendable {
    /// Bytes of a region that have one place, for example those of a page.
    public var spacing: Int
    /// Bytes that are moved and kept.
    public var byteCount: Int

    /// Describes a sample. Traps unless 1 <= `byteCount` <= `spacing`.
    public init(spacing: Int, byteCount: Int) {
        precondition((1...max(1, spacing)).contains(byteCount), "a sample is a part of what it stands for")
        self.spacing = spacing
        self.byteCount = byteCount
    }

    /// Where a region keeps what belongs to its offset `offset`.
    public func place(of offset: Int) -> Int { offset / spacing * byteCount }
}
