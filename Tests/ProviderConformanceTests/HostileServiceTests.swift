import CPlatform
import Glibc
import Platform
@testable import SharedMemoryProvider
import Testing
import TransferCore

/// A process of the same user that answers on the control socket of shared memory, and not as it should.
@Suite(.serialized) struct HostileServiceTests {
    /// Answers requests in order, each with a packet and files, then closes.
    private final class Service {
        let engine: EngineID
        let page: SharedMapping
        let wakeFile = te_event_new()
        private let listener: Int32
        private let thread: PlatformThread?

        init(_ answers: @escaping @Sendable (Int, inout ControlPacket, Service.Files) -> [Int32]) throws {
            let engine = EngineID(rawValue: UInt64.random(in: 1...(.max)))
            self.engine = engine
            page = try SharedMapping.create(name: "te-test", byteCount: TargetPage.byteCount)
            _ = TargetPage.initialize(page.base, engine: engine)
            listener = te_unix_listen(SharedMemoryHost.socketName(engine))
            try #require(listener >= 0)
            let files = Files(page: page.file, wake: wakeFile)
            let socket = listener
            thread = PlatformThread(name: "te-hostile") {
                let connection = te_unix_accept(socket)
                var number = 0
                while let (request, received) = ControlPacket.receive(from: connection) {
                    for file in received { close(file) }
                    var reply = ControlPacket(request.kind)
                    let sent = answers(number, &reply, files)
                    if reply.send(to: connection, files: sent) != 0 { break }
                    number += 1
                }
                close(connection)
            }
        }

        struct Files {
            let page: Int32
            let wake: Int32
        }

        func end() {
            thread?.join()
            close(listener)
            close(wakeFile)
            page.unmap()
        }
    }

    private static let remote = RemoteRegion(
        engine: EngineID(rawValue: 1), device: 0, index: 1, generation: 2, access: .remoteWrite, length: 8192,
        base: 0, secret: 3, nics: [])

    /// How many descriptors this process has of one file: other suites open and close files meanwhile.
    private static func copies(of file: Int32) -> Int {
        func identity(_ file: Int32) -> (UInt, UInt)? {
            var status = stat()
            return fstat(file, &status) == 0 ? (UInt(status.st_dev), UInt(status.st_ino)) : nil
        }
        guard let wanted = identity(file) else { return 0 }
        return (0..<4096).count { identity($0).map { $0 == wanted } ?? false }
    }

    /// What attaching to a region comes to when the service says so; the peer's files are closed afterwards.
    private func attach(
        _ answer: @escaping @Sendable (inout ControlPacket, Service.Files) -> [Int32]
    ) throws -> TransferError? {
        let service = try Service { number, reply, files in
            number == 0 ? [files.page, files.wake] : answer(&reply, files)
        }
        var failure: TransferError?
        do throws(TransferError) {
            let peer = try SharedMemoryPeer(connectingTo: service.engine, from: EngineID(rawValue: 9))
            do throws(TransferError) { _ = try peer.attach(Self.remote) } catch { failure = error }
            peer.close()
        } catch {
            failure = error
        }
        #expect(Self.copies(of: service.page.file) == 1)
        service.end()
        return failure
    }

    @Test func aLengthThatNoRegionHasIsAnError() throws {
        for length in [UInt64.max, 1 << 63] {
            let error = try attach { reply, files in
                reply.length = length
                return [files.page]
            }
            #expect(error?.code == .outOfRange)
        }
    }

    @Test func aMemoryFileThatIsTooShortIsAnError() throws {
        let short = try SharedMapping.create(name: "te-test", byteCount: 4096)
        defer { short.unmap() }
        let error = try attach { reply, _ in
            reply.length = 8192
            return [short.file]
        }
        #expect(error?.code == .outOfRange)
    }

    /// A mapping that is there already is not taken for a longer one.
    @Test func aRegionThatGrowsIsAnError() throws {
        let region = try SharedMapping.create(name: "te-test", byteCount: 8192)
        defer { region.unmap() }
        let service = try Service { number, reply, files in
            reply.length = number == 1 ? 8192 : 1 << 20
            return number == 0 ? [files.page, files.wake] : [region.file]
        }
        let peer = try SharedMemoryPeer(connectingTo: service.engine, from: EngineID(rawValue: 9))
        #expect(try peer.attach(Self.remote).mapping?.byteCount == 8192)
        var longer = Self.remote
        longer.length = 1 << 20
        #expect(throws: TransferError.self) { try peer.attach(longer) }
        peer.close()
        #expect(Self.copies(of: region.file) == 1)
        service.end()
    }

    @Test func filesThatNobodyAskedForAreClosed() throws {
        let region = try SharedMapping.create(name: "te-test", byteCount: 8192)
        defer { region.unmap() }
        let error = try attach { reply, files in
            reply.length = 8192
            return [region.file, files.page, files.wake]
        }
        #expect(error == nil)
        #expect(Self.copies(of: region.file) == 1)
    }

    @Test func aPageThatIsTooShortIsAnError() throws {
        let short = try SharedMapping.create(name: "te-test", byteCount: 100)
        for extra in [false, true] {
            let service = try Service { _, _, files in
                [short.file, files.wake] + (extra ? [files.page] : [])
            }
            #expect(throws: TransferError.self) {
                try SharedMemoryPeer(connectingTo: service.engine, from: EngineID(rawValue: 9))
            }
            #expect(Self.copies(of: short.file) == 1)
            #expect(Self.copies(of: service.page.file) == 1)
            service.end()
        }
        short.unmap()
    }
}
