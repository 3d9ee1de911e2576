/// A table of fixed size: allocated once, every access checked against its bounds, elements that stay where they are.
///
/// ```swift
/// let slots = Table(count: 4) { Slot(number: $0) }
/// slots[3].uses += 1
/// slots[4].uses += 1      // traps: index 4 of a table of 4
/// ```
///
/// Elements may be noncopyable, and are changed through a `let`: a table that belongs to an object costs neither a
/// reference count nor a run-time check of exclusivity, which a stored `var` would. Bounds, lifetime and type are
/// therefore safe by construction, and exclusivity is by protocol: **an element has one holder at a time.** Whoever
/// holds `inout table[i]` reaches element i in no other way meanwhile, and another thread touches it only after it was
/// handed over (through an `IndexStack` or an `IndexQueue`, which order memory). What several threads look at together
/// is an `Atomic`, in a table of its own.
@safe public struct Table<Element: ~Copyable>: ~Copyable {
    // `base` points to `count` initialised elements from `init` to `deinit`. An empty table allocates nothing: its `base`
    // is nil and behind the bounds check.
    #if THREAD_SANITIZER
        // One word, with the count in front of the elements: Swift 6.3 breaks off when it instruments a change of an element of
        // a noncopyable structure that is more than a pointer (swiftlang/swift#86265).
        @usableFromInline let head: UnsafeMutableRawPointer
        @inlinable static var headBytes: Int { max(64, MemoryLayout<Element>.alignment) }
        @inlinable var base: UnsafeMutablePointer<Element>? {
            unsafe UnsafeMutablePointer<Element>(OpaquePointer(head + Self.headBytes))
        }
        /// How many elements there are.
        @inlinable public var count: Int { unsafe head.load(as: Int.self) }
    #else
        @usableFromInline let base: UnsafeMutablePointer<Element>?
        /// How many elements there are.
        public let count: Int
    #endif

    /// Makes `count` elements, one after the other.
    /// - Complexity: O(count), with one allocation.
    @inlinable public init(count: Int, _ element: (Int) -> Element) {
        precondition(count >= 0, "a table of negative size")
        guard count > 0 else {
            self.init()
            return
        }
        self.init(memoryFor: count)
        for index in 0..<count { unsafe (base.unsafelyUnwrapped + index).initialize(to: element(index)) }
    }

    #if THREAD_SANITIZER
        /// Makes a table without elements, and without memory.
        @inlinable public init() { self.init(memoryFor: 0) }

        @inlinable init(memoryFor count: Int) {
            let byteCount = Self.headBytes + count * MemoryLayout<Element>.stride
            let memory = UnsafeMutableRawPointer.allocate(byteCount: byteCount, alignment: Self.headBytes)
            unsafe memory.storeBytes(of: count, as: Int.self)
            unsafe head = memory
        }

        @inlinable deinit {
            unsafe base?.deinitialize(count: count)
            unsafe head.deallocate()
        }
    #else
        /// Makes a table without elements, and without memory.
        @inlinable public init() {
            count = 0
            unsafe base = nil
        }

        @inlinable init(memoryFor count: Int) {
            self.count = count
            unsafe base = .allocate(capacity: count)
        }

        @inlinable deinit {
            unsafe base?.deinitialize(count: count)
            unsafe base?.deallocate()
        }
    #endif

    /// Element `index`. Traps outside of `0..<count`.
    /// - Complexity: O(1), one comparison.
    @inlinable public subscript(index: Int) -> Element {
        @inline(__always) unsafeAddress { unsafe UnsafePointer(address(of: index)) }
        @inline(__always) nonmutating unsafeMutableAddress { unsafe address(of: index) }
    }

    /// Element `index`. Traps outside of `0..<count`.
    /// - Complexity: O(1), one comparison.
    @inlinable public subscript(index: UInt32) -> Element {
        @inline(__always) unsafeAddress { unsafe UnsafePointer(address(of: Int(index))) }
        @inline(__always) nonmutating unsafeMutableAddress { unsafe address(of: Int(index)) }
    }

    /// Where element `index` lies, for code that hands it out of Swift's sight. Valid as long as the table.
    @inlinable @inline(__always) @unsafe
    public func address(of index: Int) -> UnsafeMutablePointer<Element> {
        precondition(UInt(bitPattern: index) < UInt(bitPattern: count), "an index outside of the table")
        return unsafe base.unsafelyUnwrapped + index
    }

    /// The elements, to read.
    @inlinable public var span: Span<Element> {
        @_lifetime(borrow self) get {
            unsafe _overrideLifetime(memory.span, borrowing: self)
        }
    }

    /// All elements as plain memory, for code that hands it out of Swift's sight. Valid as long as the table.
    @inlinable @unsafe public var memory: UnsafeMutableBufferPointer<Element> {
        unsafe UnsafeMutableBufferPointer(start: base, count: count)
    }
}

extension Table {
    /// Makes a table of copies of one value.
    /// - Complexity: O(count), with one allocation.
    @inlinable public init(repeating element: Element, count: Int) {
        self.init(count: count) { _ in element }
    }

    /// Makes a table of the elements of an array.
    /// - Complexity: O(count), with one allocation.
    @inlinable public init(_ elements: [Element]) {
        self.init(count: elements.count) { elements[$0] }
    }
}

/// One value in memory of its own, changed through a `let`: a `Table` of one, and the same protocol.
@safe public struct Cell<Value: ~Copyable>: ~Copyable {
    // `address` points to an initialised value from `init` to `deinit`.
    @usableFromInline let address: UnsafeMutablePointer<Value>

    /// Stores a value.
    @inlinable public init(_ value: consuming Value) {
        unsafe address = .allocate(capacity: 1)
        unsafe address.initialize(to: value)
    }

    @inlinable deinit {
        unsafe address.deinitialize(count: 1)
        unsafe address.deallocate()
    }

    /// The value.
    @inlinable public var value: Value {
        @inline(__always) unsafeAddress { unsafe UnsafePointer(address) }
        @inline(__always) nonmutating unsafeMutableAddress { unsafe address }
    }
}
