internal import SharedMemoryProvider
internal import TransferCore

#if Libfabric
    internal import LibfabricProvider
#endif
#if Verbs
    internal import VerbsProvider
#endif

/// Opens the NICs of a configuration.
func openDomains(
    _ configuration: Configuration, page: TargetPage, pageFile: Int32, wakeFile: Int32
) throws(TransferError) -> ([any FabricDomain], SharedMemoryHost?) {
    var domains: [any FabricDomain] = []
    var host: SharedMemoryHost?
    do throws(TransferError) {
        for nic in configuration.nics {
            switch nic {
            case .sharedMemory(let options):
                let isReceiver = host == nil
                let shared: SharedMemoryHost
                if let host {
                    shared = host
                } else {
                    shared = try SharedMemoryHost(page: page, pageFile: pageFile, wakeFile: wakeFile)
                }
                host = shared
                domains.append(
                    SharedMemoryDomain(
                        host: shared, name: "shm\(domains.count)", options: options, isReceiver: isReceiver))
            #if Libfabric
                case .libfabric(let options):
                    var options = options
                    if configuration.progress == .busy || configuration.progress == .manual {
                        options.mayWait = false
                    }
                    domains.append(try LibfabricDomain(options, page: page, engine: page.engine))
            #endif
            #if Verbs
                case .verbs(let options):
                    domains.append(try VerbsDomain(options, page: page, engine: page.engine))
            #endif
            }
        }
    } catch {
        for domain in domains { domain.close() }
        host?.close()
        throw error
    }
    return (domains, host)
}
