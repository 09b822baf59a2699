"""What other packages need to keep many adapters: bytes on disk, and each adapter's true error.

Two packages are measured where they are installed, and a row says so where they are not. Neither
is a dependency of this project: `pip install vlora-dev lorashare`. Both are used as they document:
compress the folders jointly with k components, save, load again, and export every adapter to a
PEFT folder. The error of an adapter is that of its updates, ‖ΔW' - ΔW‖ / ‖ΔW‖ over all modules,
with ΔW = (alpha / r) B A read from the exported folder by its own config.

An export by vlora has alpha = r whatever the adapters had, so that every update is off by a
constant factor: `worst` and `mean` are measured with that mended, in its favour, and
`worst_exported` and `mean_exported` as the files are. It drops heads. The other, lorashare, keeps
alpha and heads.

    python -m benchmarks.bank_peers FOLDER FOLDER ...
"""

import importlib.util
import json
import math
import tempfile
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from safetensors.numpy import load_file

from benchmarks.measure import report

__all__ = [
    "PEERS",
    "Point",
    "adapter_errors",
    "bytes_for_error",
    "curve_to_error",
    "error_at_bytes",
    "installed",
    "lorashare_sizes_and_errors",
    "numbers_of_updates",
    "run",
    "vlora_sizes_and_errors",
]

WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True)
class Point:
    """One setting of a package on one set of adapters.

    Attributes:
        k: components kept.
        bytes_stored: of all files that the package wrote, heads and metadata included.
        bytes_of_numbers: 4 for each number that stands for updates, without heads and metadata.
        worst: largest relative error of an adapter, with the package's scale mended.
        mean: mean relative error of the adapters, likewise.
        worst_exported: largest relative error of the exported folders as they are.
        mean_exported: their mean.
    """

    k: int
    bytes_stored: int
    bytes_of_numbers: int
    worst: float
    mean: float
    worst_exported: float
    mean_exported: float


def installed(peer: str) -> bool:
    """Whether a package can be imported: `vlora` or `lorashare`."""
    return importlib.util.find_spec(peer) is not None


def vlora_sizes_and_errors(folders: Sequence[Path], ks: Iterable[int]) -> list[Point]:
    """Measure `SharedSubspace.from_adapters(adapters, num_components=k)` of vlora at each k.

    Its basis is one of whole factors, flattened: k and a mean of size r·n and r·m for each module,
    and k loadings an adapter. All adapters are held in memory, twice.

    Args:
        folders: PEFT folders of one base, rank and list of modules.
        ks: numbers of components, below the number of adapters to any purpose.
    """
    from vlora import SharedSubspace, load_adapter  # pyright: ignore[reportMissingImports]
    from vlora.io import save_adapter  # pyright: ignore[reportMissingImports]

    adapters = [load_adapter(folder) for folder in folders]
    names = _names(folders)

    def store(k: int, target: Path) -> None:
        SharedSubspace.from_adapters(adapters, task_ids=names, num_components=k).save(target)

    def export(stored: Path, target: Path) -> None:
        subspace = SharedSubspace.load(stored)
        for name in names:
            save_adapter(subspace.reconstruct(name), target / name)

    return [_measured(folders, k, store, export) for k in ks]


def lorashare_sizes_and_errors(folders: Sequence[Path], ks: Iterable[int]) -> list[Point]:
    """Measure `SHAREModel.from_adapters(folders, num_components=k)` of lorashare at each k.

    Its bases are of columns, k directions of size n and m for each module, with loadings (k, r) an
    adapter for either factor. It centres the columns before it finds the basis, but not before it
    projects, and stores no mean.

    Args:
        folders: PEFT folders of one base, rank and list of modules.
        ks: numbers of components, at most adapters x rank to any purpose.

    Cost: an eigendecomposition of an n x n and an m x m matrix for each module, at every k.
    """
    from lorashare import SHAREModel  # pyright: ignore[reportMissingImports]

    paths = dict(zip(_names(folders), map(str, folders), strict=True))

    def store(k: int, target: Path) -> None:
        SHAREModel.from_adapters(paths, num_components=k).save_pretrained(target)

    def export(stored: Path, target: Path) -> None:
        model = SHAREModel.from_pretrained(stored)
        for name in paths:
            model.reconstruct(name, output_dir=target / name)

    return [_measured(folders, k, store, export) for k in ks]


