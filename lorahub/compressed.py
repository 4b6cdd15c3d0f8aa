"""Loading a model that `lorahub compress` made, as an ordinary transformers model.

Needs the extra ``lorahub-kit[transformers]``. Only safetensors and JSON are read, and no code of
the folder's is run: an architecture that transformers itself does not have is refused.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lorahub.engine.compress import RECORD_NAME, RECORD_VERSION
from lorahub.engine.factored import LEFT, RIGHT
from lorahub.errors import IntegrityError, InvalidAdapterError, UsageError
from lorahub.formats import checkpoint
from lorahub.formats.safetensors import read_header

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class _Computed(Tensor):
    """A tensor made on the fly, whose data it is no use to change."""

    @property
    def data(self) -> Tensor:  # type: ignore[override]
        """Nothing: what asks for it would write to it."""
        raise UsageError(
            "the weight of a factored layer is computed from its factors and cannot be written to",
            hint="keep the adapter on top of the model instead of merging it, or merge it with "
            "`lorahub compress --with`",
        )


class LowRankLinear(nn.Linear):
    """A linear layer whose weight is ``weight_left @ weight_right``.

    It counts as ``nn.Linear``, so that PEFT puts adapters on it.

    Args:
        in_features: Size of its input.
        out_features: Size of its output.
        rank: Columns of ``weight_left``.
        bias: Whether it has one.
        transposed: Whether the product is (in_features, out_features), as transformers' Conv1D
            stores its weight, instead of (out_features, in_features).
    """

    def __init__(
        self, in_features: int, out_features: int, rank: int, *, bias: bool, transposed: bool
    ) -> None:
        nn.Module.__init__(self)  # nn.Linear's own would make a dense weight
        self.in_features, self.out_features = in_features, out_features
        self.transposed = transposed
        rows, columns = (in_features, out_features) if transposed else (out_features, in_features)
        self.weight_left = nn.Parameter(torch.empty(rows, rank))
        self.weight_right = nn.Parameter(torch.empty(rank, columns))
        self.register_parameter("bias", nn.Parameter(torch.empty(out_features)) if bias else None)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The dense weight (out_features, in_features), made anew at each call; read-only."""
        product = self.weight_left @ self.weight_right
        return (product.mT if self.transposed else product).as_subclass(_Computed)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - nn.Linear's name for it
        """Two thin products."""
        linear = nn.functional.linear
        if self.transposed:
            return linear(linear(input, self.weight_left.mT), self.weight_right.mT, self.bias)
        return linear(linear(input, self.weight_right), self.weight_left, self.bias)


def load(folder: str | Path) -> PreTrainedModel:
    """The model in ``folder``, in its stored dtype, on the CPU, in evaluation mode.

    An adapter that was kept goes on top with
    ``peft.PeftModel.from_pretrained(model, folder / "adapter")``.

    Raises:
        UsageError: transformers is not installed.
        InvalidAdapterError: The folder holds no compressed model, or a damaged one.
        IntegrityError: Its record is of a newer version.
    """
    try:
        import transformers
        from safetensors.torch import load_file
    except ImportError as error:
        raise UsageError(
            "loading a compressed model needs transformers",
            hint="pip install 'lorahub-kit[transformers]'",
        ) from error
    folder = Path(folder)
    tensors: dict[str, Tensor] = {}
    for path in _files(folder):
        read_header(path)
        tensors |= load_file(path)
    ranks = {
        name.removesuffix(f".weight{LEFT}"): tensor.shape[1]
        for name, tensor in tensors.items()
        if name.endswith(f".weight{LEFT}")
    }
    architecture = _architecture(transformers, folder)

    class Factored(architecture):  # type: ignore[misc, valid-type]
        """The architecture with its factored layers in place before weights are loaded."""

        def __init__(self, config: Any) -> None:  # noqa: ANN401 - any model's config
            super().__init__(config)
            for name, rank in ranks.items():
                _replace(self, name, rank)

    try:
        config = transformers.AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise InvalidAdapterError(
            f"{folder}: transformers cannot read its {checkpoint.CONFIG_NAME} ({error})"
        ) from error
    model, report = Factored.from_pretrained(
        None, config=config, state_dict=tensors, dtype="auto", output_loading_info=True
    )
    lost = [k for k in report["missing_keys"] if k.endswith((LEFT, RIGHT))]
    if lost:
        raise InvalidAdapterError(f"{folder}: factor '{lost[0]}' was not found")
    model.__class__ = architecture
    if (folder / "generation_config.json").is_file():
        model.generation_config = transformers.GenerationConfig.from_pretrained(
            folder, local_files_only=True
        )
    loaded: PreTrainedModel = model.eval()
    return loaded


def _files(folder: Path) -> list[Path]:
    path = folder / RECORD_NAME
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        version, names = body["version"], body["files"]
    except FileNotFoundError as error:
        raise InvalidAdapterError(
            f"{folder}: has no {RECORD_NAME}: it is not what `lorahub compress` wrote"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidAdapterError(f"{path}: is not readable ({error})") from error
    if version != RECORD_VERSION:
        raise IntegrityError(
            f"{path}: version {version} is not {RECORD_VERSION}", hint="upgrade lorahub to read it"
        )
    if not isinstance(names, list) or any(not _plain(n) for n in names):
        raise InvalidAdapterError(f"{path}: 'files' is no list of names in this folder")
    return [folder / name for name in names]


def _plain(name: object) -> bool:
    return isinstance(name, str) and Path(name).name == name


def _architecture(transformers: Any, folder: Path) -> type[PreTrainedModel]:  # noqa: ANN401
    """The class named in config.json, which must be transformers' own."""
    names = checkpoint.read_config(folder).get("architectures")
    name = names[0] if isinstance(names, list) and len(names) == 1 else None
    found = getattr(transformers, name, None) if isinstance(name, str) else None
    if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
        raise InvalidAdapterError(
            f"{folder / checkpoint.CONFIG_NAME}: transformers has no architecture '{name}'",
            hint="models that need code of their own cannot be loaded",
        )
    return found


def _replace(model: PreTrainedModel, name: str, rank: int) -> None:
    """Put a `LowRankLinear` in the place of a linear layer, by its name in the files."""
    from transformers.pytorch_utils import Conv1D

    prefix = f"{model.base_model_prefix}."
    for candidate in (name, prefix + name, name.removeprefix(prefix)):
        parent, _, leaf = candidate.rpartition(".")
        try:
            layer = model.get_submodule(candidate)
        except AttributeError:
            continue
        if isinstance(layer, nn.Linear | Conv1D):
            transposed = isinstance(layer, Conv1D)
            d_in, d_out = layer.weight.shape if transposed else layer.weight.shape[::-1]
            bias = layer.bias is not None
            new = LowRankLinear(d_in, d_out, rank, bias=bias, transposed=transposed)
            model.get_submodule(parent).register_module(leaf, new)
            return
    raise InvalidAdapterError(
        f"the architecture {type(model).__mro__[1].__name__} has no linear layer '{name}'",
        hint="transformers renames some layers when it loads them; such models cannot be loaded",
    )
