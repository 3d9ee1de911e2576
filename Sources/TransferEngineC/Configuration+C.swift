internal import CTransferEngine
internal import SharedMemoryProvider
internal import TransferEngine

#if Libfabric
    internal import LibfabricProvider
#endif
#if Verbs
    internal import VerbsProvider
#endif

extension Configuration {
    init(_ c: te_config) throws(Failure) {
        self.init()
        if let name = string(c.name) { self.name = name }
        progress = try Self.progress(c)
        nics = try Self.nics(c)
        processor = c.processor < 0 ? nil : Int(c.processor)
        if c.stripe_bytes > 0 { stripeBytes = try integer(c.stripe_bytes, "stripe_bytes") }
        if c.timeout_ns > 0 { timeout = .nanoseconds(try integer(c.timeout_ns, "timeout_ns")) }
        if c.liveness_interval_ns > 0 || c.liveness_intervals > 0 { liveness = try Self.liveness(c) }
        if c.trace_events > 0 {
            traceEvents = c.trace_events == .max ? 0 : Int(min(c.trace_events, 1 << 24))
        }
        traceDirectory = string(c.trace_directory)
    }

    private static func progress(_ c: te_config) throws(Failure) -> Progress {
        switch Int(c.progress) {
        case TE_PROGRESS_ADAPTIVE:
            c.spin_ns < 0 ? .adaptive : .adaptive(spinNanoseconds: UInt64(c.spin_ns))
        case TE_PROGRESS_BUSY: .busy
        case TE_PROGRESS_MANUAL: .manual
        case TE_PROGRESS_EVENT_LOOP: .eventLoop
        default: throw Failure(TE_EINVALID, "config.progress is \(c.progress)")
        }
    }

    private static func liveness(_ c: te_config) throws(Failure) -> Liveness {
        let intervals = c.liveness_intervals == 0 ? 3 : Int(c.liveness_intervals)
        let interval = try integer(c.liveness_interval_ns, "liveness_interval_ns")
        guard intervals >= 2, intervals <= 1000, interval <= 3_600_000_000_000 else {
            throw Failure(
                TE_EINVALID, "liveness of \(intervals) intervals of \(interval) ns; 2 to 1000, up to an hour")
        }
        return Liveness(interval: interval == 0 ? .seconds(1) : .nanoseconds(interval), intervals: intervals)
    }

    private static func nics(_ c: te_config) throws(Failure) -> [NIC] {
        guard c.nics != nil else {
            guard c.nic_count == 0 else { throw Failure.isNull("config.nics") }
            return [.sharedMemory]
        }
        guard (1...UInt64(Limits.nicsPerDevice)).contains(c.nic_count) else {
            throw Failure(TE_EINVALID, "config.nic_count is \(c.nic_count); 1 to \(Limits.nicsPerDevice)")
        }
        var nics: [NIC] = []
        var next = UnsafeRawPointer(c.nics)
        for _ in 0..<c.nic_count {
            let nic = try readSized(next, "nic", as: te_nic.self)
            nics.append(try NIC(nic))
            next = next.map { $0 + Int(nic.size) }
        }
        return nics
    }
}

extension Configuration.NIC {
    init(_ c: te_nic) throws(Failure) {
        switch Int(c.kind) {
        case TE_NIC_SHARED_MEMORY: self = try Self.sharedMemory(c)
        case TE_NIC_LIBFABRIC: self = try Self.libfabric(c)
        case TE_NIC_VERBS: self = try Self.verbs(c)
        default: throw Failure(TE_EINVALID, "nic.kind is \(c.kind)")
        }
    }

    private static func sharedMemory(_ c: te_nic) throws(Failure) -> Self {
        var options = SharedMemoryOptions()
        switch Int(c.caller_memory) {
        case TE_CALLER_MEMORY_AUTOMATIC: options.callerMemory = .automatic
        case TE_CALLER_MEMORY_PROCESS_WRITE: options.callerMemory = .processWrite
        case TE_CALLER_MEMORY_BOUNCE: options.callerMemory = .bounce
        default: throw Failure(TE_EINVALID, "nic.caller_memory is \(c.caller_memory)")
        }
        if c.megabits_per_second > 0 { options.megabitsPerSecond = c.megabits_per_second }
        return .sharedMemory(options)
    }

    private static func libfabric(_ c: te_nic) throws(Failure) -> Self {
        #if Libfabric
            var options = LibfabricOptions(nic: string(c.device))
            if let provider = string(c.provider) { options.provider = provider }
            if c.megabits_per_second > 0 { options.megabitsPerSecond = c.megabits_per_second }
            guard Int(c.framing) <= TE_FRAMING_NEVER else {
                throw Failure(TE_EINVALID, "nic.framing is \(c.framing)")
            }
            if Int(c.framing) == TE_FRAMING_NEVER { options.framing = .never }
            return .libfabric(options)
        #else
            throw Failure(
                TE_EUNAVAILABLE, "this library was built without libfabric; build with the trait Libfabric")
        #endif
    }

    private static func verbs(_ c: te_nic) throws(Failure) -> Self {
        #if Verbs
            guard (0...255).contains(c.port), c.service_level <= 15, c.traffic_class <= 255, c.gid_index >= -1
            else {
                throw Failure(
                    TE_EINVALID,
                    "nic: port 0 to 255, gid_index from -1, service_level up to 15, traffic_class up to 255")
            }
            var options = VerbsOptions(device: string(c.device))
            if c.port > 0 { options.port = UInt8(c.port) }
            if c.gid_index >= 0 { options.gidIndex = Int(c.gid_index) }
            if c.mtu > 0 { options.mtu = Int(c.mtu) }
            options.subnet = string(c.subnet)
            options.serviceLevel = UInt8(c.service_level)
            options.trafficClass = UInt8(c.traffic_class)
            if c.megabits_per_second > 0 { options.megabitsPerSecond = c.megabits_per_second }
            return .verbs(options)
        #else
            throw Failure(
                TE_EUNAVAILABLE, "this library was built without libibverbs; build with the trait Verbs")
        #endif
    }
}
