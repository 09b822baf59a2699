"""Load and save, whatever it is."""

from lotr_tn.doors.loading import load_adapter, load_stack, save_adapter, save_stack

__all__ = ["load_adapter", "load_stack", "save_adapter", "save_stack"]
