"""Tables of the terminal as HTML, for notebooks."""

import io
import json
from functools import singledispatch
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.text import Text

from lotr_tn._shown import shown
from lotr_tn.adapters.adapter import LoRAAdapter, LoTRAdapter
from lotr_tn.banks.bank import Bank
from lotr_tn.banks.making.conversion import BankConversion
from lotr_tn.conversion.outcome import Conversion
from lotr_tn.errors import printable
from lotr_tn.files.weights import file_size
from lotr_tn.inspection.analysis import Analysis
from lotr_tn.report.analysis import analysis_record
from lotr_tn.report.analysis_text import analysis_text
from lotr_tn.report.bank import adapter_record, adapter_table, bank_record, bank_text
from lotr_tn.report.records import conversion_record, inspection_record
from lotr_tn.report.text import group_table, inspection_text

PRE = '<pre style="line-height:1.3;font-family:monospace">{code}</pre>'


def html(thing: Any) -> str:
    """What a command would show of a result, as one element of HTML."""
    screen = Console(
        file=io.StringIO(), record=True, width=80, highlight=False, markup=False, emoji=False
    )
    screen.print(renderable(thing))
    return screen.export_html(code_format=PRE, inline_styles=True)


@singledispatch
def renderable(thing: Any) -> RenderableType:
    """What the terminal shows of a result."""
    return Text(printable(repr(thing)))


@renderable.register(LoRAAdapter)
@renderable.register(LoTRAdapter)
def _(adapter: LoRAAdapter | LoTRAdapter) -> RenderableType:
    record = inspection_record(adapter, "kind", adapter.nbytes)
    return inspection_text(shown(record), shown(json.loads(adapter.config_text)))


@renderable.register
def _(analysis: Analysis) -> RenderableType:
    return analysis_text(shown(analysis_record(analysis)), [], show_all=False)


@renderable.register
def _(conversion: Conversion) -> RenderableType:
    record = shown(conversion_record(conversion, Path(), (0, 0), 0.0))
    return Group(group_table(record), Text(printable(repr(conversion).splitlines()[0])))


@renderable.register
def _(conversion: BankConversion) -> RenderableType:
    adapters = [adapter_record(conversion.bank, name) for name in conversion.bank.names]
    table = adapter_table(shown(adapters), show_all=False)
    return Group(*table, Text(printable(repr(conversion).splitlines()[0])))


@renderable.register
def _(bank: Bank) -> RenderableType:
    path = bank.source
    size = bank.nbytes if path is None or not path.exists() else file_size(path)
    record = bank_record(bank, path or Path("bank in memory"), size)
    config = json.loads(bank.config_text(bank.names[0])) if bank.names else {}
    return bank_text(shown(record), shown(config), show_all=False)