PEERS: dict[str, Callable[[Sequence[Path], Iterable[int]], list[Point]]] = {
    "vlora": vlora_sizes_and_errors,
    "lorashare": lorashare_sizes_and_errors,
}
"""Each package by the name it is imported by."""


def curve_to_error(peer: str, folders: Sequence[Path], largest: float) -> list[Point]:
    """Points of a package on both sides of an error, found by halving: the fewest k that meets it.

    Args:
        peer: a name in `PEERS`.
        folders: PEFT folders of one base, rank and list of modules.
        largest: relative error allowed to the worst adapter, its scale mended.

    Returns:
        Every point tried, by k. The first that meets the error follows one that does not, as long
        as errors fall with k; none meets it if the package's largest k does not.
    """
    low, high = 0, _most_components(peer, folders)
    found: dict[int, Point] = {}

    def meets(k: int) -> bool:
        found[k] = PEERS[peer](folders, [k])[0]
        return found[k].worst <= largest

    if meets(high):
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if meets(middle) else (middle, high)
    return [found[k] for k in sorted(found)]


def _most_components(peer: str, folders: Sequence[Path]) -> int:
    """With so many components a package could hold these adapters without loss."""
    if peer == "vlora":
        return max(1, len(folders) - 1)  # beside the mean
    factors = _factors(folders[0]).values()
    sides = [size for b, a in factors for size in (b.shape[0], a.shape[1])]
    return min(len(folders) * max(a.shape[0] for _, a in factors), *sides)


def bytes_for_error(curve: Iterable[Point], largest: float, *, stored: bool = True) -> int | None:
    """The fewest bytes with which every adapter lies within an error; None where no point does.

    Args:
        curve: points of one package.
        largest: relative error allowed to the worst adapter, its scale mended.
        stored: count the files' bytes; else 4 for each number that stands for updates.
    """
    return min(
        (_bytes(point, stored) for point in curve if point.worst <= largest),
        default=None,
    )


def error_at_bytes(curve: Iterable[Point], room: int, *, stored: bool = True) -> float | None:
    """The worst adapter's smallest error in so many bytes; None where nothing fits.

    Args:
        curve: points of one package.
        room: bytes.
        stored: as for `bytes_for_error`.
    """
    return min((point.worst for point in curve if _bytes(point, stored) <= room), default=None)


def adapter_errors(before: Path, after: Path, *, mended: bool = False) -> float:
    """‖ΔW' - ΔW‖ / ‖ΔW‖ over all modules of two PEFT folders, in float64 from the factors.

    Args:
        before: the reference.
        after: an adapter of the same modules.
        mended: take the scale alpha / r of `before` for both.

    Raises:
        ValueError: they do not update the same modules.

    Cost: O((m + n)·r²) flops a module, and errors under 1e-8 are seen as about 1e-8.
    """
    ours, theirs = _factors(before), _factors(after)
    if set(ours) != set(theirs):
        raise ValueError(f"{after} must update the {len(ours)} modules of {before}")
    scale = _scale(before)
    other = scale if mended else _scale(after)
    lost = norm = 0.0
    for name, (b, a) in ours.items():
        b_after, a_after = theirs[name]
        up = np.concatenate([scale * b, -other * b_after], axis=1)
        down = np.concatenate([a, a_after])
        lost += float(np.sum((up.T @ up) * (down @ down.T)))
        norm += scale**2 * float(np.sum((b.T @ b) * (a @ a.T)))
    return math.sqrt(max(lost, 0.0) / norm) if norm else float(lost > 0)


def numbers_of_updates(folders: Iterable[Path]) -> int:
    """How many numbers the factors of PEFT folders hold, heads left out."""
    return sum(b.size + a.size for folder in folders for b, a in _factors(folder).values())


