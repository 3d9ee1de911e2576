internal import CPlatform
internal import Glibc
public import TransferCore

/// Memory that can be handed to another process: a mapping, and usually the memory file behind it.
@safe public struct SharedMapping: @unchecked Sendable {
    // SAFETY: plain numbers; who may touch the memory is the owner's affair.
    /// First byte, page aligned.
    public let base: UnsafeMutableRawPointer
    /// Bytes mapped.
    public let byteCount: Int
    /// The memory file, or -1.
    public let file: Int32

    private init(base: UnsafeMutableRawPointer, byteCount: Int, file: Int32) {
        unsafe self.base = base
        self.byteCount = byteCount
        self.file = file
    }

    /// A new memory file of `byteCount` bytes, sparse unless `isPopulated`. `hugePages` tries huge pages first and
    /// falls back silently, because whether a machine has some is not known beforehand.
    public static func create(
        name: String, byteCount: Int, hugePages: Bool = false, isPopulated: Bool = false
    ) throws(TransferError) -> SharedMapping {
        let huge = 2 << 20
        if hugePages {
            let rounded = (byteCount + huge - 1) / huge * huge
            let file = unsafe te_memory_file(name, UInt64(rounded), 1)
            if file >= 0 {
                // With a reservation a shortage of huge pages shows here, and not as a signal in the middle of a write.
                if let base = unsafe mapping(of: file, byteCount: rounded, MAP_SHARED | MAP_POPULATE) {
                    return unsafe SharedMapping(base: base, byteCount: rounded, file: file)
                }
                close(file)
            }
        }
        let file = unsafe te_memory_file(name, UInt64(byteCount), 0)
        guard file >= 0 else {
            throw TransferError(
                .limitReached,
                "no memory file of \(byteCount) bytes: \(errorText(-file)); free memory or file descriptors")
        }
        do {
            return try map(file: file, byteCount: byteCount, isPopulated: isPopulated)
        } catch {
            close(file)
            throw error
        }
    }

    /// Maps a file that another process made, which must be long enough: touching what is not there would end this
    /// process. Closing `file` stays the caller's affair unless `unmap` is called.
    public static func map(file: Int32, byteCount: Int, isPopulated: Bool) throws(TransferError)
        -> SharedMapping
    {
        guard te_file_length(file) >= Int64(byteCount) else {
            throw TransferError(.outOfRange, "a peer's memory file has less than \(byteCount) bytes")
        }
        let flags = MAP_SHARED | MAP_NORESERVE | (isPopulated ? MAP_POPULATE : 0)
        guard let base = unsafe mapping(of: file, byteCount: byteCount, flags) else {
            throw TransferError(.limitReached, "mapping \(byteCount) bytes failed: \(errorText(errno))")
        }
        return unsafe SharedMapping(base: base, byteCount: byteCount, file: file)
    }

    private static func mapping(of file: Int32, byteCount: Int, _ flags: Int32) -> UnsafeMutableRawPointer? {
        let base = unsafe mmap(nil, byteCount, PROT_READ | PROT_WRITE, flags, file, 0)
        return unsafe base == MAP_FAILED ? nil : base
    }

    /// The same mapping for a holder that has closed the file.
    public var withoutFile: SharedMapping { unsafe SharedMapping(base: base, byteCount: byteCount, file: -1) }

    /// Gives the memory behind the mapping back from byte `offset`, a multiple of the page size, on, and closes the file. The
    /// addresses stay valid and hold zeros that nobody else sees, for threads that are still on their way there: `unmap` a
    /// mapping without its file once there are none.
    public func retire(from offset: Int) {
        // Nothing can be done where the system refuses: the old memory stays until `unmap`.
        _ = unsafe mmap(
            base + offset, byteCount - offset, PROT_READ | PROT_WRITE,
            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0)
        if file >= 0 { close(file) }
    }

    /// Removes the mapping and closes the file.
    public func unmap() {
        unsafe munmap(base, byteCount)
        if file >= 0 { close(file) }
    }
}

/// Which file a descriptor is of, as long as somebody has the file open or mapped.
public struct FileIdentity: Hashable, Sendable {
    private let device: UInt64
    private let inode: UInt64

    /// Of an open file.
    public init(of file: Int32) {
        var status = stat()
        // For an open file this cannot fail.
        _ = unsafe fstat(file, &status)
        device = UInt64(status.st_dev)
        inode = UInt64(status.st_ino)
    }
}

/// The system's text for an error number.
public func errorText(_ number: Int32) -> String {
    guard let text = unsafe strerror(number) else { return "error \(number)" }
    return unsafe String(cString: text)
}
