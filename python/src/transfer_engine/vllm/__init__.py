"""vLLM over TransferEngine: prefill in one instance, decode in another, the cache pushed layer by layer.

```
python -m vllm.entrypoints.openai.api_server --model M ... --kv-transfer-config '{
  "kv_connector": "TransferEngineConnector", "kv_connector_module_path": "transfer_engine.vllm.connector",
  "kv_role": "kv_producer", "kv_load_failure_policy": "recompute"}'        # and kv_consumer for the decoders
te kv route --prefill http://127.0.0.1:8100 --decode http://127.0.0.1:8200 --port 8000
```

docs/integrations.md says how it works, what it needs and what it refuses.
"""
