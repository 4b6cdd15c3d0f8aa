"""Packs: error at equal bytes against the baselines, and the time to encode and decode.

Over the adapters of `examples/`, and where `LORAHUB_SHARED` names a collection with a `quality`
folder, over the five of that testbed and three checkpoints of one run.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

from lorahub import formats
from lorahub.packing import PackInput, expand, pack

EXAMPLES = Path(__file__).parent.parent / "examples" / "adapters"
RATIOS = (4, 8, 16)


def main() -> None:
    """Print one line per adapter and ratio, and the collection's bytes."""
    folders = sorted(p for p in EXAMPLES.iterdir() if p.is_dir())
    shared = Path(os.environ.get("LORAHUB_SHARED", EXAMPLES / "none"))
    tasks = sorted((shared / "quality" / "public" / "adapters").glob("*_r8_s0"))
    with tempfile.TemporaryDirectory() as home:
        for name, group in (("examples", folders), ("testbed, r = 8", tasks)):
            if group:
                _single(name, group, Path(home))
        run = sorted((shared / "adapters").glob("day21-track3-finetuning-llms__r8*"))
        if run:
            _collection(run, Path(home))


def _input(folder: Path) -> PackInput:
    return PackInput(folder.name, folder, formats.inspect(folder))


def _single(name: str, folders: list[Path], home: Path) -> None:
    for ratio in RATIOS:
        errors: dict[str, float] = {}
        encode = decode = parameters = 0.0
        for folder in folders:
            source = _input(folder)
            start = time.process_time()
            info = pack([source], home / "a.mos", ratio=ratio, replace=True)
            encode += time.process_time() - start
            start = time.process_time()
            expand(info.path, source.name)
            decode += time.process_time() - start
            parameters += source.info.parameters / 1e6
            for c in info.members[0].table:
                errors[c.codec] = errors.get(c.codec, 0.0) + c.error / len(folders)
        print(
            f"{name}, x{ratio}: "
            + ", ".join(f"{k} {v:.4f}" for k, v in errors.items())
            + f"; encode {encode / parameters:.2f}, decode {decode / parameters:.2f} s per million"
        )


def _collection(folders: list[Path], home: Path) -> None:
    inputs = [_input(f) for f in folders]
    for error in (0.055, 0.21, 0.41):
        alone = [pack([i], home / "a.mos", error=error, replace=True) for i in inputs]
        start = time.process_time()
        info = pack(inputs, home / "a.mos", error=error, replace=True)
        seconds = time.process_time() - start
        whole = sum(a.bytes for a in alone)
        parameters = sum(i.info.parameters for i in inputs) / 1e6
        print(
            f"{len(inputs)} checkpoints, error {error}: {info.bytes} bytes, alone {whole}, "
            f"{1 - info.bytes / whole:.1%} fewer; encode {seconds / parameters:.2f} s per million"
        )


if __name__ == "__main__":
    main()