def run(
    folders: Sequence[Path], ks: Sequence[int] = (), largest: float = 0.05
) -> dict[str, list[Point]]:
    """Measure every package, print a table, and write `bank-peers.json`.

    Args:
        folders: PEFT folders of one base, rank and list of modules.
        ks: components, for every package; without them the fewest that meet the error are sought.
        largest: relative error allowed to the worst adapter.
    """
    whole, numbers = sum(map(_size_of, folders)), 4 * numbers_of_updates(folders)
    curves: dict[str, list[Point]] = {}
    for peer, measure in PEERS.items():
        if not installed(peer):
            curves[peer] = []
        else:
            curves[peer] = measure(folders, ks) if ks else curve_to_error(peer, folders, largest)
    rows = []
    for peer, curve in curves.items():
        rows.extend(_row(f"{peer}, k = {point.k}", point, whole, numbers) for point in curve)
        fewest = bytes_for_error(curve, largest)
        if not installed(peer):
            rows.append([peer, "not installed", *[""] * 6])
        elif fewest is None:
            rows.append([f"{peer}, all within {largest:g}", "at no k", *[""] * 6])
        else:
            share = f"{fewest / whole:.3f}"
            rows.append(
                [f"{peer}, all within {largest:g}", f"{fewest / 1e6:.2f}", share, *[""] * 5]
            )
    record = {"adapters": len(folders), "bytes": whole, "bytes_of_numbers": numbers}
    report(
        "bank-peers",
        f"{len(folders)} adapters, {whole / 1e6:.1f} MB. Bytes stored as a share of it; numbers as "
        "a share of the factors'; relative errors of ΔW with the scale mended, and as exported",
        ["Package", "MB", "Share", "Numbers", "Worst", "Mean", "Worst exp.", "Mean exp."],
        rows,
        record | {"curves": {peer: [vars(p) for p in curve] for peer, curve in curves.items()}},
    )
    return curves


def _row(name: str, point: Point, whole: int, numbers: int) -> list[str]:
    errors = point.worst, point.mean, point.worst_exported, point.mean_exported
    return [
        name,
        f"{point.bytes_stored / 1e6:.2f}",
        f"{point.bytes_stored / whole:.3f}",
        f"{point.bytes_of_numbers / numbers:.3f}",
        *(f"{error:.4f}" for error in errors),
    ]


def _measured(
    folders: Sequence[Path],
    k: int,
    store: Callable[[int, Path], None],
    export: Callable[[Path, Path], None],
) -> Point:
    """Store, weigh, export from what was stored, and compare every adapter with its folder."""
    with tempfile.TemporaryDirectory() as place, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stored, exported = Path(place) / "stored", Path(place) / "exported"
        store(k, stored)
        export(stored, exported)
        pairs = [
            (folder, exported / name) for folder, name in zip(folders, _names(folders), strict=True)
        ]
        mended = [adapter_errors(*pair, mended=True) for pair in pairs]
        as_is = [adapter_errors(*pair) for pair in pairs]
        return Point(
            k,
            _size_of(stored),
            4 * _numbers_stored(stored),
            max(mended),
            float(np.mean(mended)),
            max(as_is),
            float(np.mean(as_is)),
        )


def _names(folders: Sequence[Path]) -> list[str]:
    """Names that no two adapters share."""
    return [f"{i:04d}-{folder.name}" for i, folder in enumerate(folders)]


def _bytes(point: Point, stored: bool) -> int:
    return point.bytes_stored if stored else point.bytes_of_numbers


def _size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _numbers_stored(folder: Path) -> int:
    """Entries of all tensors but the heads, which lorashare keeps in files of their own."""
    files = [f for f in folder.rglob("*.safetensors") if f.name != "classifier_head.safetensors"]
    return sum(x.size for file in files for x in load_file(file).values())


def _scale(folder: Path) -> float:
    config: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text())
    rank = config["r"]
    return float(config["lora_alpha"]) / (rank**0.5 if config.get("use_rslora") else rank)


def _factors(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """B (m, r) and A (r, n) of each module, float64."""
    tensors = load_file(folder / WEIGHTS)
    found = {}
    for key, a in tensors.items():
        name, _, rest = key.partition(".lora_A.")
        if rest:
            b = tensors[f"{name}.lora_B.{rest}"]
            found[name] = b.astype(np.float64), a.astype(np.float64)
    return found


def main(
    folders: Annotated[list[Path], typer.Argument(help="PEFT folders of one base.", exists=True)],
    k: Annotated[list[int] | None, typer.Option("-k", help="Components; may be repeated.")] = None,
    error: Annotated[float, typer.Option(help="Allowed to the worst adapter.")] = 0.05,
) -> None:
    """Bytes and errors of other packages that store many adapters together."""
    run(folders, k or (), error)


if __name__ == "__main__":
    typer.run(main)
