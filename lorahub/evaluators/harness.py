"""Tasks of lm-evaluation-harness."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from lorahub.errors import EvaluationError
from lorahub.evaluators.model import Spec, adapted, refusing
from lorahub.wording import did_you_mean


def figures(spec: Spec, folder: str) -> dict[str, float]:
    """Figures by ``task/metric``, with ``task/metric_stderr`` where there is a standard error.

    A filter of the harness follows behind a comma: ``gsm8k/exact_match,strict-match``.

    Raises:
        EvaluationError: The harness is missing, or has no such task.
    """
    try:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
    except ImportError as error:
        raise EvaluationError(
            f"the suite needs lm-evaluation-harness ({error})",
            hint="pip install 'lorahub-kit[harness]'",
        ) from error
    manager = _manager(spec)
    size = spec["batch_size"]
    with adapted(spec, folder) as (model, tokenizer):
        found = simple_evaluate(
            model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=size),
            tasks=list(spec["tasks"]),
            num_fewshot=spec["num_fewshot"],
            limit=spec["limit"],
            task_manager=manager,
            log_samples=False,
        )
    assert found is not None  # it is None only in the other processes of several
    return dict(_named(found["results"]))


score = refusing(figures)


def _manager(spec: Spec) -> Any:  # noqa: ANN401 - the harness has no types
    """The harness's task manager. The thousands of its own tasks are read only when needed."""
    from lm_eval.tasks import TaskManager

    wanted, include = spec["tasks"], spec["include"]
    if include is not None:
        local = TaskManager(include_path=include, include_defaults=False)
        if all(task in local.all_tasks for task in wanted):
            return local
    manager = TaskManager(include_path=include)
    for task in wanted:
        if task not in manager.all_tasks:
            raise EvaluationError(
                f"there is no task '{task}'{did_you_mean(task, manager.all_tasks)}",
                hint="correct 'tasks' in the suite, or name the folder of yours with 'include'",
            )
    return manager


def _named(results: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, float]]:
    for task, found in results.items():
        for key, value in found.items():
            metric, _, chosen = key.partition(",")
            number = isinstance(value, int | float) and not isinstance(value, bool)
            # Not every metric has a standard error, and the harness has names for that.
            if not chosen or not number or (metric.endswith("_stderr") and math.isnan(value)):
                continue
            yield f"{task}/{metric}" + ("" if chosen == "none" else f",{chosen}"), float(value)
