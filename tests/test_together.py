"""Merges that are carried out together: what each would be alone, to the last bit and error."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorahub import formats
from lorahub.adapter import Adapter, Origin, Source
from lorahub.engine.plan import Plan, make_plan
from lorahub.engine.run import Run, run, run_all
from lorahub.engine.verify import Result, verify, verify_all
from lorahub.errors import InvalidAdapterError, InvalidRecipeError, LorahubError, ResourceError
from lorahub.events import Advanced
from lorahub.formats.safetensors import TensorFile
from lorahub.kernels import lowrank, stack
from lorahub.lockstep import Lockstep
from lorahub.merging import Merger
from lorahub.methods.registry import get, methods
from lorahub.recipe import make_recipe
from lorahub.record import Verification
from lorahub.workspace import Workspace
from tests.conftest import write_adapter

SHAPES = {f"layers.{i}.{p}_proj": (24, 40, 4) for i in range(2) for p in "qv"}
WEIGHTS = ([0.5, 0.7, 0.2], [1.0, -0.3, 0.9])


def load(folder: Path) -> Adapter:
    return Adapter(folder.name, Origin(Source.FOLDER, folder), formats.inspect(folder))


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[Adapter]:
    """Three adapters; at one module the B of the last is the first's, so that they depend."""
    folder = tmp_path_factory.mktemp("sources")
    made = [write_adapter(folder / f"a{i}", SHAPES, seed=i, dtype="bfloat16") for i in range(3)]
    key = "base_model.model.layers.1.q_proj.lora_B.weight"
    files = [f / "adapter_model.safetensors" for f in made]
    last = load_file(files[2])
    last[key] = load_file(files[0])[key]
    save_file(last, files[2])
    return [load(f) for f in made]


def together(plans: Sequence[Plan], folder: Path, **options: Any) -> list[Run | LorahubError]:
    folder.mkdir()
    return run_all(plans, [folder / str(i) for i in range(len(plans))], **options)


def checked(done: Run, path: Path) -> Result:
    """The result as `verify` takes it."""
    written = []
    by_name = {m.name: m for m in done.plan.modules}
    for m in done.modules:
        if m.rank:
            first = by_name[m.name].members[0].module
            written.append(type(first)(**{**fields_of(first), "rank": m.rank, "alpha": m.rank}))
    return Result(done.plan, path, written, {m.name: m.report for m in done.modules if m.report})


def fields_of(module: Any) -> dict[str, Any]:
    found = {name: getattr(module, name) for name in module.__dataclass_fields__}
    stem = f"base_model.model.{module.name}.lora_"
    return found | {"key_a": f"{stem}A.weight", "key_b": f"{stem}B.weight", "scaling": 1.0}


def every_plan(adapters: list[Adapter]) -> list[Plan]:
    """Every method that takes three adapters, with other weights, ranks, seeds and dtypes."""
    plans = []
    for i, method in enumerate(m for m in methods().values() if (m.most_adapters or 3) >= 3):
        for weights in WEIGHTS[: 1 if method.equal_weights else 2]:
            taken = method.schema.model_fields
            parameters = {"rank": 3 + i % 3} if "rank" in taken else {}
            budget = "rank 3" if method.allocation else None
            weighted = [1.0] * 3 if method.equal_weights else weights
            dtype = None if method.packed else ("F32", "BF16", "F16")[i % 3]
            plans.append(
                make_plan(
                    adapters, weighted, method, parameters, dtype=dtype, seed=i, budget=budget
                )
            )
    svd = get("svd")
    plans.append(make_plan(adapters, WEIGHTS[0], svd, {}, normalize=True, budget="rank 2"))
    plans.append(make_plan(adapters, WEIGHTS[1], get("ties"), {}, budget="rank 3"))
    plans.append(make_plan(adapters, WEIGHTS[1], svd, {"energy": 0.8}, scale=0.5))
    return plans


def test_no_bit_depends_on_what_is_merged_beside(adapters: list[Adapter], tmp_path: Path) -> None:
    """All methods in one group; verification finds the same figures, too."""
    plans = every_plan(adapters)
    assert len({p.layout for p in plans}) == 1
    found = together(plans, tmp_path / "all", workers=2)
    results = []
    for i, (plan, one) in enumerate(zip(plans, found, strict=True)):
        assert isinstance(one, Run), one
        path = tmp_path / f"alone-{i}"
        alone = run(plan, path, workers=1)
        assert path.read_bytes() == (tmp_path / "all" / str(i)).read_bytes(), plan.method.name
        assert alone == one
        results.append(checked(one, path))
    checks = verify_all(results, workers=2)
    for result, check in zip(results, checks, strict=True):
        assert isinstance(check, Verification)
        assert check.passed
        alone_check = verify(
            result.plan, result.weights_path, result.written, reports=result.reports, workers=1
        )
        assert alone_check == check, result.plan.method.name


