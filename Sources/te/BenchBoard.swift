internal import Platform
internal import Synchronization
internal import TransferEngine

/// A page that the two processes of a benchmark share, through which they tell each other how far they are without
/// disturbing what is measured.
///
/// It is a memory file that the child inherits: that also works when the child lives in another network namespace, which
/// the shared-memory provider's abstract Unix socket does not reach.
struct BenchBoard: Sendable {
    /// The child's number of the inherited file.
    static let inheritedFile: Int32 = 3

    /// The words, each in a pair of cache lines of its own.
    enum Word: Int {
        /// How many data immediates the target has counted.
        case counted = 0
        /// Raised to end what the target is doing.
        case stop = 128
    }

    private static let byteCount = 4096
    private let mapping: SharedMapping

    /// A new board; the file to inherit is `file`.
    init() throws(TransferError) {
        mapping = try .create(name: "te-board", byteCount: Self.byteCount, isPopulated: true)
    }

    /// The board of the parent process.
    init(inherited file: Int32) throws(TransferError) {
        mapping = try .map(file: file, byteCount: Self.byteCount, isPopulated: true)
    }

    /// The memory file behind it.
    var file: Int32 { mapping.file }

    /// Reads a word.
    func read(_ word: Word) -> UInt64 {
        at(word).pointee.load(ordering: .acquiring)  // pairs with tell
    }

    /// Sets a word, for the other side to read.
    func tell(_ word: Word, _ value: UInt64) {
        at(word).pointee.store(value, ordering: .releasing)  // pairs with read
    }

    /// Removes the mapping and closes the file.
    func close() { mapping.unmap() }

    private func at(_ word: Word) -> UnsafeMutablePointer<Atomic<UInt64>> {
        (mapping.base + word.rawValue).assumingMemoryBound(to: Atomic<UInt64>.self)
    }
}
