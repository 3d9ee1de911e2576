internal import CPlatform

/// A memory barrier on other cores, so that what they do often needs none: membarrier(2), since Linux 4.16.
public enum RemoteBarrier {
    /// Whether the kernel lets this process order such barriers, and whether those of others act on it from now on.
    public static let isUsable: Bool = te_allow_remote_barrier() == 0 && te_remote_barrier() == 0

    /// Returns once every core that runs a process where `isUsable` has passed a barrier; false when the kernel refuses.
    public static func pass() -> Bool { te_remote_barrier() == 0 }
}