def test_two_adapters_on_a_sphere(adapters: list[Adapter], tmp_path: Path) -> None:
    plans = [
        make_plan(adapters[:2], w, get(name), {"rank": 3})
        for name in ("slerp", "karcher", "svd")
        for w in ([0.2, 0.8], [0.5, 0.5])
    ]
    found = together(plans, tmp_path / "all")
    for i, plan in enumerate(plans):
        assert found[i] == run(plan, tmp_path / f"alone-{i}")
        alone = (tmp_path / f"alone-{i}").read_bytes()
        assert alone == (tmp_path / "all" / str(i)).read_bytes()


def test_nothing_is_read_or_factorised_twice(
    adapters: list[Adapter], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twenty weightings: reads, Gram matrices and Cholesky factors of one."""
    counts: dict[str, int] = {}

    def counted(owner: Any, name: str) -> None:
        whole = getattr(owner, name)

        def counting(*args: Any, **kwargs: Any) -> Any:
            counts[name] = counts.get(name, 0) + 1
            return whole(*args, **kwargs)

        monkeypatch.setattr(owner, name, counting)

    counted(TensorFile, "read_into")
    counted(stack, "gram")
    counted(lowrank, "_triangle")
    svd = get("svd")
    plans = [make_plan(adapters, [1, i, 2], svd, {"rank": 4}) for i in range(20)]
    together(plans[:1], tmp_path / "one")
    one = dict(counts)
    counts.clear()
    together(plans, tmp_path / "all")
    assert one["read_into"] == 2 * 3 * len(SHAPES)
    # The module whose columns depend needs float64 Gram matrices, once as well.
    assert counts == one


def test_each_fails_by_itself(adapters: list[Adapter], tmp_path: Path) -> None:
    svd = get("svd")
    plans = [
        make_plan(adapters, WEIGHTS[0], svd, {"rank": 4}),
        make_plan(adapters, WEIGHTS[0], svd, {"rank": 4}, scale=1e14, dtype="F16"),
        make_plan(adapters, WEIGHTS[0], svd, {"rank": 4}, budget=1),
        make_plan(adapters, WEIGHTS[1], svd, {"rank": 4}),
    ]
    (tmp_path / "all").mkdir()
    paths = [tmp_path / "all" / str(i) for i in range(3)] + [tmp_path / "nowhere" / "3"]
    found = run_all([*plans, plans[0]], [*paths[:3], tmp_path / "all" / "x", paths[3]])
    for i in (1, 2):
        with pytest.raises(InvalidRecipeError) as alone:
            run(plans[i], tmp_path / f"alone-{i}")
        assert str(found[i]) == str(alone.value)
        assert isinstance(found[i], InvalidRecipeError)
    assert "cannot be written" in str(found[4])
    run(plans[0], tmp_path / "alone")
    assert paths[0].read_bytes() == (tmp_path / "alone").read_bytes()
    assert isinstance(found[3], Run)


def test_what_all_fail_of_is_the_error_of_each(
    adapters: list[Adapter], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = write_adapter(tmp_path / "bad", SHAPES, seed=9)
    weights = load_file(bad / "adapter_model.safetensors")
    next(iter(weights.values()))[0, 0] = torch.nan
    save_file(weights, bad / "adapter_model.safetensors")
    plans = [make_plan([adapters[0], load(bad)], [1, i], get("svd"), {}) for i in range(3)]
    found = together(plans, tmp_path / "nan")
    assert all(isinstance(one, InvalidAdapterError) for one in found)
    assert all("NaN" in str(one) for one in found)
    # A method that is too large for the memory fails; the others are made one by one.
    svd = [make_plan(adapters, w, get("svd"), {"rank": 4}) for w in WEIGHTS]
    greedy = make_plan(adapters, WEIGHTS[0], get("cat"), {})

    def too_large(*args: Any, **kwargs: Any) -> Any:
        raise torch.OutOfMemoryError("no")

    object.__setattr__(greedy, "method", type(greedy.method)(**method_fields(greedy, too_large)))
    found = together([svd[0], greedy, svd[1]], tmp_path / "memory")
    assert isinstance(found[1], ResourceError)
    for i, plan in ((0, svd[0]), (2, svd[1])):
        run(plan, tmp_path / f"alone-{i}")
        alone = (tmp_path / f"alone-{i}").read_bytes()
        assert (tmp_path / "memory" / str(i)).read_bytes() == alone


def method_fields(plan: Plan, rule: Any) -> dict[str, Any]:
    method = plan.method
    return {n: getattr(method, n) for n in method.__dataclass_fields__} | {"rule": rule}


def test_weights_by_pattern_share_too(adapters: list[Adapter], tmp_path: Path) -> None:
    """Other values of the same patterns are one layout; other patterns are another."""
    svd = get("svd")

    def plan(**patterns: float) -> Plan:
        return make_plan(
            adapters, WEIGHTS[0], svd, {"rank": 3}, patterns=[patterns, {}, {}], dtype="BF16"
        )

    plans = [plan(q_proj=0.9), plan(q_proj=-2.0), plan(q_proj=0.1)]
    assert len({p.layout for p in plans}) == 1
    assert plan(v_proj=0.9).layout != plan().layout
    found = together(plans, tmp_path / "all")
    for i, one in enumerate(plans):
        assert found[i] == run(one, tmp_path / f"alone-{i}")
        alone = (tmp_path / f"alone-{i}").read_bytes()
        assert alone == (tmp_path / "all" / str(i)).read_bytes()


# --- the folders of results ---


@pytest.fixture
def workspace(home: Path, tmp_path: Path) -> Iterator[Workspace]:
    with Workspace.open() as opened:
        for seed, name in enumerate(("one", "two")):
            write_adapter(tmp_path / name, SHAPES, seed=seed)
            opened.pull([str(tmp_path / name)])
        yield opened


def recipe(name: str, weight: float, **body: Any) -> Any:
    sources = [{"adapter": "one", "weight": weight}, {"adapter": "two", "weight": 1 - weight}]
    return make_recipe({"method": "svd", "sources": sources, "output": {"name": name}} | body)


def test_folders_are_those_of_merges_alone(workspace: Workspace, tmp_path: Path) -> None:
    """Records, cards and recipes included; what fails its own bounds takes no other with it."""
    recipes = [
        recipe("a", 0.2, parameters={"rank": 3}),
        recipe("b", 0.5, parameters={"rank": 3}),
        recipe("tight", 0.5, parameters={"rank": 1}, verify={"truncation": 0.0}),
        recipe("packed", 0.5, pack=1.5),
    ]
    outcomes = {o.name: o for o in workspace.batch(recipes)}
    assert {n: o.error for n, o in outcomes.items() if o.error and n != "tight"} == {}
    assert outcomes["tight"].state == "failed"
    home = workspace.config.adapters
    assert {p.name for p in home.iterdir()} == {"a", "b", "packed"}
    with Workspace.open(tmp_path / "alone") as alone:
        alone.pull([str(tmp_path / name) for name in ("one", "two")])
        for one in (recipes[0], recipes[1], recipes[3]):
            merged = alone.merge(one)
            for file in merged.adapter.origin.folder.iterdir():
                assert file.read_bytes() == (home / merged.adapter.name / file.name).read_bytes()
            there = workspace.get(merged.adapter.name)
            assert there.info == merged.adapter.info
            assert there.info == formats.inspect(there.origin.folder)
    states = [r.state for r in workspace.catalog.runs()]
    assert sorted(states) == ["failed", "finished", "finished", "finished"]


@pytest.mark.parametrize("phase", ["merge", "verify"])
def test_an_interruption_leaves_nothing_of_any(workspace: Workspace, phase: str) -> None:
    recipes = [recipe(f"m{i}", i / 5) for i in range(4)]

    def interrupt(event: object) -> None:
        if isinstance(event, Advanced) and event.phase == phase and event.done == 2:
            raise KeyboardInterrupt

    merger = Merger(workspace.config, workspace.catalog)
    wanted = [(one, workspace.plan(one)) for one in recipes]
    with pytest.raises(KeyboardInterrupt):
        merger.merge_all(wanted, device="cpu", workers=1, force=False, listener=interrupt)
    assert list(workspace.config.adapters.iterdir()) == []
    assert [r.state for r in workspace.catalog.runs()] == ["interrupted"] * 4
    assert {o.state for o in workspace.batch(recipes)} == {"merged"}


def test_tasks_in_lockstep_end_each_in_its_own_way() -> None:
    ended: list[str] = []

    def task(name: str) -> Any:
        try:
            given = yield name
            if given == "bad":
                raise InvalidRecipeError("bad")
            yield given
        except LorahubError as error:
            return f"{name} took {error.message}"
        finally:
            ended.append(name)
        return name

    def immediate(error: LorahubError | None) -> Any:
        if error is not None:
            raise error
        return "at once"
        yield

    broken = InvalidRecipeError("broken")
    steps: Lockstep[Any, Any, Any] = Lockstep(
        [task("a"), immediate(None), task("b"), immediate(broken), task("c")]
    )
    with steps:
        steps.start()
        assert steps.waiting == {0: "a", 2: "b", 4: "c"}
        steps.step(0, "on")
        steps.step(2, "bad")
        steps.step(4, broken)
        assert steps.waiting == {0: "on"}
        steps.step(0, None)
    assert steps.outcomes == ["a", "at once", "b took bad", broken, "c took broken"]
    assert ended == ["b", "c", "a"]
