"""Small models with random weights."""
import torch
import transformers

COMMON = dict(vocab_size=1024, hidden_size=256, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
              max_position_embeddings=4096, tie_word_embeddings=False, bos_token_id=1, eos_token_id=2,
              initializer_range=0.2, head_dim=64)  # a wide range, so that the likeliest token is clear


def dense():
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(intermediate_size=512, **COMMON))


def experts():
    return transformers.Qwen3MoeForCausalLM(transformers.Qwen3MoeConfig(
        intermediate_size=512, moe_intermediate_size=128, num_experts=8, num_experts_per_tok=2, decoder_sparse_step=1,
        norm_topk_prob=True, mlp_only_layers=[], **COMMON))


def save(make, seed, place):
    torch.manual_seed(seed)
    model = make().to(torch.float32)
    model.save_pretrained(place, safe_serialization=True)
    return str(place)
