"""Rules for arrays: which library, dtype and device an operation runs in.

The namespace `xp` is found once, at the public door, and handed down as a keyword. There is no
global backend. Storage dtypes are bfloat16, float16, float32 and float64; everything that is
reported is computed in float64.
"""

import math
import sys
from collections.abc import Iterator
from typing import Any, TypeAlias

import array_api_compat
import ml_dtypes
import numpy as np

from lotr_tn.errors import BackendError, FormatError, OptionError, meant

Array: TypeAlias = Any
"""An array of NumPy, torch, or another library of the array API standard."""

Namespace: TypeAlias = Any
"""A namespace of the array API standard, as `array_api_compat` returns it."""

STORAGE_DTYPES = ("bfloat16", "float16", "float32", "float64")
UNIT_ROUNDOFF = {"bfloat16": 2.0**-8, "float16": 2.0**-11, "float32": 2.0**-24, "float64": 2.0**-53}

FLOAT16_SMALLEST_NORMAL = 2.0**-14

LARGEST = {
    "bfloat16": float(ml_dtypes.finfo(ml_dtypes.bfloat16).max),
    "float16": 65504.0,
    "float32": float(np.finfo(np.float32).max),
    "float64": float(np.finfo(np.float64).max),
}
"""The largest number of each storage dtype."""

HALF_SUBNORMAL = {
    "bfloat16": 2.0**-134,
    "float16": 2.0**-25,
    "float32": 2.0**-150,
    "float64": float(np.finfo(np.float64).smallest_subnormal),
}
"""What rounding may lose of a number however small: half the smallest one (of float64, all of it).
"""

_EXPONENTS = {"bfloat16": (np.uint16, 0x7F80), "float16": (np.uint16, 0x7C00)}
"""The bits of half-precision exponents: they are all set in NaN and infinity only."""

_PLAIN = (np.ndarray, np.memmap)
"""NumPy's arrays; other subclasses, such as `np.matrix`, give `*`, `@` and slices a meaning of
their own."""

BLOCK_ELEMENTS = 2**18
"""Entries widened to float64 at a time: 2 MB."""


def dtype_name(x: Array) -> str:
    """The bare name of an array's dtype, the same for every library: `float32`, `bfloat16`."""
    key = type(x), x.dtype
    name = _DTYPE_NAMES.get(key)
    if name is None:
        name = _DTYPE_NAMES[key] = str(x.dtype).rsplit(".", maxsplit=1)[-1]
    return name


_DTYPE_NAMES: dict[tuple[type, Any], str] = {}
"""Names by type and dtype: making one takes as long as a small matrix product."""


def require_dtype(dtype: str, *others: str) -> None:
    """Refuse what is neither a storage dtype nor one of the other words, such as `auto`.

    Raises:
        OptionError: the one error of all functions that take a dtype.
    """
    if dtype not in (*others, *STORAGE_DTYPES):
        raise OptionError(
            f"dtype must be {''.join(f'{word} or ' for word in others)}one of "
            f"{', '.join(STORAGE_DTYPES)}; found {dtype!r:.60}{meant(dtype, STORAGE_DTYPES)}"
        )


def is_wide(x: Array) -> bool:
    """True where the entries are float64: factorisations then use orthogonal transformations."""
    return dtype_name(x) == "float64"


def namespace_of(**arrays: Array) -> Namespace:
    """The one array library of all arguments, given by name.

    Raises:
        BackendError: the arguments differ in library, dtype or device, or hold no real floats.
    """
    try:
        kinds = {(type(x), x.dtype, x.device, getattr(x, "layout", None)) for x in arrays.values()}
    except AttributeError:
        return _checked_namespace(arrays)
    found = _CHECKED.get(key := frozenset(kinds))
    if found is None:
        found = _CHECKED[key] = _checked_namespace(arrays)
    return found


_CHECKED: dict[frozenset[tuple[type, Any, Any, Any]], Namespace] = {}
"""Namespaces of the kinds of arrays that have been checked: a full check takes 30 µs."""


