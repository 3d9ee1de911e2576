import ExpertParallel
import TransferEngine

func overNodes(_ engine: TransferEngine, _ given: ExpertConfiguration) throws {
    var shape = given
BLOCK
    try exchange.close()
}
