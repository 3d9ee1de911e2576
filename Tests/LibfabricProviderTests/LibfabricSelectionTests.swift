@testable import LibfabricProvider
import Testing
import TransferCore

@Suite("libfabric selection", .enabled(if: LibfabricProvider.isLoaded))
struct LibfabricSelectionTests {
    @Test func listsWhatIsThere() {
        let nics = LibfabricProvider.available()
        #expect(
            nics.contains { $0.provider.hasPrefix("tcp") && $0.name == "lo" && $0.address == "127.0.0.1" })
        #expect(nics.allSatisfy { $0.megabitsPerSecond > 0 })
        #expect(LibfabricProvider.status.hasPrefix("libfabric "))
    }

    @Test(arguments: ["lo", "127.0.0.1", "127.0.0.2"]) func choosesByInterfaceOrAddress(_ nic: String) throws
    {
        let side = try Side(1, LibfabricOptions(nic: nic, megabitsPerSecond: 1234), length: 4096)
        #expect(side.domain.attributes.name == (nic == "lo" ? "lo 127.0.0.1" : "lo \(nic)"))
        #expect(side.domain.attributes.fabric == "tcp")
        #expect(side.domain.attributes.megabitsPerSecond == 1234)
        #expect(side.domain.attributes.countsMany)
        #expect(side.domain.completesOnDelivery)
    }

    @Test(arguments: ["nowhere0", "203.0.113.9"]) func namesWhatIsThereInstead(_ nic: String) {
        let error = #expect(throws: TransferError.self) {
            _ = try Side(1, LibfabricOptions(nic: nic), length: 4096)
        }
        #expect(error?.code == .unavailable)
        #expect(error?.message.contains(nic) == true)
        #expect(error?.message.contains("lo (127.0.0.1)") == true)
    }

    @Test func refusesOtherFabrics() throws {
        let side = try Side(1, LibfabricOptions(nic: "127.0.0.1"), length: 4096)
        var descriptor = side.descriptor
        descriptor.nics[0].fabric = "efa"
        #expect(throws: TransferError.self) { _ = try side.domain.importRegion(descriptor, nic: 0) }
        descriptor = side.descriptor
        descriptor.nics[0].address = [1, 2, 3]
        #expect(throws: TransferError.self) { _ = try side.domain.importRegion(descriptor, nic: 0) }
        #expect(throws: TransferError.self) { _ = try side.domain.importRegion(side.descriptor, nic: 1) }
    }
}
