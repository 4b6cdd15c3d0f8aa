"""How far suggested merges are from the best in hindsight: every set of two to five tasks.

Run with `python -m benchmarks.suggest`; rewrites its section of docs/quality.md. Data and protocol
are those of `benchmarks.quality`; a set is evaluated on its own tasks. What was evaluated is kept
in benchmarks/data/suggest by the digest of its plan, so that a run can be cut short and taken up
again.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import torch

import lorahub
from benchmarks.further_tasks import Further, further_tasks
from benchmarks.quality import EQUAL
from benchmarks.suites.accuracy import DATA, ROOT, TASKS, base, correct, tasks
from lorahub.recipe import make_recipe

KEPT = ROOT / "benchmarks" / "data" / "suggest"
RANK = 8
CANDIDATES: Mapping[int | None, Sequence[str]] = {
    None: ("iso_c", "iso_cts", "tsv", "task_arithmetic"),
    8: ("flat", "task_arithmetic"),
}
MORE_FOR_TWO = ("tsv_iso", "ties", "cat")
SAME = (
    ("debsec_r4_s0", "debsec_r8_s0"),
    ("langid_r8_s0", "langid_r16_s0"),
    ("mansec_r4_s0", "mansec_r8_s0"),
)
FOR_SAME = ("average", "lego", "karcher", "iso_c", "tsv", "task_arithmetic")
HEADING = "\n## Suggested merges\n"

OUTCOME = """The regret is too large, as the best of noisy figures is; that without luck is too
small, since half of the texts choose worse than all of them would. What a bootstrap says of the
first one's bias puts the truth between the two.

