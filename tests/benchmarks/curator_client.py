"""Runs bespokelabs-curator on the same requests, in its own environment (this file alone).

`python curator_client.py URL REQUESTS 256 FOLDER`: its openai backend, with the system's prompt,
few-shot turns and limits of the other clients, the token encoding that litellm brings along, its
own journal and cache in FOLDER, and neither viewer nor telemetry.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    url, path, concurrency, folder = sys.argv[1:]
    os.environ |= {
        "CURATOR_CACHE_DIR": folder,
        "CURATOR_DISABLE_RICH_DISPLAY": "1",
        "CURATOR_VIEWER": "0",
        "HF_DATASETS_CACHE": folder,
        "HF_HUB_OFFLINE": "1",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "OPENAI_API_KEY": "none",
        "TELEMETRY_ENABLED": "false",
    }
    import litellm

    tokenizers = Path(litellm.__file__).parent / "litellm_core_utils" / "tokenizers"
    os.environ["TIKTOKEN_CACHE_DIR"] = str(tokenizers)
    from bespokelabs import curator

    class Corrector(curator.LLM):
        def prompt(self, input: dict[str, Any]) -> list[dict[str, str]]:
            return json.loads(input["messages"])

        def parse(self, input: dict[str, Any], response: str) -> dict[str, str]:
            return {"id": input["id"], "label": response}

    bodies = [json.loads(line) for line in Path(path).read_text("utf-8").splitlines()]
    rows = [{"id": str(i), "messages": json.dumps(b["messages"])} for i, b in enumerate(bodies)]
    corrector = Corrector(
        model_name=bodies[0]["model"],
        backend="openai",
        generation_params={n: bodies[0][n] for n in ("max_tokens", "temperature")},
        backend_params={
            "base_url": url,
            "max_concurrent_requests": int(concurrency),
            "max_requests_per_minute": 10_000_000,
            "max_tokens_per_minute": 1_000_000_000_000,
        },
    )
    done = corrector(rows)
    done.dataset.to_parquet(str(Path(folder) / "labels.parquet"))
    assert len(done.dataset) == len(rows)


if __name__ == "__main__":
    main()
