"""An adapter on its base model, loaded by transformers and PEFT."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, wraps
from pathlib import Path
from typing import Any

from lorahub.errors import EvaluationError, LorahubError
from lorahub.suites import REFUSED

Spec = Mapping[str, Any]
"""A suite's `lorahub.suites.ModelSpec` as plain data, with a base."""

Score = Callable[[Spec, str], dict[str, float]]

_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", None: "auto"}


def refusing(figures: Score) -> Callable[[Spec, str], dict[str, Any]]:
    """``figures`` for another process, which gets the reason where there can be none."""

    @wraps(figures)
    def told(spec: Spec, folder: str) -> dict[str, Any]:
        try:
            return dict(figures(spec, folder))
        except LorahubError as error:
            return {REFUSED: [error.message, error.hint]}

    return told


@contextmanager
def adapted(spec: Spec, folder: str) -> Iterator[tuple[Any, Any]]:
    """The base model with the adapter of ``folder`` in it, for as long as the block lasts.

    The base model stays in memory for the next adapter. No code that comes with a model is run.

    Yields:
        The transformers model, in evaluation mode, and its tokenizer.

    Raises:
        EvaluationError: The base model cannot be loaded, or the adapter is not for it.
        InvalidRecipeError: No such device here.
    """
    try:
        from peft import PeftModel
    except ImportError as error:
        raise EvaluationError(
            f"loading an adapter needs PEFT ({error})",
            hint="pip install 'lorahub-kit[perplexity]'",
        ) from error
    base = spec["base"]
    model, tokenizer = _base(base, spec["dtype"], spec["device"])
    wrong = f"the adapter in '{folder}' cannot be loaded on '{base}'"
    hint = "give the 'base' that it was trained on in the suite"
    try:
        peft = PeftModel.from_pretrained(model, folder)
        keys = peft.load_adapter(folder, "default")
    except Exception as error:  # whatever PEFT finds wrong with it
        _base.cache_clear()  # it may have a part of the adapter in it
        raise EvaluationError(f"{wrong}: {_first_line(error)}", hint=hint) from error
    lost = [*keys.missing_keys, *keys.unexpected_keys]
    if lost:
        _base.cache_clear()
        raise EvaluationError(f"{wrong}: '{lost[0]}' is only in one of them", hint=hint)
    try:
        yield model.eval(), tokenizer
    finally:
        peft.unload()


@cache
def _base(base: str, dtype: str | None, device: str) -> tuple[Any, Any]:
    try:
        from transformers import (
            AutoConfig,
            AutoModelForCausalLM,
            AutoModelForSeq2SeqLM,
            AutoTokenizer,
        )
        from transformers.utils import logging
    except ImportError as error:
        raise EvaluationError(
            f"loading a model needs transformers ({error})",
            hint="pip install 'lorahub-kit[perplexity]'",
        ) from error
    from lorahub.engine.batches import pick_device

    logging.disable_progress_bar()
    place = pick_device(device)
    name, _, revision = (base, "", "") if Path(base).is_dir() else base.partition("@")
    options: dict[str, Any] = {"trust_remote_code": False}
    if revision:
        options["revision"] = revision
    try:
        config = AutoConfig.from_pretrained(name, **options)
        kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        tokenizer = AutoTokenizer.from_pretrained(name, **options)
        model: Any = kind.from_pretrained(name, dtype=_DTYPES[dtype], **options)
    except Exception as error:  # whatever transformers finds wrong with it
        raise EvaluationError(
            f"base model '{base}' cannot be loaded: {_first_line(error)}",
            hint="give the 'base' in the suite, as a folder or a Hub id; without a connection, "
            "only folders and what the Hub's cache holds can be loaded",
        ) from error
    return model.to(place).eval(), tokenizer


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).partition("\n")[0][:300]
