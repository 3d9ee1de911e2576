internal import Platform
internal import TransferEngine

/// Starts the other side's process, makes this side, and attaches the two to each other.
func startPair(
    provider: String, nicCount: Int, nics: String, targetNICs: String = "", targetCommand: String = "",
    progress: String, targetProgress: String? = nil, processors: [Int], regionBytes: Int, callerMemory: Bool,
    traceEvents: Int = 8192
) throws -> (ChildProcess, BenchSide) {
    let board = try BenchBoard()
    let child = try ChildProcess(
        [
            "bench-target", "--provider", provider, "--nic-count", String(nicCount),
            "--nics", targetNICs.isEmpty ? nics : targetNICs, "--progress", targetProgress ?? progress,
            "--region-bytes", String(regionBytes),
        ] + processors.dropFirst().flatMap { ["--processor", String($0)] }
            + (callerMemory ? ["--caller-memory"] : []),
        prefix: targetCommand.split(separator: " ").map(String.init), inheriting: board.file)
    let side = try BenchSide(
        name: "initiator", board: board, provider: provider, nicCount: nicCount, nics: nics,
        progress: progress, processor: processors.first, regionBytes: regionBytes, callerMemory: callerMemory,
        traceEvents: traceEvents)
    try side.meet(try child.receive())
    try child.send(side.introduction)
    return (child, side)
}

/// The two processors that the two sides of a benchmark are pinned to: the first two that this process may use.
func pairOfProcessors() -> [Int] {
    let allowed = allowedProcessors()
    return [allowed.first ?? 0, allowed.dropFirst().first ?? allowed.first ?? 0]
}
