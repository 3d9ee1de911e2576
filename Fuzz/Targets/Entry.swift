import Glibc

/// The target that this process fuzzes: named by the environment, so that one program serves all.
private let chosen: Target? = {
    let name = getenv("FUZZ_TARGET").map { String(cString: $0) }
    return Target.all.first { $0.name == name }
}()

/// What libFuzzer calls with every input.
@_cdecl("LLVMFuzzerTestOneInput")
public func fuzzOneInput(_ bytes: UnsafePointer<UInt8>?, _ count: Int) -> Int32 {
    chosen?.run(Array(UnsafeBufferPointer(start: bytes, count: count)))
    return 0
}

/// Called first. With FUZZ_SEEDS set, writes the seeds of all targets into folders there, and ends; without a target, says
/// which there are.
@_cdecl("LLVMFuzzerInitialize")
public func fuzzInitialize(_ count: UnsafeRawPointer?, _ arguments: UnsafeRawPointer?) -> Int32 {
    if let folder = getenv("FUZZ_SEEDS").map({ String(cString: $0) }) {
        for target in Target.all {
            mkdir("\(folder)/\(target.name)", 0o755)
            for (number, seed) in target.seeds().enumerated() {
                guard let file = fopen("\(folder)/\(target.name)/seed-\(number)", "wb") else { _exit(2) }
                fwrite(seed, 1, seed.count, file)
                fclose(file)
            }
        }
        _exit(0)
    }
    guard chosen == nil else { return 0 }
    print("FUZZ_TARGET is one of: \(Target.all.map(\.name).joined(separator: " "))")
    fflush(nil)
    // libFuzzer takes an ordinary exit for a crash.
    _exit(0)
}
