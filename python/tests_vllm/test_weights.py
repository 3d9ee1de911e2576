"""New weights in a running vLLM: its tokens are those of a fresh engine on them, for a dense model and one with experts."""
import pytest

from engines import Engine
from models import dense, experts, save


def weights_of(place):
    """As they are in the file: names and shapes of the checkpoint."""
    from safetensors.torch import load_file

    return list(load_file(f"{place}/model.safetensors").items())


@pytest.mark.parametrize("make", [dense, experts], ids=["dense", "experts"])
def test_updated_weights_are_those_of_a_fresh_engine(make, tmp_path):
    from transfer_engine.vllm.weights import Trainer
    from vllm.config import WeightTransferConfig

    old, new = save(make, 1, tmp_path / "old"), save(make, 2, tmp_path / "new")
    prompts = [[(number * 7 + index * 13) % 1000 + 3 for index in range(40)] for number in range(3)]

    def tokens(engine, what):
        return [engine.tokens(f"{what}{index}", prompt, 24) for index, prompt in enumerate(prompts)]

    fresh = Engine("fresh", new)
    running = Engine("running", old, weight_transfer_config=WeightTransferConfig(backend="transfer_engine"))
    try:
        fresh.until_up()
        running.until_up()
        expected, before = tokens(fresh, "f"), tokens(running, "b")
        assert expected != before
        with Trainer(chunk_bytes=2 << 20) as trainer:  # several chunks
            running.call("init_weight_transfer_engine", {"init_info": trainer.init_info})

            def update(place):
                running.call("start_weight_update")
                sizes = []
                total = trainer.update(weights_of(place), lambda info: sizes.append(
                    running.call("update_weights", {"update_info": info})))
                running.call("finish_weight_update")
                assert running.look("reset") is True
                assert len(sizes) > 1
                return total

            assert update(old) > 0
            assert tokens(running, "same") == before
            update(new)
            assert tokens(running, "new") == expected
    finally:
        fresh.close()
        running.close()
