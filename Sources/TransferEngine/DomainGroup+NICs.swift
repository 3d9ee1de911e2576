internal import TransferCore

// Regions that are registered on some NICs only. Where one of them is the source of a write, the write goes over the rails
// that begin on those NICs: over a narrower attachment, made when the target or the region became known.
extension DomainGroup {
    /// The set of all NICs.
    var allNICs: UInt8 { UInt8(truncatingIfNeeded: (1 << domains.count) - 1) }

    /// A number that no attachment has had, for a long time.
    func nextGeneration() -> UInt32 {
        hot.value.generation = max(1, hot.value.generation &+ 1)
        return hot.value.generation
    }

    /// Makes all targets reachable from regions on `set`.
    func admit(nicSet set: UInt8) throws(TransferError) {
        guard set != allNICs, !hot.value.nicSets.contains(set) else { return }
        guard hot.value.nicSets.count < Limits.nicSets else {
            throw TransferError(
                .limitReached,
                "regions are registered on \(Limits.nicSets) different sets of NICs already; use one of those"
            )
        }
        hot.value.nicSets.append(set)
        for index in 0..<UInt32(attachments.count)
        where attachments[index].generation != 0 && !attachments[index].isNarrower {
            try narrow(index, to: hot.value.nicSets.count - 1)
        }
    }

    /// Makes the target reachable from regions on some NICs only.
    func narrow(_ index: UInt32) throws(TransferError) {
        for number in hot.value.nicSets.indices { try narrow(index, to: number) }
    }

    private func narrow(_ index: UInt32, to number: Int) throws(TransferError) {
        let set = hot.value.nicSets[number]
        guard attachments[index].nics & set != attachments[index].nics else { return }
        let made = narrower(attachments[index], set)
        guard made.rails.count > 0 else { return }
        guard let place = freeAttachments.pop() else {
            throw TransferError(.limitReached, "\(Limits.attachments) regions are attached; detach some")
        }
        attachments[place] = made
        attachments[index].narrower[number] = place
    }

    private func narrower(_ whole: borrowing Attachment, _ set: UInt8) -> Attachment {
        restricted(whole) { set & 1 << UInt8(whole.rails[$0].local) != 0 }
    }

    /// The same target over some of its rails.
    func restricted(_ whole: borrowing Attachment, _ isKept: (_ rail: Int) -> Bool) -> Attachment {
        var rails: [Rail] = []
        var keys: [ImportedKey] = []
        var links: [Int32] = []
        var widths: [UInt32] = []
        for rail in 0..<whole.rails.count where isKept(rail) {
            rails.append(whole.rails[rail])
            keys.append(whole.keys[rail])
            links.append(whole.links[rail])
            widths.append(whole.rails[rail].end - (rail == 0 ? 0 : whole.rails[rail - 1].end))
        }
        for (rail, end) in zip(rails.indices, Rail.ends(widths)) { rails[rail].end = end }
        return Attachment(
            generation: nextGeneration(), peer: whole.peer, isWritable: whole.isWritable,
            trafficClass: whole.trafficClass, length: whole.length,
            rails: Table(rails), keys: Table(keys), links: Table(links),
            maximumWriteBytes: keys.reduce(.max) { min($0, $1.maximumWriteBytes) },
            completesAtOnce: keys.allSatisfy(\.completesAtOnce),
            nics: rails.reduce(0) { $0 | 1 << UInt8($1.local) }, isNarrower: true)
    }

    /// Ends an attachment: its imports, the narrower ones that share them, and its entry. Its index stays taken.
    func detach(_ index: UInt32) {
        let attachment = exchange(&attachments[index], with: Attachment())
        for number in attachment.narrower.indices where attachment.narrower[number] != .max {
            detach(attachment.narrower[number])
            freeAttachments.push(attachment.narrower[number])
        }
        for detour in attachment.detours {
            attachments[detour.index] = Attachment()
            freeAttachments.push(detour.index)
        }
        guard !attachment.isNarrower else { return }
        for rail in 0..<attachment.rails.count {
            domains[attachment.rails[rail].local].fabric.releaseImport(attachment.keys[rail])
            if let link = links.release(Int(attachment.links[rail])), link.state == .down {
                hot.value.downLinks -= 1
            }
        }
    }

    /// Which attachment a write from region `source` to `target` uses; `.max` when no NIC of the region reaches it.
    @inline(__always)
    func attachment(from source: UInt32, to target: UInt32) -> UInt32 {
        let set = regions[source].nics
        return attachments[target].nics & ~set == 0 ? target : narrowerAttachment(from: source, to: target)
    }

    @inline(never)
    private func narrowerAttachment(from source: UInt32, to target: UInt32) -> UInt32 {
        attachments[target].narrower[regions[source].nicSet]
    }
}