For pairs `tsv_iso` is suggested, the mean of two merges, which was found on 27 of the pairs with
further tasks: a point better than `tsv`, the next best, on these, and no worse on the ten pairs of
the five tasks. A flat spectrum, which is half of it, is about a point better for two of the four
tasks that are about what a text is, and several points worse where one of the two is `bshift`
(swapped words). One figure of the factors tells these two cases apart, whether both adapters have
their energy in the same modules; it says nothing of the pairs with further tasks, and is not used.
Two runs of one task are not told from two tasks either: their cosines are about 0.2, as those of
some unlike adapters are."""

HALVES = 50
RESAMPLES = 400
GROUPS = 20

Set = tuple[str, ...]


def main() -> None:
    """Merge, evaluate, and write the section."""
    torch.set_num_threads(1)
    KEPT.mkdir(parents=True, exist_ok=True)
    reference = json.loads((DATA / "reference.json").read_text())["tasks"]
    single = {t: float(reference[t]["val"]["single"]) for t in TASKS}
    further = further_tasks()
    rows = []
    with tempfile.TemporaryDirectory() as home, lorahub.Workspace.open(Path(home)) as workspace:
        bench = _Bench(workspace, single, further)
        for size in range(2, len(EQUAL) + 1):
            for rank, names in CANDIDATES.items():
                # A result of at least all ranks together is not limited.
                if rank is None or rank < RANK * size:
                    sets = list(combinations(EQUAL, size))
                    names = (*names, *MORE_FOR_TWO) if size == 2 and rank is None else names
                    rows.append(_row(bench, f"{size} tasks", sets, rank, names))
                    print(rows[-1], flush=True)
        pairs = [pair for pair in combinations((*EQUAL, *further), 2) if _is_further(*pair)]
        for rank, names in CANDIDATES.items():
            names = (*names, *MORE_FOR_TWO) if rank is None else (*names, "tsv")
            rows.append(_row(bench, "2 with further tasks", pairs, rank, names))
            print(rows[-1], flush=True)
        rows.append(_row(bench, "2 runs of one task", SAME, None, FOR_SAME))
        print(rows[-1])
    _write(rows)


def _is_further(one: str, other: str) -> bool:
    """Whether a pair has a further task, and not one that has the labels of the other."""
    return other not in EQUAL and one.split("_")[0] != other.removesuffix("-groups")


class _Bench:
    """Scores of merges, evaluated when they are asked for the first time."""

    def __init__(
        self,
        workspace: lorahub.Workspace,
        single: Mapping[str, float],
        further: Mapping[str, Further],
    ) -> None:
        self._workspace = workspace
        self._further = further
        self._single = dict(single) | {name: one.single for name, one in further.items()}
        self._base = base()
        self._tasks = dict(tasks()) | {name: one.task for name, one in further.items()}

    def scores(self, adapters: Set, method: str, rank: int | None) -> np.ndarray:
        """(tasks, texts): whether a text is right, over the accuracy of its task's own adapter."""
        recipe = make_recipe(
            {
                "method": method,
                "parameters": {} if rank is None else {"rank": rank},
                "sources": [{"adapter": str(self._folder(name))} for name in adapters],
                "output": {"name": "case"},
            }
        )
        tasks = dict.fromkeys(name.split("_")[0] for name in adapters)
        path = KEPT / f"{self._workspace.plan(recipe).digest}.npz"
        if not path.is_file():
            folder = self._workspace.merge(recipe, force=True).adapter.origin.folder
            right = correct(self._base, folder, {t: self._tasks[t] for t in tasks})
            partial = path.with_suffix(".partial.npz")
            np.savez(partial, **right)
            partial.replace(path)
        with np.load(path) as right:
            texts = min(len(right[t]) for t in tasks)
            return np.array([right[t][:: len(right[t]) // texts] / self._single[t] for t in tasks])

    def _folder(self, name: str) -> Path:
        return self._further[name].folder if name in self._further else DATA / "adapters" / name


def _selected_regret(scores: np.ndarray) -> float:
    """Regret against the best of the methods as half of the texts tell it, on the other half.

    Both ways, over random halves: what is chosen is not scored on the texts that chose it.

    Args:
        scores: (methods, tasks, texts); the suggested method is the first.
    """
    generator = np.random.default_rng(0)
    _, tasks, texts = scores.shape
    half, regrets = texts // 2, []
    for _ in range(HALVES):
        order = generator.permuted(np.tile(np.arange(texts), (tasks, 1)), axis=1)
        mixed = np.take_along_axis(scores, order[None], 2)
        halves = mixed[:, :, :half].mean((1, 2)), mixed[:, :, half : 2 * half].mean((1, 2))
        for told, scored in (halves, halves[::-1]):
            regrets.append(scored[told.argmax()] - scored[0])
    return float(np.mean(regrets))


def _without_luck(scores: Sequence[np.ndarray]) -> tuple[float, float]:
    """`_selected_regret` over all sets, and its standard error: a jackknife over the texts."""
    found = np.mean([_selected_regret(one) for one in scores])
    texts = np.arange(scores[0].shape[2])
    left = [
        np.mean([_selected_regret(one[:, :, texts % GROUPS != group]) for one in scores])
        for group in range(GROUPS)
    ]
    return float(found), float(np.sqrt((GROUPS - 1) * np.var(left)))


def _corrected_regret(scores: Sequence[np.ndarray]) -> tuple[float, float]:
    """The mean regret less its bias, and its standard error: a bootstrap over the texts.

    The best of noisy means is too large by about as much as it grows when the texts are drawn
    again from themselves.
    """
    generator = np.random.default_rng(0)

    def again(one: np.ndarray) -> np.ndarray:
        places = generator.integers(0, one.shape[2], (1, *one.shape[1:]))
        return np.take_along_axis(one, places, 2)

    drawn = [np.mean([_regret(again(one)) for one in scores]) for _ in range(RESAMPLES)]
    found = np.mean([_regret(one) for one in scores])
    return float(2 * found - np.mean(drawn)), float(np.std(drawn))


def _regret(scores: np.ndarray) -> float:
    """How far the suggested method, the first, is from the best of (methods, tasks, texts)."""
    means = scores.mean((1, 2))
    return float(means.max() - means[0])


def _best_other(scores: np.ndarray) -> float:
    """The best mean of the methods that do not give what the suggested one, the first, does."""
    return max(float(one.mean()) for one in scores[1:] if not np.array_equal(one, scores[0]))


def _row(
    bench: _Bench, label: str, sets: Sequence[Set], rank: int | None, names: Sequence[str]
) -> str:
    scores = [np.array([bench.scores(s, name, rank) for name in ("auto", *names)]) for s in sets]
    means = np.array([one.mean((1, 2)) for one in scores])
    suggested, best = means[:, 0], means.max(1)
    norms = {name: means[:, 1 + i] for i, name in enumerate(names)}
    fair, error = _without_luck(scores)
    corrected, spread = _corrected_regret(scores)
    regret = 100 * np.array([_regret(one) for one in scores])
    behind = 100 * np.mean([_best_other(one) - one[0].mean() for one in scores])
    worst = int(regret.argmax())
    who = ", ".join(name.removesuffix("_r8_s0") for name in sets[worst])
    cells = [
        label,
        str(rank or "any"),
        str(len(sets)),
        f"{suggested.mean():.3f}",
        f"{best.mean():.3f}",
        f"{regret.mean():.1f}",
        f"{100 * corrected:+.1f} ± {100 * spread:.1f}",
        f"{behind:+.1f}",
        f"{100 * fair:+.1f} ± {100 * error:.1f}",
        f"{regret[worst]:.1f} ({who})" if regret[worst] > 0 else "0.0",
        ", ".join(
            f"{name} {values.mean():.3f}"
            for name, values in sorted(norms.items(), key=lambda item: -item[1].mean())
        ),
    ]
    return "| " + " | ".join(cells) + " |"


def _write(rows: Sequence[str]) -> None:
    path = ROOT / "docs" / "quality.md"
    text = path.read_text(encoding="utf-8").split(HEADING)[0]
    heads = ["set", "rank", "sets", "suggested", "best in hindsight", "regret",
             "regret without bias", "behind the best other", "regret without luck", "worst regret",
             "each method for all sets"]  # fmt: skip
    lines = "\n".join(rows)
    path.write_text(
        f"""{text}{HEADING}
`python -m benchmarks.suggest` makes this section: for every set of two to five of the tasks, the
merge that `lorahub suggest` chooses against the best of the named methods at their default scales,
as it turned out on the same 400 texts a task. Norms are means over the sets, regrets in points of
norm. The best in hindsight of several is above the best method even where all are equally good: it
also picks what is lucky (the norm of one pair has a standard error of about two points). The
regret without bias is less by what a bootstrap over the texts ({RESAMPLES} times) says that luck
adds, with the bootstrap's standard error. The best other one is that of the methods which are not
suggested: a suggestion may be ahead of it. The regret without luck chooses the best of the methods
for each set on a random half of the texts and scores it on the other, both ways, over {HALVES}
halves; its standard error is a jackknife over the texts. Methods that are not named were measured
on all five tasks only, above. The further tasks are seven on which nothing but `tsv_iso` was
chosen; their adapters are trained by the command, from the texts of the five, and each pair has at
least one of them (200 texts a task).

| {" | ".join(heads)} |
|{"---|" * len(heads)}
{lines}

{OUTCOME}
""",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
