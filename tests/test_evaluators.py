"""Suites on the base model: perplexity and lm-evaluation-harness against plain loops."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lorahub.errors import EvaluationError, LorahubError
from lorahub.evaluators import perplexity
from lorahub.evaluators.model import adapted
from lorahub.workspace import Workspace
from tests.conftest import write_adapter

WORDS = ("<s>", "<unk>", "the", "cat", "dog", "sat", "ran", "on", "mat", "log", "and", "a")
TEXT = "the cat sat on a mat and the dog ran on the log and a cat ran and the dog sat"
HIDDEN, LAYERS, WINDOW = 16, 2, 16
QUESTIONS = [
    {"question": "the cat", "choices": ["sat", "log"], "answer": 0},
    {"question": "a dog", "choices": ["mat on", "ran"], "answer": 1},
    {"question": "the", "choices": ["cat and dog", "on"], "answer": 0},
    {"question": "on the mat", "choices": ["and", "sat"], "answer": 1},
    {"question": "and a", "choices": ["log", "dog ran"], "answer": 0},
]
TASK = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: questions.jsonl}}}}
test_split: test
output_type: multiple_choice
doc_to_text: question
doc_to_choice: choices
doc_to_target: answer
target_delimiter: " "
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""

# PEFT asks transformers for names that are on their way out.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:transformers")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A seeded random model of a dozen words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("base") / "model"
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(WORDS), n_positions=WINDOW, n_embd=HIDDEN, n_layer=LAYERS, n_head=2,
        bos_token_id=0, eos_token_id=0, initializer_range=0.6,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="<s>", unk_token="<unk>"
    )
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def workspace(
    home: Path, tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Workspace]:
    """Two adapters of the model."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    with Workspace.open() as opened:
        for seed, name in enumerate(("one", "two")):
            modules = {
                f"transformer.h.{i}.attn.c_attn": (3 * HIDDEN, HIDDEN, 2) for i in range(LAYERS)
            }
            write_adapter(
                tmp_path / name, modules, seed=seed, alpha=8, base=str(base),
                config={"fan_in_fan_out": True, "task_type": "CAUSAL_LM"},
            )  # fmt: skip
            opened.pull([str(tmp_path / name)])
        (tmp_path / "held-out.txt").write_text(TEXT)
        yield opened


def suite(tmp_path: Path, kind: str, **body: Any) -> str:
    path = tmp_path / f"{kind}.yaml"
    path.write_text(json.dumps({kind: body}))
    return str(path)


def score(workspace: Workspace, chosen: str, name: str = "one") -> dict[str, float]:
    ((_, figures),) = workspace.evaluate([name], chosen)
    if isinstance(figures, LorahubError):
        raise figures
    return figures


def merged(base: Path, adapter: Path | None) -> Any:
    """The model in float64 with the deltas added to its weights by hand."""
    from transformers import GPT2LMHeadModel

    model = GPT2LMHeadModel.from_pretrained(base, dtype=torch.float64).eval()
    if adapter is not None:
        tensors = load_file(adapter / "adapter_model.safetensors")
        for i, layer in enumerate(model.transformer.h):
            stem = f"base_model.model.transformer.h.{i}.attn.c_attn.lora_"
            A, B = (tensors[f"{stem}{x}.weight"].double() for x in "AB")
            layer.attn.c_attn.weight.data += (4.0 * B @ A).T
    return model


def log_probabilities(model: Any, ids: list[int]) -> torch.Tensor:
    """Of every token but the first, given those before it."""
    with torch.inference_mode():
        logits = model(torch.tensor([ids])).logits[0, :-1]
    return logits.log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]


def ids_of(text: str) -> list[int]:
    return [WORDS.index(word) for word in text.split()]


