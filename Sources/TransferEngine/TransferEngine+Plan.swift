public import TransferCore

extension TransferEngine {
    /// The NICs of this engine, in the order of the configuration.
    public var nics: [DomainAttributes] { group.attributes }

    /// What a request would become if it were the next one: which NICs carry how many work requests. Nothing is sent.
    ///
    /// - Throws: `staleRegion` when the region is not attached any more.
    /// - Complexity: O(work requests).
    public func plan(
        of request: TransferPlan.Request, to remote: RemoteMemory
    ) throws(TransferError) -> TransferPlan {
        try perform { group throws(TransferError) in
            guard group.attachments[remote.index].generation == remote.generation else {
                throw .staleAttachment
            }
            return Self.plan(of: request, to: group.attachments[remote.index], group)
        }
    }

    private static func plan(
        of request: TransferPlan.Request, to attachment: borrowing Attachment, _ group: DomainGroup
    ) -> TransferPlan {
        TransferPlan(
            of: request, rails: (0..<attachment.rails.count).map { attachment.rails[$0] },
            domains: group.attributes,
            maximumWriteBytes: (0..<attachment.keys.count).map { attachment.keys[$0].maximumWriteBytes },
            stripeBytes: group.planner.stripeBytes, sequence: group.hot.value.sequence &+ 1)
    }
}