def _checked_namespace(arrays: dict[str, Array]) -> Namespace:
    for name, x in arrays.items():
        _require_plain(name, x)
    try:
        if not all(hasattr(x, "dtype") for x in arrays.values()):
            raise TypeError
        xp = _library(arrays)
    except TypeError:
        found = ", ".join(
            f"{k}: {type(v).__module__}.{type(v).__name__}" for k, v in arrays.items()
        )
        raise BackendError(
            "all arrays of one operation must come from one library (NumPy or torch); "
            f"found {found}"
        ) from None
    for what, of in (("dtype", dtype_name), ("device", device_name)):
        found = {name: of(x) for name, x in arrays.items()}
        if len(set(found.values())) > 1:
            listed = ", ".join(f"{name}: {value}" for name, value in found.items())
            raise BackendError(
                f"all arrays of one operation must have one {what}; found {listed}: convert them "
                "first"
            )
    for name, x in arrays.items():
        if dtype_name(x) not in STORAGE_DTYPES:
            raise BackendError(
                f"{name} has dtype {dtype_name(x)}; needed one of {', '.join(STORAGE_DTYPES)}"
            )
    return xp


def _require_plain(name: str, x: Array) -> None:
    """Refuse arrays that keep other than all their entries, or mean something else by them."""
    kind = f"{type(x).__module__.partition('.')[0]}.{type(x).__name__}"
    if isinstance(x, np.ndarray) and type(x) not in _PLAIN:
        raise BackendError(
            f"{name} is a {kind}, whose products or entries are not those of a plain array; pass "
            "np.asarray of it (of a masked array, what its filled() gives)"
        )
    layout = str(getattr(x, "layout", "torch.strided"))
    if layout != "torch.strided":
        raise BackendError(f"{name} has layout {layout}; needed a dense tensor: call to_dense()")


def _library(arrays: dict[str, Array]) -> Namespace:
    """The namespace of torch tensors without a cached function, which torch.compile warns of."""
    torch = sys.modules.get("torch")
    if torch is not None and all(isinstance(x, torch.Tensor) for x in arrays.values()):
        import array_api_compat.torch as compatible

        return compatible
    return array_api_compat.array_namespace(*arrays.values())


def device_name(x: Array) -> str:
    """The device that holds an array, as text: `cpu`, `cuda:0`."""
    return str(getattr(x, "device", "cpu"))  # scalars of NumPy 2.0 have none


def cast(x: Array, dtype: str, *, xp: Namespace) -> Array:
    """`x` in the storage dtype named; the array itself where it already has it."""
    if dtype_name(x) == dtype:
        return x
    if hasattr(xp, dtype):
        return xp.astype(x, getattr(xp, dtype))
    if array_api_compat.is_numpy_namespace(xp) and dtype == "bfloat16":
        return x.astype(ml_dtypes.bfloat16)
    raise BackendError(f"{xp.__name__} has no dtype {dtype}; choose float32 or float64")


def narrow(x: Array, dtype: str, *, xp: Namespace) -> Array:
    """`cast` for results that are stored: entries that it has no room for are refused.

    On devices other than the CPU only float16 is looked at, as one has to wait for the answer.

    Raises:
        FormatError: an entry is NaN, or larger than the largest number of the dtype.
    """
    if dtype_name(x) in ("float16", "bfloat16") and dtype in ("float32", "float64"):
        return cast(x, dtype, xp=xp)  # has room for all, and stays in a compiled graph
    with np.errstate(over="ignore"):
        stored = cast(x, dtype, xp=xp)
    if (dtype != "float16" and not on_host(x)) or is_finite(stored):
        return stored
    largest = float(xp.max(xp.abs(getattr(x, "detach", lambda: x)())))
    if not largest > LARGEST[dtype]:
        raise FormatError(
            "the result holds NaN: look for NaN and infinity in what it was computed from"
        )
    wider = "float64" if dtype == "float32" else "float32 or bfloat16"
    remedy = "scale the updates down" if dtype == "float64" else f"choose {wider}"
    raise FormatError(
        f"entries up to {largest:.3g} do not fit {dtype}, whose largest is "
        f"{LARGEST[dtype]:.6g}; {remedy}"
    )


def on_host(x: Array) -> bool:
    """Whether the entries can be looked at without waiting: on the CPU, and there at all."""
    return isinstance(x, np.ndarray) or "cpu" in device_name(x).lower()


