/// What a peer needs to write into a registered region: send it by any channel you have.
///
/// The descriptor says how long the region is and what it allows, so that a write that cannot be right is refused
/// before it becomes a packet. `encoded()` is a compact, versioned binary form with a checksum (docs/wire-format.md); the
/// type is also `Codable`.
public struct RemoteRegion: Hashable, Sendable, Codable {
    /// The version of the binary form of a descriptor that neither expires nor is signed; others are of the next one.
    public static let version: UInt8 = 1

    /// One NIC of the region's device, with the key that the region has there.
    public struct NIC: Hashable, Sendable, Codable {
        /// The fabric it speaks, for example `shm`, `tcp`, `efa`: two NICs can talk when these are equal.
        public var fabric: String
        /// The provider's address, opaque.
        public var address: [UInt8]
        /// Link speed in Mbit/s, which weighs the NIC against its neighbours.
        public var megabitsPerSecond: UInt32
        /// The remote key of the region on this NIC.
        public var key: UInt64
        /// The address of the region's first byte as this NIC wants it: a virtual address, or 0.
        public var base: UInt64

        public init(
            fabric: String, address: [UInt8], megabitsPerSecond: UInt32, key: UInt64, base: UInt64
        ) {
            self.fabric = fabric
            self.address = address
            self.megabitsPerSecond = megabitsPerSecond
            self.key = key
            self.base = base
        }
    }

    /// The engine that owns the memory.
    public var engine: EngineID
    /// The device of that engine that the memory belongs to.
    public var device: UInt16
    /// The region's place in its engine's table.
    public var index: UInt32
    /// How often that place has been used; an old descriptor does not match a new region.
    public var generation: UInt32
    /// What peers may do.
    public var access: Access
    /// Length in bytes.
    public var length: UInt64
    /// The address of the first byte in the owner's process.
    public var base: UInt64
    /// Random; whoever does not know it cannot write through a software transport.
    public var secret: UInt64
    /// All NICs of the device, in the owner's order.
    public var nics: [NIC]
    /// The last moment at which the descriptor may be used, in nanoseconds since 1970; 0 is for ever.
    public var expires: UInt64 = 0
    /// An HMAC-SHA256 over everything else, by an engine with a cluster key; empty without one.
    public var signature: [UInt8] = []

    public init(
        engine: EngineID, device: UInt16, index: UInt32, generation: UInt32, access: Access, length: UInt64,
        base: UInt64, secret: UInt64, nics: [NIC]
    ) {
        self.engine = engine
        self.device = device
        self.index = index
        self.generation = generation
        self.access = access
        self.length = length
        self.base = base
        self.secret = secret
        self.nics = nics
    }

    public init(from decoder: any Decoder) throws {
        let values = try decoder.container(keyedBy: CodingKeys.self)
        engine = try values.decode(EngineID.self, forKey: .engine)
        device = try values.decode(UInt16.self, forKey: .device)
        index = try values.decode(UInt32.self, forKey: .index)
        generation = try values.decode(UInt32.self, forKey: .generation)
        access = try values.decode(Access.self, forKey: .access)
        length = try values.decode(UInt64.self, forKey: .length)
        base = try values.decode(UInt64.self, forKey: .base)
        secret = try values.decode(UInt64.self, forKey: .secret)
        nics = try values.decode([NIC].self, forKey: .nics)
        // Not there in what older versions wrote.
        expires = try values.decodeIfPresent(UInt64.self, forKey: .expires) ?? 0
        signature = try values.decodeIfPresent([UInt8].self, forKey: .signature) ?? []
    }
}

/// How to reach an engine: for messages, immediates and barriers, which need no region of the caller's.
public struct EngineAddress: Hashable, Sendable, Codable {
    /// The name the engine gave itself; it appears in errors.
    public var name: String
    /// A small region that every engine has, so that an immediate without data has a valid target on NICs that want
    /// one (EFA; paper section on the libfabric back end).
    public var landing: RemoteRegion

    public init(name: String, landing: RemoteRegion) {
        self.name = name
        self.landing = landing
    }

    /// The engine's identity.
    public var engine: EngineID { landing.engine }
}
