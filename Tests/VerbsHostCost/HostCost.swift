// What the processor does for one page of a paged write and for one arrival, without a NIC: the stand-in takes requests and
// gives completions at next to no cost. `run` counts instructions by running this under callgrind twice.
#if Verbs
    import CAllocationCounter
    import CVerbsStandIn
    import Glibc
    import TransferCore
    import VerbsProvider

    /// An end of a connection: a domain with a region.
    struct End {
        let domain: VerbsDomain
        let key: DomainKey
        let descriptor: RemoteRegion

        init(
            _ number: UInt64, _ device: String, _ posting: VerbsOptions.Posting
        ) throws(TransferError) {
            let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE
            let readWrite = PROT_READ | PROT_WRITE
            guard let place = unsafe mmap(nil, TargetPage.byteCount, readWrite, flags, -1, 0),
                let memory = unsafe mmap(nil, 1 << 20, readWrite, flags, -1, 0)
            else { throw TransferError(.limitReached, "no memory") }
            let page = unsafe TargetPage.initialize(place, engine: EngineID(rawValue: number))
            var options = VerbsOptions(device: device)
            options.posting = posting
            domain = unsafe try VerbsDomain(
                options, page: page, engine: page.engine, api: te_standin_api())
            let region = unsafe LocalRegion(
                index: 1, generation: 1, access: .remoteWrite, secret: 1, base: memory, length: 1 << 20,
                memoryFile: -1, isPopulated: false)
            key = try domain.register(region)
            descriptor = RemoteRegion(
                engine: page.engine, device: 0, index: 1, generation: 1, access: .remoteWrite,
                length: 1 << 20, base: key.base, secret: 1,
                nics: [
                    .init(
                        fabric: domain.attributes.fabric, address: domain.address, megabitsPerSecond: 1,
                        key: key.remote, base: key.base)
                ])
        }
    }

    @main struct HostCost {
        static func main() throws {
            let arguments = CommandLine.arguments.dropFirst().compactMap { Int($0) }
            if CommandLine.arguments.dropFirst().first == "ping" {
                return try EnginePing.run(rounds: arguments.first ?? 100)
            }
            let batches = arguments.first ?? 100
            let arrivals = arguments.dropFirst().first ?? 0
            let posting: VerbsOptions.Posting = arguments.dropFirst(2).first == 1 ? .lists : .calls
            let network = unsafe te_standin_new(1, 1)
            let name = unsafe String(cString: te_standin_name(network, 0))
            let (a, b) = (try End(1, name, posting), try End(2, name, posting))
            let target = UnsafeMutablePointer<ImportedKey>.allocate(capacity: 1)
            unsafe target.initialize(to: try a.domain.importRegion(b.descriptor, nic: 0))
            let output = UnsafeMutableBufferPointer<Completion>.allocate(
                capacity: Limits.completionsPerPoll)
            let requests = UnsafeMutableBufferPointer<WorkRequest>.allocate(
                capacity: Limits.requestsPerPost)
            guard let source = unsafe UnsafeRawPointer(bitPattern: UInt(a.key.base)) else { return }
            for index in 0..<requests.count {
                unsafe requests[index] = WorkRequest(
                    context: 7, source: source + index * 1024, length: 1024, localKey: a.key.local,
                    target: UnsafePointer(target), targetOffset: UInt64(1024 * (255 - index)), immediate: 3,
                    eighths: 8)
            }
            for _ in 0..<64 {
                _ = unsafe a.domain.poll(output)
                _ = unsafe b.domain.poll(output)
            }
            let qp = unsafe te_standin_last_qp(network, 0)
            unsafe te_standin_sink(network)
            let before = allocation_count()
            var ended = 0
            // The stand-in takes what it is given; so the credits of the peer are given here.
            let credit = unsafe a.domain.creditWord(0)
            for batch in 0..<batches {
                guard unsafe a.domain.post(UnsafeBufferPointer(requests)).accepted == requests.count else {
                    fatalError("a batch was not taken")
                }
                for index in unsafe 0..<a.domain.poll(output) { ended += unsafe Int(output[index].count) }
                unsafe credit.storeBytes(of: UInt64((batch + 1) * requests.count), as: UInt64.self)
            }
            var arrived = 0
            while arrived < arrivals {
                unsafe te_standin_arrive(network, 64, qp)
                _ = unsafe b.domain.poll(output)
                arrived += 64
            }
            guard ended == batches * requests.count else { fatalError("\(ended) requests ended") }
            let allocations = allocation_count() - before
            print("pages \(ended) arrivals \(arrived) allocations \(allocations)")
        }
    }
#else
    @main struct HostCost { static func main() { print("built without the trait Verbs") } }
#endif
