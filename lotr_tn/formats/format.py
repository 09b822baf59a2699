"""What formats beyond the core ones inherit."""

from dataclasses import Field
from typing import Any, ClassVar

from lotr_tn.formats.operators import Operators


class Format(Operators):
    """A format of a package's, or a person's, own: the base class of its record.

    The record is a frozen dataclass that holds and checks arrays, `@final` and without mathematics;
    fields annotated `Array` (or `Array | None`, or `tuple[Array, ...]`) are what it stores. A field
    `certificate: Certificate | None = None`, where it has one, is dropped by whatever changes the
    arrays. `lotr_tn.ops.register_format` opens the algebra to it.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]