def test_perplexity_is_that_of_each_token_in_its_window(
    workspace: Workspace, tmp_path: Path, base: Path
) -> None:
    chosen = suite(tmp_path, "perplexity", text="held-out.txt", window=8, stride=3)
    found = dict(workspace.evaluate(["one", "two", "one"], chosen))
    ids = ids_of(TEXT)
    for name in ("one", "two"):
        model = merged(base, tmp_path / name)
        losses = []
        for t in range(1, len(ids)):
            # The first window that has the token.
            start = 3 * max(0, -(-(t + 1 - 8) // 3))
            losses.append(-log_probabilities(model, ids[start : t + 1])[-1])
        expected = float(torch.stack(losses).mean().exp())
        assert found[name] == {"perplexity": pytest.approx(expected, rel=1e-5)}
    # Without an end it sees what the model can see.
    found = score(workspace, suite(tmp_path, "perplexity", text="held-out.txt", base=str(base)))
    losses = [-log_probabilities(merged(base, tmp_path / "one"), ids[:WINDOW])]
    losses.append(-log_probabilities(merged(base, tmp_path / "one"), ids[8:])[7:])
    assert found["perplexity"] == pytest.approx(float(torch.cat(losses).mean().exp()), rel=1e-5)


def test_tasks_of_the_harness(workspace: Workspace, tmp_path: Path, base: Path) -> None:
    (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, QUESTIONS)))
    for name in ("tiny_one", "tiny_two"):
        (tmp_path / f"{name}.yaml").write_text(TASK.format(name=name))
    chosen = suite(
        tmp_path, "harness", tasks=["tiny_one", "tiny_two"], include=".", batch_size=2, limit=4
    )
    found = dict(workspace.evaluate(["one", "two"], chosen))
    for name in ("one", "two"):
        model = merged(base, tmp_path / name)
        right = []
        for q in QUESTIONS[:4]:
            known = ids_of(q["question"])
            choices = [ids_of(choice) for choice in q["choices"]]
            sums = [float(log_probabilities(model, known + c)[-len(c) :].sum()) for c in choices]
            right.append(float(sums.index(max(sums)) == q["answer"]))
        mean = sum(right) / 4
        error = (sum((r - mean) ** 2 for r in right) / 3 / 4) ** 0.5
        assert found[name] == {
            f"{task}/{figure}": pytest.approx(value)
            for task in ("tiny_one", "tiny_two")
            for figure, value in (("acc", mean), ("acc_stderr", error))
        }
    (evaluation,) = workspace.evaluations(workspace.get("one"))
    assert (evaluation.suite, evaluation.figures) == ("harness", found["one"])


def test_a_process_that_refuses_says_why(workspace: Workspace, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError) as caught:
        score(workspace, suite(tmp_path, "perplexity", text="absent.txt"))
    assert str(caught.value).startswith("suite 'perplexity': text 'absent.txt' cannot be read")
    assert caught.value.hint == "correct 'text' in the suite"
    assert workspace.evaluations(workspace.get("one")) == ()


def refused(tmp_path: Path, adapter: str, **body: Any) -> EvaluationError:
    """Why there is no perplexity, without a process."""
    defaults = {"dtype": None, "device": "cpu", "window": None, "stride": None}
    spec = defaults | {"text": str(tmp_path / "held-out.txt")} | body
    with pytest.raises(LorahubError) as caught:
        perplexity.figures(spec, str(tmp_path / adapter))
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"base": "./nothing"}, "base model './nothing' cannot be loaded"),
        ({"base": "nobody/nothing"}, "base model 'nobody/nothing' cannot be loaded"),
        ({"text": "one-word.txt"}, "has 1 tokens"),
        ({"window": 2 * WINDOW}, f"32 tokens is more than .* can see, {WINDOW}"),
        ({"stride": WINDOW}, "stride of 16 tokens is not smaller than the window, 16"),
        ({"device": "nonsense"}, "device 'nonsense' is not available"),
    ],
)
def test_what_perplexity_needs(
    workspace: Workspace,
    tmp_path: Path,
    base: Path,
    monkeypatch: pytest.MonkeyPatch,
    body: dict[str, Any],
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one-word.txt").write_text("cat")
    assert re.search(says, str(refused(tmp_path, "one", **{"base": str(base)} | body)))


def test_an_adapter_of_another_model_is_refused(
    workspace: Workspace, tmp_path: Path, base: Path
) -> None:
    spec = {"base": str(base), "dtype": None, "device": "cpu"}
    modules = {"transformer.h.7.attn.c_attn": (3 * HIDDEN, HIDDEN, 2)}
    write_adapter(tmp_path / "other", modules, config={"target_modules": ["c_attn"]})
    for _ in range(2):
        # What the next one is loaded on has nothing of it.
        with adapted(spec, str(tmp_path / "one")) as (model, _):
            weights = merged(base, tmp_path / "one")
            found = log_probabilities(model, ids_of(TEXT)[:WINDOW]).double()
            expected = log_probabilities(weights, ids_of(TEXT)[:WINDOW])
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        assert re.search(
            "cannot be loaded on .* is only in one of them",
            str(refused(tmp_path, "other", base=str(base))),
        )


def test_a_base_that_nobody_knows_has_to_be_given(workspace: Workspace, tmp_path: Path) -> None:
    modules = {"transformer.h.0.attn.c_attn": (3 * HIDDEN, HIDDEN, 2)}
    write_adapter(tmp_path / "lost", modules, base="/gone/model")
    workspace.pull([str(tmp_path / "lost")])
    chosen = suite(tmp_path, "perplexity", text="held-out.txt")
    with pytest.raises(EvaluationError, match="base model of 'lost' is not known") as caught:
        score(workspace, chosen, "lost")
    assert "lorahub base alias" in str(caught.value.hint)


def test_no_code_of_a_model_is_run(tmp_path: Path, base: Path) -> None:
    folder = shutil.copytree(base, tmp_path / "hostile")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "strange", "auto_map": {"AutoConfig": "code.Config"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Config: pass\n")
    (tmp_path / "held-out.txt").write_text(TEXT)
    assert "cannot be loaded" in str(refused(tmp_path, "one", base=str(folder)))
    assert not (tmp_path / "ran").exists()
