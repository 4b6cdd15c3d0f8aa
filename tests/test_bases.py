"""One base model behind its names: by table, by rule, by path, by shapes, and by the user."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorahub import formats
from lorahub.adapter import Adapter, AdapterInfo, Confidence, Module, ModuleKind, Origin, Source
from lorahub.bases import common_base, identify, identify_name, known, known_bases
from lorahub.bases.table import named, squeezed
from lorahub.errors import IncompatibleError, InvalidRecipeError, NotFoundError, UsageError
from lorahub.workspace import Workspace
from store import AdapterFilter, Catalog
from tests.conftest import write_adapter

CERTAIN, LIKELY, GUESS = Confidence.CERTAIN, Confidence.LIKELY, Confidence.GUESS

# What an adapter states, the base it means, and how sure that is without its shapes.
NAMES: dict[str | None, tuple[str, Confidence] | None] = {
    None: None,
    "": None,
    "  ": None,
    "None": None,
    "base_model": None,
    # Hub ids, present and former.
    "google/gemma-3-270m-it": ("google/gemma-3-270m-it", CERTAIN),
    "gpt2": ("openai-community/gpt2", CERTAIN),
    "GPT2": ("openai-community/gpt2", CERTAIN),
    "distilgpt2": ("distilbert/distilgpt2", CERTAIN),
    "distilbert/distilgpt2": ("distilbert/distilgpt2", CERTAIN),
    "bert-base-uncased": ("google-bert/bert-base-uncased", CERTAIN),
    "roberta-base": ("FacebookAI/roberta-base", CERTAIN),
    "distilbert-base-uncased": ("distilbert/distilbert-base-uncased", CERTAIN),
    "THUDM/chatglm-6b": ("zai-org/chatglm-6b", CERTAIN),
    "EleutherAI/gpt-neo-125M": ("EleutherAI/gpt-neo-125m", CERTAIN),
    "decapoda-research/llama-7b-hf": ("huggyllama/llama-7b", CERTAIN),
    "runwayml/stable-diffusion-v1-5": ("stable-diffusion-v1-5/stable-diffusion-v1-5", CERTAIN),
    "meta-llama/Meta-Llama-3.1-70B-Instruct": ("meta-llama/Llama-3.1-70B-Instruct", CERTAIN),
    "NousResearch/Llama-2-7b-hf": ("meta-llama/Llama-2-7b-hf", CERTAIN),
    "acme/never-heard-of": ("acme/never-heard-of", CERTAIN),
    "tests-base": ("tests-base", CERTAIN),
    # Quantised twins and copies.
    "unsloth/Qwen2.5-0.5B-Instruct-bnb-4bit": ("Qwen/Qwen2.5-0.5B-Instruct", LIKELY),
    "unsloth/llama-3-8b-Instruct-bnb-4bit": ("meta-llama/Meta-Llama-3-8B-Instruct", LIKELY),
    "unsloth/Meta-Llama-3.1-8B-Instruct-bnb-4bit": ("meta-llama/Llama-3.1-8B-Instruct", LIKELY),
    "unsloth/meta-llama-3.1-8b-bnb-4bit": ("meta-llama/Llama-3.1-8B", LIKELY),
    "unsloth/meta-llama-3.1-8b-unsloth-bnb-4bit": ("meta-llama/Llama-3.1-8B", LIKELY),
    "unsloth/meta-llama-3.1-8b-instruct-unsloth-bnb-4bit": (
        "meta-llama/Llama-3.1-8B-Instruct", LIKELY,
    ),
    "unsloth/qwen3-8b-unsloth-bnb-4bit": ("Qwen/Qwen3-8B", LIKELY),
    "unsloth/zephyr-sft-bnb-4bit": ("alignment-handbook/zephyr-7b-sft-full", LIKELY),
    "Qwen/Qwen2.5-7B-Instruct-GPTQ-Int4": ("Qwen/Qwen2.5-7B-Instruct", LIKELY),
    "Qwen/Qwen2.5-7B-Instruct-AWQ": ("Qwen/Qwen2.5-7B-Instruct", LIKELY),
    "TheBloke/Llama-2-7B-Chat-GPTQ": ("meta-llama/Llama-2-7b-chat-hf", LIKELY),
    "TheBloke/Mistral-7B-v0.1-AWQ": ("mistralai/Mistral-7B-v0.1", LIKELY),
    "bartowski/Llama-3.2-1B-Instruct-GGUF": ("meta-llama/Llama-3.2-1B-Instruct", LIKELY),
    "mlx-community/Qwen2.5-0.5B-Instruct-4bit": ("Qwen/Qwen2.5-0.5B-Instruct", LIKELY),
    "RedHatAI/Llama-3.2-1B-Instruct-FP8-dynamic": ("meta-llama/Llama-3.2-1B-Instruct", LIKELY),
    "neuralmagic/Meta-Llama-3.1-8B-Instruct-quantized.w4a16": (
        "meta-llama/Llama-3.1-8B-Instruct", LIKELY,
    ),
    "acme/never-heard-of-GPTQ": ("acme/never-heard-of", GUESS),
    "acme/Llama-2-7b-hf": ("acme/Llama-2-7b-hf", CERTAIN),
    # Local paths.
    "./gemma-3-270m-it": ("google/gemma-3-270m-it", GUESS),
    "gemma3-270m": ("google/gemma-3-270m", GUESS),
    "/content/gemma3-270m": ("google/gemma-3-270m", GUESS),
    "D:\\DeepLearning\\\u7ed8\u56fe\u7d20\u6750\\logo-lora-project\\gemma3-270m": (
        "google/gemma-3-270m", GUESS,
    ),
    "C:/models/Llama-3.2-1B/": ("meta-llama/Llama-3.2-1B", GUESS),
    "\\\\server\\share\\gpt2": ("openai-community/gpt2", GUESS),
    "/DATA/jupyter/personal/lora_age/nateraw/vit-age-classifier": (
        "nateraw/vit-age-classifier", GUESS,
    ),
    "/root/personal_assistant/model/Shanghai_AI_Laboratory/internlm-chat-7b": (
        "internlm/internlm-chat-7b", GUESS,
    ),
    "/x/models/Llama-2-7b-hf/snapshots/main": ("meta-llama/Llama-2-7b-hf", GUESS),
    "~/.cache/huggingface/hub/models--meta-llama--Llama-3.2-1B/snapshots/4e20de3": (
        "meta-llama/Llama-3.2-1B", CERTAIN,
    ),
    "/home/shadeform/northstar": None,
    "./models/llama-3.2-3b-base": None,
    "/": None,
}  # fmt: skip


@pytest.mark.parametrize("stated", NAMES)
def test_a_name(stated: str | None) -> None:
    found, expected = identify_name(stated), NAMES[stated]
    assert (found and (found.name, found.confidence)) == expected
    assert found is None or found.reason


# Bases of the collection's configs that are no rule's work: a Hub id that stands for itself.
THEMSELVES = {
    "NovaSearch/stella_en_400M_v5", "Qwen/Qwen2.5-1.5B", "Qwen/Qwen2.5-1.5B-Instruct",
    "Qwen/Qwen2.5-VL-3B-Instruct", "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
    "TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T", "allenai/OLMo-1B",
    "bigscience/bloom-560m", "bigscience/bloomz-1b1", "bigscience/bloomz-560m",
    "black-forest-labs/FLUX.2-klein-base-4B", "cointegrated/LaBSE-en-ru",
    "cyberagent/open-calm-1b", "distilbert/distilbert-base-uncased-finetuned-sst-2-english",
    "facebook/esm2_t12_35M_UR50D", "facebook/opt-125m", "fastino/gliner2-base-v1",
    "google/flan-t5-base", "google/gemma-2-9b-it", "google/vit-base-patch16-224",
    "meta-llama/Llama-2-7b-chat-hf", "meta-llama/Llama-2-7b-hf", "meta-llama/Llama-3.2-1B",
    "meta-llama/Llama-3.2-3B", "microsoft/llava-med-v1.5-mistral-7b", "mistralai/Mistral-7B-v0.1",
    "nateraw/vit-age-classifier", "nvidia/Cosmos-Reason2-2B", "openai/privacy-filter",
    "rinna/japanese-gpt-neox-3.6b-instruction-ppo", "sshleifer/tiny-gpt2",
}  # fmt: skip
# Local paths by the known base they end in.
PATHS = {
    "google/gemma-3-270m": 10, "google/gemma-3-270m-it": 3, "google/gemma-3-1b-it": 1,
    "baichuan-inc/Baichuan2-7B-Base": 1, "internlm/internlm-chat-7b": 1,
    "google/paligemma-3b-mix-448": 1, "nateraw/vit-age-classifier": 1, None: 3,
}  # fmt: skip


def test_the_bases_of_every_config(shared_adapters: Path) -> None:
    stated: Counter[str | None] = Counter()
    for path in sorted((shared_adapters / "configs").glob("[0-9]*.json")):
        text = path.read_bytes()
        if not text.startswith(b"version https://git-lfs"):
            stated[json.loads(text).get("base_model_name_or_path")] += 1
    assert stated.total() == 165
    assert stated[None] == 52
    paths: Counter[str | None] = Counter()
    for name, times in stated.items():
        found = identify_name(name)
        if name in THEMSELVES:
            assert found is not None
            assert (found.name, found.confidence) == (name, CERTAIN)
        elif name is not None and (found is None or found.confidence is GUESS):
            paths[found and found.name] += times
        elif name is not None:
            assert name in NAMES, name
    assert paths == PATHS


def test_the_table_is_sound() -> None:
    ids = [name.casefold() for b in known_bases() for name in {b.id, *b.also}]
    assert [n for n, times in Counter(ids).items() if times > 1] == []
    for base in known_bases():
        assert known(base.id) is known(base.id.upper()) is base
        assert base.id.count("/") == 1
        assert all(known(name) is base for name in base.also)
        assert (base.dialect is None) == (base.layers is None) == (base.hidden is None)


def test_a_name_that_ends_several_ids_means_none() -> None:
    ends = Counter(squeezed(b.id.rsplit("/", 1)[-1]) for b in known_bases())
    assert max(ends.values()) == 1
    assert named("no such") is None
    assert squeezed("Llama-3.2_1B") == squeezed("llama3.2-1b")
    for one, other in (("opt-1.3b", "opt-13b"), ("Llama-2-7b", "llama-27b")):
        assert squeezed(one) != squeezed(other)


@given(st.text(max_size=80) | st.text(alphabet="/\\.-_:aB4~ gptq", max_size=30))
def test_no_name_breaks_it(name: str) -> None:
    found = identify_name(name)
    if found is not None:
        assert found.name
        assert found.reason


# --- shapes ---


def info(base: str | None, *modules: tuple[str, int, int]) -> AdapterInfo:
    made = tuple(
        Module(n, ModuleKind.LINEAR, 8, d_in, d_out, "F32", "F32", 8, 1, "a", "b")
        for n, d_out, d_in in modules
    )
    return AdapterInfo("peft", "LORA", base, None, made, (), (), {}, "w", 0)


QWEN_LAST = "model.layers.23.self_attn"
QWEN = ((f"{QWEN_LAST}.q_proj", 896, 896), (f"{QWEN_LAST}.v_proj", 128, 896))
GPT2 = (("transformer.h.11.attn.c_attn", 2304, 768),)


@pytest.mark.parametrize(
    ("stated", "modules", "name", "confidence", "why"),
    [
        # Shapes that confirm a name, and such that are against it.
        ("unsloth/Qwen2.5-0.5B-bnb-4bit", QWEN, "Qwen/Qwen2.5-0.5B", CERTAIN, "and its shapes"),
        ("/models/Qwen2.5-0.5B", QWEN, "Qwen/Qwen2.5-0.5B", LIKELY, "local path"),
        ("C:\\models\\gpt2", GPT2, "openai-community/gpt2", LIKELY, "local path"),
        ("Qwen/Qwen2.5-7B", QWEN, "Qwen/Qwen2.5-7B", LIKELY, "hidden size is 3584"),
        ("unsloth/Qwen2.5-7B-bnb-4bit", QWEN, "Qwen/Qwen2.5-7B", GUESS, "hidden size is 3584"),
        ("gpt2", (("h.12.attn.c_attn", 2304, 768),), "openai-community/gpt2", LIKELY, "12 layers"),
        ("/models/gpt2-xl", GPT2, "openai-community/gpt2", GUESS, "shapes of openai"),
        ("/models/Qwen2.5-7B", QWEN, None, GUESS, "shapes of Qwen/Qwen2-0.5B, Qwen"),
        # No name.
        (None, GPT2, "openai-community/gpt2", GUESS, "base_model_name_or_path is empty"),
        ("", (("bert.encoder.layer.5.attention.self.query", 384, 384),),
         "sentence-transformers/all-MiniLM-L6-v2", GUESS, "is empty"),
        (None, (("layers.0.q", 8, 8),), None, Confidence.UNKNOWN, "is empty"),
        ("/x/y", (), None, Confidence.UNKNOWN, "'/x/y', no Hub id"),
    ],
)  # fmt: skip
def test_shapes(
    stated: str | None, modules: Any, name: str | None, confidence: Confidence, why: str
) -> None:
    found = identify(info(stated, *modules))
    assert (found.name, found.confidence) == (name, confidence)
    assert why in found.reason


@pytest.mark.parametrize(
    ("folder", "name", "confidence"),
    [
        ("day21-track3-finetuning-llms__r8", "Qwen/Qwen2.5-0.5B-Instruct", CERTAIN),
        ("domain-skeleton-gpt2__legal", "openai-community/gpt2", CERTAIN),
        ("llms-from-groundup__lora-adapters", "distilbert/distilgpt2", CERTAIN),
        ("smart-review-ai__lora-adapter", "openai-community/gpt2", CERTAIN),
        ("sift-opf-zh", "openai/privacy-filter", CERTAIN),
        ("mlx-cli__0000200", "Qwen/Qwen2.5-0.5B-Instruct", GUESS),
        ("is-the-mountain-out__train-checkpoints", None, Confidence.UNKNOWN),
        ("sam-lora__lora-weights-lora-rank4", None, Confidence.UNKNOWN),
    ],
)
def test_real_adapters(
    shared_adapters: Path, folder: str, name: str | None, confidence: Confidence
) -> None:
    found = identify(formats.inspect(shared_adapters / folder))
    assert (found.name, found.confidence) == (name, confidence)


# --- merging ---


def adapters(*stated: str | None, modules: Any = QWEN) -> list[Adapter]:
    origin = Origin(Source.FOLDER, Path("/x"))
    return [Adapter(f"a{i}", origin, info(name, *modules)) for i, name in enumerate(stated)]


def test_a_base_in_several_names() -> None:
    warnings: list[str] = []
    names = ("Qwen/Qwen2.5-0.5B", "unsloth/Qwen2.5-0.5B-bnb-4bit", "/models/Qwen2.5-0.5B")
    assert common_base(adapters(*names), None, warnings) == "Qwen/Qwen2.5-0.5B"
    (warning,) = warnings
    assert warning.startswith("a2: its base model is taken to be Qwen/Qwen2.5-0.5B: the local path")


def test_a_name_that_all_state_stays() -> None:
    warnings: list[str] = []
    twin = "unsloth/Qwen2.5-0.5B-bnb-4bit"
    assert common_base(adapters(twin, twin), None, warnings) == twin
    assert (
        common_base(adapters("acme/foo-GPTQ", "acme/foo-GPTQ"), None, warnings) == "acme/foo-GPTQ"
    )
    assert common_base(adapters("gpt2", modules=GPT2), None, warnings) == "openai-community/gpt2"
    assert warnings == []


def test_different_bases_are_refused() -> None:
    with pytest.raises(IncompatibleError, match=r"'a1' is for Qwen/Qwen2.5-0.5B-Instruct"):
        common_base(adapters("Qwen/Qwen2.5-0.5B", "unsloth/Qwen2.5-0.5B-Instruct"), None, [])


@pytest.mark.parametrize(
    ("stated", "hint"),
    [("/x/y", "--base owner/name"), ("/x/gpt2", "--base openai-community/gpt2")],
)
def test_an_unsure_base_is_asked_for(stated: str, hint: str) -> None:
    both = adapters("openai-community/gpt2", stated, modules=())
    with pytest.raises(IncompatibleError, match=r"unknown for 'a1' \(") as caught:
        common_base(both, None, [])
    assert caught.value.hint is not None
    assert caught.value.hint.endswith(hint)
    warnings: list[str] = []
    assert common_base(both, "gpt2", warnings) == "gpt2"
    assert warnings == []
    assert common_base(both, "acme/other", warnings) == "acme/other"
    assert "the sources name openai-community/gpt2" in warnings[0]
    with pytest.raises(InvalidRecipeError, match="not a Hub id"):
        common_base(both, "/x/y", [])


# --- the user's aliases ---


def test_an_alias_names_the_base_of_old_and_new_adapters(tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path / "home")
    with workspace:
        modules = {"model.layers.0.q": (8, 8, 2)}
        for i, base in enumerate(("/srv/Base", "/SRV/base", "other/base")):
            folder = write_adapter(tmp_path / f"a{i}", modules, seed=i, base=base)
            workspace.pull([str(folder)])
        assert workspace.add_base_alias(" /srv/base", "acme/base") == 2
        folder = write_adapter(tmp_path / "a3", modules, seed=3, base="/srv/base")
        workspace.pull([str(folder)])
        bases = {b.base: (b.adapters, set(b.stated)) for b in workspace.bases()}
        assert bases == {
            "acme/base": (3, {"/srv/Base", "/SRV/base", "/srv/base"}),
            "other/base": (1, set()),
        }
        for where in ("acme/base", "/srv/base"):
            found = workspace.adapters(AdapterFilter(base=where))
            assert [a.name for a in found] == ["a0", "a1", "a3"]
        assert {a.name for a in workspace.search("acme")} == {"a0", "a1", "a3"}
        one = workspace.get("a0")
        assert one.base is not None
        assert (one.base.confidence, one.base.reason) == (
            CERTAIN,
            "you said that /srv/Base means it",
        )
        assert common_base([one, workspace.get("a3")], None, []) == "acme/base"
        report = workspace.base_report("/srv/base")
        assert (report.aliases, report.adapters) == (("/srv/base",), 3)
        assert workspace.remove_base_alias("/srv/BASE") == 3
        assert workspace.search("acme") == []
        assert workspace.get("a3").base == identify(workspace.get("a3").info)


def test_aliases_that_mean_nothing(tmp_path: Path) -> None:
    with Workspace.open(tmp_path) as workspace:
        for name, base in (
            ("x", "no id"),
            ("x", "/a/b"),
            ("x", "owner"),
            ("", "a/b"),
            ("a/b", "a/b"),
        ):
            with pytest.raises(UsageError):
                workspace.add_base_alias(name, base)
        with pytest.raises(NotFoundError, match="'x' is not an alias"):
            workspace.remove_base_alias("x")
        workspace.add_base_alias("x", "a/b")
        workspace.add_base_alias("X", "c/d")
        assert [(a.alias, a.base) for a in workspace.catalog.aliases()] == [("X", "c/d")]


def test_reading_the_table_needs_no_torch(tmp_path: Path) -> None:
    from tests.test_store import finish, start

    body = (
        "from store import AdapterFilter\n"
        "catalog.count(AdapterFilter(base='gpt2')); catalog.meaning('/x/gpt2')\n"
        "say(json.dumps(sorted(m for m in sys.modules if '.' not in m)))"
    )
    Catalog.open(tmp_path / "catalog.db").close()
    loaded = set(json.loads(finish(start(body, tmp_path / "catalog.db"))[0]))
    assert not loaded & {"torch", "numpy", "rapidfuzz", "huggingface_hub"}
