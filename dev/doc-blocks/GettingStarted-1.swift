import LibfabricProvider
import TransferEngine

func opens() throws {
BLOCK
    engine.close()
}
