internal import TransferCore

/// A registered region as the data path sees it; plain data.
struct RegionEntry {
    /// 0 while the entry is free.
    var generation: UInt32 = 0
    var base = UnsafeMutableRawPointer(bitPattern: 1)
    var length = 0
    /// `DomainKey.local` for each NIC.
    var localKeys = InlineArray<8, UInt64>(repeating: 0)
}

/// An attached remote region as the data path sees it; plain data.
struct Attachment {
    /// 0 while the entry is free.
    var generation: UInt32 = 0
    var isWritable = false
    var length = 0
    /// `Rail.local` is the index of a domain.
    var rails = UnsafeBufferPointer<Rail>(start: nil, count: 0)
    /// One for each rail.
    var keys = UnsafeMutablePointer<ImportedKey>(bitPattern: 8)
    /// The longest write that every rail takes in one request.
    var maximumWriteBytes: UInt64 = 0
    /// Whether posting is all there is to it: the provider copies while it posts.
    var completesAtOnce = false
}
