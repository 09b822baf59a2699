"""Decompositions: stacks in, compressed formats out."""

from lotr_tn.decompose.tucker import hooi, hosvd, st_hosvd

__all__ = ["hooi", "hosvd", "st_hosvd"]
