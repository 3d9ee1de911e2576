extension RemoteRegion {
    private static let magic: [UInt8] = [0x54, 0x45, 0x52]  // "TER"
    /// The version that has a moment of expiry and a signature.
    static let signedVersion: UInt8 = version + 1
    /// Bytes of a signature.
    public static let signatureBytes = 32

    /// The compact binary form, about 60 bytes and 30 to 60 more for each NIC.
    /// - Complexity: O(number of NICs).
    public func encoded() -> [UInt8] {
        var writer = ByteWriter()
        write(to: &writer, magic: Self.magic)
        writer.write(CRC32C.checksum(writer.bytes))
        return writer.bytes
    }

    /// Reads the binary form.
    /// - Throws: `malformedDescriptor` for damaged, truncated or overlong bytes, `unsupportedVersion` for another version.
    public init(decoding bytes: some Collection<UInt8>) throws(TransferError) {
        let bytes = try checked(
            [UInt8](bytes), magic: Self.magic, versions: Self.version...Self.signedVersion, kind: "descriptor"
        )
        var reader = ByteReader(bytes.span)
        self = try RemoteRegion(from: &reader)
        guard reader.remaining == 0 else { throw .overlong }
    }

    /// What a signature is over: the binary form up to the signature.
    package var signedBytes: [UInt8] {
        var writer = ByteWriter()
        writeFields(to: &writer, magic: Self.magic, version: Self.signedVersion)
        writer.write(expires)
        return writer.bytes
    }

    fileprivate func write(to writer: inout ByteWriter, magic: [UInt8]) {
        let isPlain = expires == 0 && signature.isEmpty
        writeFields(to: &writer, magic: magic, version: isPlain ? Self.version : Self.signedVersion)
        guard !isPlain else { return }
        writer.write(expires)
        writer.write(counted: signature.prefix(Self.signatureBytes))
    }

    private func writeFields(to writer: inout ByteWriter, magic: [UInt8], version: UInt8) {
        precondition(nics.count <= Limits.nicsPerDevice, "a descriptor names at most 8 NICs")
        for byte in magic { writer.write(byte) }
        writer.write(version)
        writer.write(access.rawValue)
        writer.write(UInt8(nics.count))
        writer.write(device)
        writer.write(index)
        writer.write(generation)
        for value in [engine.rawValue, length, base, secret] { writer.write(value) }
        for nic in nics {
            writer.write(text: nic.fabric, limit: Limits.nameBytes)
            writer.write(counted: nic.address.prefix(Limits.addressBytes))
            writer.write(nic.megabitsPerSecond)
            writer.write(nic.key)
            writer.write(nic.base)
        }
    }

    fileprivate init(from reader: inout ByteReader) throws(TransferError) {
        for _ in 0..<3 { _ = try reader.read(UInt8.self) }
        let version: UInt8 = try reader.read()
        access = Access(rawValue: try reader.read())
        let nicCount = Int(try reader.read(UInt8.self))
        guard nicCount <= Limits.nicsPerDevice else {
            throw TransferError(.malformedDescriptor, "a descriptor with \(nicCount) NICs")
        }
        device = try reader.read()
        index = try reader.read()
        generation = try reader.read()
        engine = EngineID(rawValue: try reader.read())
        length = try reader.read()
        base = try reader.read()
        secret = try reader.read()
        guard length <= UInt64(Int.max), !base.addingReportingOverflow(length).overflow else {
            throw TransferError(.malformedDescriptor, "a region that does not fit into an address space")
        }
        nics = []
        for _ in 0..<nicCount {
            nics.append(
                NIC(
                    fabric: try reader.readString(limit: Limits.nameBytes),
                    address: try reader.readBytes(limit: Limits.addressBytes),
                    megabitsPerSecond: try reader.read(), key: try reader.read(), base: try reader.read()))
        }
        guard version == Self.signedVersion else { return }
        expires = try reader.read()
        signature = try reader.readBytes(limit: Self.signatureBytes)
        // There is one way to write a descriptor.
        guard expires != 0 || !signature.isEmpty, [0, Self.signatureBytes].contains(signature.count) else {
            throw TransferError(.malformedDescriptor, "a signature of \(signature.count) bytes")
        }
    }
}

extension EngineAddress {
    private static let magic: [UInt8] = [0x54, 0x45, 0x41]  // "TEA"

    /// The compact binary form.
    public func encoded() -> [UInt8] {
        var writer = ByteWriter()
        landing.write(to: &writer, magic: Self.magic)
        writer.write(text: name, limit: Limits.nameBytes)
        writer.write(CRC32C.checksum(writer.bytes))
        return writer.bytes
    }

    /// Reads the binary form.
    /// - Throws: `malformedDescriptor` or `unsupportedVersion`, as for `RemoteRegion`.
    public init(decoding bytes: some Collection<UInt8>) throws(TransferError) {
        let bytes = try checked(
            [UInt8](bytes), magic: Self.magic, versions: RemoteRegion.version...RemoteRegion.signedVersion,
            kind: "descriptor")
        var reader = ByteReader(bytes.span)
        landing = try RemoteRegion(from: &reader)
        name = try reader.readString(limit: Limits.nameBytes)
        guard reader.remaining == 0 else { throw .overlong }
    }
}

extension TransferError {
    fileprivate static let overlong = TransferError(
        .malformedDescriptor, "the descriptor has bytes after its end")
}
