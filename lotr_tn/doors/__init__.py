"""Load and save, whatever it is."""

from lotr_tn.doors.loading import load_adapter, save_adapter

__all__ = ["load_adapter", "save_adapter"]
