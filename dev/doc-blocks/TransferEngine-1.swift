import TransferEngine

func meets() async throws {
BLOCK
}
