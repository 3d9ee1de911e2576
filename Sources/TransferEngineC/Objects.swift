internal import CTransferEngine
internal import TransferEngine

/// What the handles of one engine stand for, and who uses it.
struct Objects: ~Copyable {
    struct Region {
        var memory: MemoryRegion
        /// Digests that are being computed and watchers: the memory must stay.
        var readers = 0
        /// Whether a role has it, which may revoke it at any time.
        var isLent = false
    }

    struct Watch {
        var watcher: Watcher
        var region: Handle
    }

    /// What a transfer reads from and writes to, so that neither goes before it has ended.
    struct Use {
        var generation: UInt32
        var source: MemoryRegion?
        var target: RemoteMemory?
        var group: PeerGroup?
    }

    struct Statistics {
        var submitted: UInt64 = 0
        var refused: UInt64 = 0
        var bytes: UInt64 = 0
        var pages: UInt64 = 0
    }

    var regions = ObjectTable<Region>()
    var remotes = ObjectTable<RemoteMemory>()
    var peers = ObjectTable<Peer>()
    var groups = ObjectTable<PeerGroup>()
    var watchers = ObjectTable<Watch>()
    /// Handles for each attachment: the engine knows every region once.
    var attachments: [RemoteMemory: Int] = [:]
    var statistics = Statistics()
    /// By the place of the transfer.
    private var uses: [Use?] = []

    mutating func note(_ transfer: Transfer, _ use: Use) {
        let index = Int(transfer.index)
        guard transfer.index < Limits.transfers else { return }
        while uses.count <= index { uses.append(nil) }
        uses[index] = use
    }

    /// The transfers that have not ended. O(transfers at a time so far).
    func pending(_ engine: TransferEngine) -> [Use] {
        uses.enumerated().compactMap { index, use in
            guard let use,
                engine.isPending(Transfer(index: UInt32(index), generation: use.generation))
            else { return nil }
            return use
        }
    }

    func refuseUse(of region: Region, by engine: TransferEngine) throws(Failure) {
        guard !region.isLent else { throw Failure.isLent }
        guard region.readers == 0 else {
            throw Failure(TE_EBUSY, "the region is watched, or a digest of it is being computed")
        }
        let count = pending(engine).count { $0.source == region.memory }
        guard count == 0 else {
            throw Failure(TE_EBUSY, "\(count) transfers from the region have not ended")
        }
    }

    func refuseUse(of target: RemoteMemory, by engine: TransferEngine) throws(Failure) {
        let count = pending(engine).count {
            $0.target == target || $0.group?.members.contains(target) ?? false
        }
        guard count == 0 else {
            throw Failure(TE_EBUSY, "\(count) transfers to it have not ended")
        }
    }

    func region(_ bits: UInt64) throws(Failure) -> MemoryRegion {
        guard let handle = Handle(bits, .region), let region = regions[handle] else {
            throw Failure.badHandle(bits, .region)
        }
        guard !region.isLent else { throw Failure.isLent }
        return region.memory
    }

    func remote(_ bits: UInt64) throws(Failure) -> RemoteMemory {
        guard let handle = Handle(bits, .remote), let remote = remotes[handle] else {
            throw Failure.badHandle(bits, .remote)
        }
        return remote
    }

    func peer(_ bits: UInt64) throws(Failure) -> Peer {
        guard let handle = Handle(bits, .peer), let peer = peers[handle] else {
            throw Failure.badHandle(bits, .peer)
        }
        return peer
    }

    func group(_ bits: UInt64) throws(Failure) -> PeerGroup {
        guard let handle = Handle(bits, .group), let group = groups[handle] else {
            throw Failure.badHandle(bits, .group)
        }
        return group
    }
}

extension Failure {
    static var isLent: Failure {
        Failure(TE_EBUSY, "the region is lent to a te_kv role; te_kv_close gives it back")
    }
}
