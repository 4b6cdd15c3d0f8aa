"""Adapters and configs that strangers published: what each is, checked against its description."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from lorahub import formats
from lorahub.adapter import AdapterInfo, Confidence
from lorahub.bases import identify
from lorahub.errors import InvalidAdapterError, UnsupportedAdapterError
from lorahub.formats import foreign, peft
from lorahub.formats.safetensors import Header, TensorEntry

# Format, modules, ranks, codes of refusals, base model.
QWEN = ("peft", 48, (8,), [], "unsloth/Qwen2.5-0.5B-Instruct-bnb-4bit")
GPT2 = ("peft", 36, (8,), [], "gpt2")
GPT2_ATTENTION = ("peft", 12, (8,), [], "gpt2")
CONVNEXT = ("peft", 36, (8,), [], None)
SAM = ("raw", 0, (), ["format"], None)
LYCORIS = ("lycoris", 0, (), ["format"], None)
CLONEOFSIMO = ("cloneofsimo", 0, (), ["format"], None)
DIFFUSERS = ("diffusers", 0, (), ["format"], None)

SAFETENSORS = {
    "day21-track3-finetuning-llms__r8": QWEN,
    "day21-track3-finetuning-llms__r8-checkpoint-23": QWEN,
    "day21-track3-finetuning-llms__r8-checkpoint-46": QWEN,
    "domain-skeleton-gpt2__legal": GPT2,
    "domain-skeleton-gpt2__medical": GPT2,
    "domain-skeleton-gpt2__sports": GPT2,
    "is-the-mountain-out__checkpoints-v1-binary": CONVNEXT,
    "is-the-mountain-out__train-checkpoints": CONVNEXT,
    "is-the-mountain-out__train-checkpoints--hbc92a": CONVNEXT,
    "llms-from-groundup__lora-adapters": ("peft", 6, (8,), [], "distilgpt2"),
    "lora__ample-loras-lora-disney-inpainting": CLONEOFSIMO,
    "lora__example-loras-analog-svd-rank4": CLONEOFSIMO,
    "lora__example-loras-lora-disney": CLONEOFSIMO,
    "lycoris__result-smart-falcon-16-lokr": LYCORIS,
    "lycoris__result-smart-falcon-4-lokr": LYCORIS,
    "lycoris__result-smart-falcon-8-lokr": LYCORIS,
    "mlx-cli__0000200": (
        "mlx", 0, (), ["format"], "/Users/wyek1n/Downloads/MLX/model/Qwen2.5-0.5B-Instruct",
    ),
    "sam-lora__lora": SAM,
    "sam-lora__lora-weights-lora-rank16": SAM,
    "sam-lora__lora-weights-lora-rank2": SAM,
    "sam-lora__lora-weights-lora-rank4": SAM,
    "sam-lora__lora-weights-lora-rank4--h47fb5": SAM,
    "sam-lora__lora-weights-lora-rank6": SAM,
    "sam-lora__lora-weights-lora-rank8": SAM,
    "sift-opf-zh": ("peft", 32, (16,), ["modules_to_save"], "openai/privacy-filter"),
    "smart-review-ai__lora-adapter": GPT2_ATTENTION,
    "smart-review-ai__lora-adapter-checkpoint-2500": GPT2_ATTENTION,
    "stable-diffusion-v1-5-lora-1490c": DIFFUSERS,
}  # fmt: skip

# The same after conversion, or a word of the error where there is nothing to convert.
PICKLES: dict[str, tuple[str, int, tuple[int, ...], list[str], str | None] | str] = {
    "bloom-lora": ("peft", 0, (), ["enable_lora"], "bigscience/bloom-560m"),
    "langchain-chatchat": ("peft", 0, (), ["peft_type"], "THUDM/chatglm-6b"),
    "lerobot-libero": "is not a flat map",
    "lora__contents-lora-disney": "list of 256",
    "lora__contents-lora-kiriko-text-encoder": "list of 184",
    "lora__le-loras-lora-kiriko2-text-encoder": "list of 96",
    "md-crosslingual__pytorch-adapter": ("bottleneck", 0, (), ["format"], None),
    "stable-diffusion-v1-5-lora": DIFFUSERS,
}


def summary(info: AdapterInfo) -> tuple[object, ...]:
    codes = [refusal.code for refusal in info.refusals]
    return info.format, len(info.modules), info.ranks, codes, info.base_model


def test_every_adapter_is_expected(shared_adapters: Path) -> None:
    found = {p.name for p in shared_adapters.iterdir() if p.is_dir()} - {"configs"}
    assert found == {*SAFETENSORS, *PICKLES, "potterbot"}


@pytest.mark.parametrize("name", SAFETENSORS)
def test_an_adapter_in_safetensors(shared_adapters: Path, name: str) -> None:
    info = formats.inspect(shared_adapters / name)
    assert summary(info) == SAFETENSORS[name]
    odd = ["target_modules names"] if name.startswith("smart-review") else []
    assert [warning[: len("target_modules names")] for warning in info.warnings][:1] == odd
    provenance = json.loads((shared_adapters / name / "PROVENANCE.json").read_text())
    assert info.weights_sha256 in json.dumps(provenance)
    for module in info.modules:
        assert len({module.hash_a, module.hash_b}) == 2
        assert module.scaling == info.config["lora_alpha"] / module.rank


@pytest.mark.parametrize("name", PICKLES)
def test_an_adapter_in_a_pickle(shared_adapters: Path, name: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedAdapterError, match="pickle"):
        formats.inspect(shared_adapters / name)
    expected = PICKLES[name]
    if isinstance(expected, str):
        with pytest.raises(InvalidAdapterError, match=expected):
            formats.convert_pickle(shared_adapters / name, tmp_path)
        return
    formats.convert_pickle(shared_adapters / name, tmp_path)
    assert summary(formats.inspect(tmp_path)) == expected


def test_an_adapter_in_npz(shared_adapters: Path) -> None:
    with pytest.raises(UnsupportedAdapterError, match="npz"):
        formats.inspect(shared_adapters / "potterbot")


# --- configs without weights, against factors that every LoRA config fits ---


def header(rank: int) -> Header:
    return Header(
        {
            "base_model.model.layers.0.q_proj.lora_A.weight": TensorEntry("F32", (rank, 8), 0, 0),
            "base_model.model.layers.0.q_proj.lora_B.weight": TensorEntry("F32", (8, rank), 0, 0),
        },
        {},
    )


def test_every_config_is_read(shared_adapters: Path, tmp_path: Path) -> None:
    index = json.loads((shared_adapters / "configs" / "INDEX.json").read_text())
    assert len(index) == 167
    seen: Counter[str] = Counter()
    for row in index:
        folder = tmp_path / row["file"]
        folder.mkdir()
        text = (shared_adapters / "configs" / row["file"]).read_bytes()
        (folder / "adapter_config.json").write_bytes(text)
        if text.startswith(b"version https://git-lfs"):
            with pytest.raises(InvalidAdapterError, match="git LFS pointer"):
                peft.read_config(folder)
            seen["pointer"] += 1
            continue
        config, digest = peft.read_config(folder)
        assert config == json.loads(text)
        assert len(digest) == 64
        seen[_read(folder, row, config)] += 1
    assert seen == {"lora": 126, "other": 39, "pointer": 2}


def _read(folder: Path, row: dict[str, object], config: dict[str, object]) -> str:
    """Inspect made-up factors of the config's rank; checked against the collection's index."""
    weights = folder / "adapter_model.safetensors"
    rank = row["r"] if isinstance(row["r"], int) else 8
    made = header(rank)
    if not peft.is_peft(made, config):
        info = foreign.inspect(weights, made, config)
        assert [r.code for r in info.refusals] == ["peft_type"]
        assert info.peft_type == str(row["peft_type"]).upper()
        return "other"
    info = peft.inspect(weights, made, config)
    assert info.peft_type == "LORA"
    codes = {r.code for r in info.refusals}
    expected = {"dora"} if config.get("use_dora") else set()
    expected |= {"enable_lora"} if config.get("enable_lora") else set()
    pattern = config.get("rank_pattern")
    if isinstance(pattern, dict) and "q_proj" in pattern:
        expected |= {"rank_mismatch"}
    assert codes == expected, row["file"]
    (module,) = info.modules
    alpha = row["lora_alpha"] if isinstance(row["lora_alpha"], (int, float)) else 8
    assert module.scaling == pytest.approx(alpha / rank)
    return "lora"


# By hand, from the configs' own texts: PEFT type, rank of the one module (0: none, it is no LoRA),
# its scaling, codes of refusals, base model as canonical, and how sure that is.
CERTAIN, LIKELY, GUESS, UNKNOWN = Confidence
CONFIGS = {
    "001": ("LORA", 4, 1.0, [], "google/gemma-3-270m-it", CERTAIN),
    "003": ("LORA", 8, 2.0, [], "Qwen/Qwen2.5-VL-3B-Instruct", CERTAIN),
    "005": ("LORA", 16, 1.0, [], "alignment-handbook/zephyr-7b-sft-full", LIKELY),
    "010": ("LORA", 8, 2.0, [], "google/gemma-3-270m", GUESS),
    "014": ("LORA", 8, 2.0, [], "distilbert/distilbert-base-uncased", CERTAIN),
    "018": ("LORA", 32, 1.0, [], None, UNKNOWN),
    "044": ("LORA", 4, 1.0, [], "FacebookAI/roberta-base", CERTAIN),
    "058": ("PREFIX_TUNING", 0, None, ["peft_type"], "zai-org/chatglm-6b", CERTAIN),
    "059": ("LORA", 8, 2.0, ["dora"], "Qwen/Qwen2.5-1.5B", CERTAIN),
    "067": ("LORA", 32, 1.0, [], "google/paligemma-3b-mix-448", GUESS),
    "084": ("LORA", 16, 1 / 32, [], "bigscience/bloom-560m", CERTAIN),
    "096": ("LORA", 16, 2.0, [], "google/vit-base-patch16-224", CERTAIN),
    "099": ("LORA", 8, 2.0, [], "distilbert/distilgpt2", CERTAIN),
    "122": ("LORA", 16, 1.0, [], "nateraw/vit-age-classifier", GUESS),
    "123": ("LORA", 8, 2.0, ["enable_lora"], "bigscience/bloom-560m", CERTAIN),
    "129": ("ADALORA", 0, None, ["peft_type"], None, UNKNOWN),
    "133": ("BOFT", 0, None, ["peft_type"], None, UNKNOWN),
    "142": ("IA3", 0, None, ["peft_type"], None, UNKNOWN),
    "145": ("LOHA", 0, None, ["peft_type"], None, UNKNOWN),
    "146": ("LOKR", 0, None, ["peft_type"], None, UNKNOWN),
    "150": ("OSF", 0, None, ["peft_type"], "meta-llama/Llama-3.2-3B", CERTAIN),
    "153": ("PROMPT_TUNING", 0, None, ["peft_type"], None, UNKNOWN),
    "165": ("VERA", 0, None, ["peft_type"], None, UNKNOWN),
    "167": ("LORA", 64, 1.0, ["dora"], "black-forest-labs/FLUX.2-klein-base-4B", CERTAIN),
}


@pytest.mark.parametrize("number", CONFIGS)
def test_a_config_by_hand(shared_adapters: Path, number: str, tmp_path: Path) -> None:
    peft_type, rank, scaling, codes, base, confidence = CONFIGS[number]
    (tmp_path / "adapter_config.json").write_bytes(
        (shared_adapters / "configs" / f"{number}.json").read_bytes()
    )
    config, _ = peft.read_config(tmp_path)
    weights, made = tmp_path / "adapter_model.safetensors", header(rank or 8)
    module = peft if peft.is_peft(made, config) else foreign
    info = module.inspect(weights, made, config)
    assert (info.format, info.peft_type) == ("peft", peft_type)
    assert [r.code for r in info.refusals] == codes
    # The modules are made up, so the base is told by its name alone.
    found = identify(replace(info, modules=()))
    assert (found.name, found.confidence) == (base, confidence)
    if not codes:
        assert [(m.rank, m.scaling) for m in info.modules] == [(rank, scaling)]