def is_finite(x: Array) -> bool:
    """Whether no entry is NaN or infinite. No wider copy is made, so none can overflow."""
    if not isinstance(x, np.ndarray | np.generic):
        return bool(x.detach().isfinite().all()) if hasattr(x, "detach") else _is_finite_other(x)
    bits = _EXPONENTS.get(dtype_name(x))
    if bits is None:
        # a finite sum of squares says it without an array of answers; an infinite one says nothing
        whole = x.flags.forc and math.isfinite(np.vdot(flat := x.ravel(order="K"), flat))
        return whole or bool(np.isfinite(x).all())
    kind, exponent = bits
    return bool(((np.asarray(x).view(kind) & exponent) != exponent).all())


def _is_finite_other(x: Array) -> bool:
    xp = array_api_compat.array_namespace(x)
    return bool(xp.all(xp.isfinite(x)))


def float64(x: Array, *, xp: Namespace) -> Array:
    """`x` in float64, the precision of everything that is measured."""
    return cast(x, "float64", xp=xp)


def at_least_float32(x: Array, *, xp: Namespace) -> Array:
    """`x` in float32 where it is narrower: half precision stores, it does not compute."""
    return x if dtype_name(x) in ("float32", "float64") else cast(x, "float32", xp=xp)


def wants_gradient(*arrays: Array) -> bool:
    """Whether torch records operations on any of these arrays, to differentiate them later."""
    if not any(getattr(x, "requires_grad", False) for x in arrays):
        return False
    import torch

    return torch.is_grad_enabled()


def row_blocks(x: Array, elements: int = BLOCK_ELEMENTS) -> Iterator[slice]:
    """Slices over the rows of matrices (…, m, k), so that a block has about that many entries."""
    count = x.shape[-2]
    rows = max(128, elements // max(1, math.prod(x.shape) // max(1, count)))
    for start in range(0, count, rows):
        yield slice(start, min(start + rows, count))


def zeros(shape: tuple[int, ...], like: Array, *, xp: Namespace) -> Array:
    """Float64 zeros on the device of `like`."""
    return xp.zeros(shape, dtype=xp.float64, device=array_api_compat.device(like))


def identity(n: int, like: Array, *, xp: Namespace) -> Array:
    """The float64 identity of size n on the device of `like`."""
    return xp.eye(n, dtype=xp.float64, device=array_api_compat.device(like))


def to_numpy(x: Array) -> np.ndarray:
    """A host NumPy copy or view of an array of any supported library, bfloat16 included."""
    if isinstance(x, np.ndarray | np.generic):
        return np.asarray(x)
    if array_api_compat.is_torch_array(x):
        host = x.detach().cpu().contiguous()
        if dtype_name(host) == "bfloat16":
            import torch

            return host.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return host.numpy()
    return np.from_dlpack(x)


def from_numpy(x: np.ndarray, *, backend: str, device: str | None = None) -> Array:
    """A NumPy array moved to a backend, `numpy` or `torch`, and there to a device.

    Raises:
        BackendError: the backend is unknown or not installed, or has no such device.
    """
    if backend == "numpy":
        if device not in (None, "cpu"):
            raise BackendError(
                f"NumPy computes on the cpu, not on {device!r}; choose backend torch"
            )
        return x
    if backend != "torch":
        raise BackendError(f"unknown backend {backend!r}; needed numpy or torch")
    try:
        import torch
    except ImportError:
        raise BackendError(
            "backend torch needs PyTorch, which is not installed: pip install 'lotr-tn[torch]'"
        ) from None
    x = np.require(x, requirements=["C", "W"])  # torch shares memory, so it must own it
    if x.dtype == ml_dtypes.bfloat16:
        tensor = torch.from_numpy(x.view(np.int16)).view(torch.bfloat16)
    else:
        tensor = torch.from_numpy(x)
    try:
        return tensor.to(device or "cpu")
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise BackendError(f"torch cannot use device {device!r} here: {reason}") from None


def suits_float16(x: np.ndarray) -> bool:
    """Whether float16 keeps its precision on these entries: none too large, few too small.

    Below 2⁻¹⁴ its entries lose digits. That shows where the root of the mean square lies there.
    """
    wide = x.astype(np.float64)
    if not wide.any():
        return True
    typical = float(np.sqrt(np.mean(wide**2)))
    return typical >= FLOAT16_SMALLEST_NORMAL and float(np.abs(wide).max()) <= LARGEST["float16"]
