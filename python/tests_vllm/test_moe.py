"""Expert parallelism in vLLM on this library's exchange: the tokens of every rank are those of transformers on the whole model."""
import pytest
import torch
import transformers

from models import experts, save
from ranks import Ranks

TOKENS = 16


def prompts(ranks):
    """Of different lengths and numbers: ranks compute different things at the same time, and the last one soon has nothing."""
    return [[[(rank * 131 + number * 17 + index * 7) % 1000 + 3 for index in range(5 + (197 if number == 0 else 37) * (1 + number % 3) % 235 + 11 * rank)]
             for number in range(ranks - rank)] for rank in range(ranks)]


def expected(place, of_ranks):
    model = transformers.AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32)
    with torch.no_grad():
        return [[model.generate(torch.tensor([prompt]), max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False,
                                pad_token_id=0)[0, len(prompt):].tolist() for prompt in of_rank] for of_rank in of_ranks]


def count_passes(rank):
    """Of what this library has exchanged: steps, passes, and rows that were for experts of this rank."""
    from transfer_engine import moe

    counts = dict(steps=0, passes=0, rows=0)
    receive, combine = moe.Exchange.dispatch_receive, moe.Exchange.combine_receive

    def counted_receive(self, *arguments):
        received = receive(self, *arguments)
        counts["passes"] += 1
        counts["rows"] += sum(count for _, count in received.experts)
        return received

    def counted_combine(self, *arguments):
        counts["steps"] += 1
        return combine(self, *arguments)

    moe.Exchange.dispatch_receive, moe.Exchange.combine_receive = counted_receive, counted_combine
    return lambda: dict(counts)


# With little memory a prompt takes several passes.
@pytest.mark.parametrize("ranks, options", [(2, {}), (2, {"memory_budget": 1_600_000}), (4, {"spins": 1})],
                         ids=["2", "2-little-memory", "4"])
def test_tokens_are_those_of_one_process(ranks, options, tmp_path):
    place = save(experts, 3, tmp_path / "model")
    asked = prompts(ranks)
    running = Ranks(ranks, place, count_passes, max_num_batched_tokens=256,
                    additional_config={"transfer_engine_moe": options})
    try:
        running.until_up()
        answers = running.generate(asked, TOKENS)
    finally:
        running.close()
    assert [tokens for tokens, _, _ in answers] == expected(place, asked)
    counts = [counted for _, _, counted in answers]
    layers, top_k = 4, 2
    # All went through here: every token of every layer, the last of an answer is not computed on.
    computed = sum(len(prompt) + TOKENS - 1 for of_rank in asked for prompt in of_rank)
    assert sum(counted["rows"] for counted in counts) >= computed * layers * top_k
    assert len({counted["steps"] for counted in counts}) == 1
    assert all((counted["passes"] > counted["steps"]) == ("memory_budget" in options) for counted in counts)


def test_options_have_names():
    from transfer_engine.vllm.moe import Options

    assert Options.of({}) == Options() and Options.of(None) == Options()
    assert Options.of({"transfer_engine_moe": {"nics": ["shm", "tcp:lo"]}, "other": 1}).nics == ("shm", "tcp:lo")
    with pytest.raises(ValueError, match="deadlin"):
        Options.of({"transfer_engine_moe": {"deadlin": 3}})
