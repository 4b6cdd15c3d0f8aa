"""Perplexity of a causal language model on a text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorahub.errors import EvaluationError
from lorahub.evaluators.model import Spec, adapted, refusing

if TYPE_CHECKING:
    import torch

_MOST_WINDOW = 2048


def figures(spec: Spec, folder: str) -> dict[str, float]:
    """``perplexity``: the exponential of the mean negative log-likelihood of a token.

    Every token but the first is predicted once, from the tokens before it that share a window
    with it: the window moves on by the stride, and what is new in it is scored.

    Raises:
        EvaluationError: No text, a model that is no causal one, or a window that it cannot see.
    """
    text = _text(Path(spec["text"]))
    import torch

    with adapted(spec, folder) as (model, tokenizer), torch.inference_mode():
        if model.config.is_encoder_decoder:
            raise EvaluationError(
                f"base model '{spec['base']}' does not predict a text token by token",
                hint="perplexity needs a causal language model; use the tasks of a harness",
            )
        ids = torch.tensor(tokenizer(text, verbose=False).input_ids, device=model.device)
        if len(ids) < 2:
            raise EvaluationError(
                f"text '{spec['text']}' has {len(ids)} tokens", hint="give one of two or more"
            )
        window, stride = _steps(spec, model.config)
        total = torch.zeros((), dtype=torch.float64)
        scored = 1
        while scored < len(ids):
            first = max(0, scored - (window - stride))
            last = min(first + window, len(ids))
            total += _loss(model, ids[first:last], scored - first)
            scored = last
        return {"perplexity": float((total / (len(ids) - 1)).exp())}


score = refusing(figures)


def _loss(model: Any, ids: torch.Tensor, known: int) -> torch.Tensor:  # noqa: ANN401 - any model
    """Summed negative log-likelihood (nats) of the tokens from ``known`` on, each in its turn."""
    import torch

    logits = model(input_ids=ids[None], use_cache=False).logits[0, known - 1 : -1]
    loss = torch.nn.functional.cross_entropy(logits.float(), ids[known:], reduction="none")
    return loss.double().sum().cpu()


def _steps(spec: Spec, config: Any) -> tuple[int, int]:  # noqa: ANN401 - any model's
    """Window and stride, in tokens."""
    seen = getattr(config.get_text_config(), "max_position_embeddings", None)
    window = spec["window"] or min(seen or _MOST_WINDOW, _MOST_WINDOW)
    if seen is not None and window > seen:
        raise EvaluationError(
            f"a window of {window} tokens is more than '{spec['base']}' can see, {seen}",
            hint="give a smaller 'window' in the suite",
        )
    stride = spec["stride"] or window // 2
    if stride >= window:
        raise EvaluationError(
            f"a stride of {stride} tokens is not smaller than the window, {window}",
            hint="give a smaller 'stride' in the suite",
        )
    return window, stride


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationError(
            f"text '{path}' cannot be read ({error})", hint="correct 'text' in the suite"
        ) from error
