"""How to load an adapter elsewhere, as the card shows it: PEFT, transformers, vLLM and others."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from lorahub.adapter import AdapterInfo

VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What ``--max-lora-rank`` takes; the next one above the rank is needed."""

PIPELINES: Mapping[str, str] = {
    "CAUSAL_LM": "text-generation",
    "SEQ_CLS": "text-classification",
    "TOKEN_CLS": "token-classification",
    "QUESTION_ANS": "question-answering",
    "FEATURE_EXTRACTION": "feature-extraction",
}
"""The Hub's name for a PEFT task type."""

_CLASSES: Mapping[str | None, str] = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
}
# Module names of models under a head: what has no task type was trained through one of those.
_UNDER_A_HEAD = ("model.", "transformer.", "gpt_neox.")
_DIT = ("transformer_blocks.", "single_transformer_blocks.")
_DIFFUSION = re.compile(r"\.to_[qkv]\Z")


def loading(info: AdapterInfo, *, base: str, repo: str, name: str) -> str:
    """Sections of Markdown, one per program that can load the adapter right.

    Args:
        info: The adapter.
        base: Hub id of its base model, or a placeholder for it.
        repo: Hub id or path of the adapter, or a placeholder for it.
        name: A plain word to call it by.
    """
    if any(_DIFFUSION.search(m.name) for m in info.modules):
        return _diffusers(info, base, repo)
    model_class = _model_class(info)
    text = f"""### PEFT

```python
from peft import PeftModel
from transformers import {model_class}

base = {model_class}.from_pretrained("{base}")
model = PeftModel.from_pretrained(base, "{repo}")
```

### transformers

```python
from transformers import {model_class}

model = {model_class}.from_pretrained("{base}")
model.load_adapter("{repo}")
```
"""
    if not model_class.endswith("ForCausalLM"):
        return text
    return text + _vllm(info, base, repo, name) + _llama_cpp(info, base, repo, name)


def _model_class(info: AdapterInfo) -> str:
    mapping = info.config.get("auto_mapping")
    if isinstance(mapping, dict) and str(mapping.get("parent_library", "")).startswith(
        "transformers."
    ):
        name = str(mapping.get("base_model_class"))
        if re.fullmatch(r"[A-Z]\w*", name, re.ASCII):
            return name
    if info.task_type is None and any(m.name.startswith(_UNDER_A_HEAD) for m in info.modules):
        return "AutoModelForCausalLM"
    return _CLASSES.get(info.task_type, "AutoModel")


def _diffusers(info: AdapterInfo, base: str, repo: str) -> str:
    part = "transformer" if any(m.name.startswith(_DIT) for m in info.modules) else "unet"
    return f"""### diffusers

```python
from diffusers import DiffusionPipeline
from peft import PeftModel

pipe = DiffusionPipeline.from_pretrained("{base}")
pipe.{part} = PeftModel.from_pretrained(pipe.{part}, "{repo}")
```
"""


def _vllm(info: AdapterInfo, base: str, repo: str, name: str) -> str:
    rank = next((r for r in VLLM_RANKS if r >= max(info.ranks)), None)
    if rank is None:
        return f"\n### vLLM\n\nvLLM serves ranks up to {VLLM_RANKS[-1]}; this one's is higher.\n"
    # It scales all modules alike.
    alike = len({m.scaling for m in info.modules}) == 1
    fetch, place = ("", repo) if alike else (_equalised(repo, name) + "\n", f"./{name}")
    serve = f"vllm serve {base} --enable-lora --max-lora-rank {rank} --lora-modules {name}={place}"
    return f"\n### vLLM\n\n```\n{fetch}{serve}\n```\n"


def _llama_cpp(info: AdapterInfo, base: str, repo: str, name: str) -> str:
    # It scales each module by one alpha over the module's own rank.
    alike = len(info.ranks) == 1 and len({m.alpha for m in info.modules}) == 1
    plain = all(math.isclose(m.scaling, m.alpha / m.rank) for m in info.modules)
    fetch = f"hf download {repo} --local-dir {name}" if alike and plain else _equalised(repo, name)
    return f"""
### llama.cpp

```
{fetch}
python convert_lora_to_gguf.py {name} --base-model-id {base} --outfile {name}.gguf
llama-cli -m BASE_MODEL.gguf --lora {name}.gguf
```
"""


def _equalised(repo: str, name: str) -> str:
    return f"lorahub pull {repo}\nlorahub export {repo} {name} --format equal-ranks"
