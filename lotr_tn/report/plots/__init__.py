"""One figure of an analysis, for a paper or a page; matplotlib is loaded when one is drawn."""

from lotr_tn.report.plots.saving import refuse_plot, save_plot

__all__ = ["refuse_plot", "save_plot"]
