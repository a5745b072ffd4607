"""One self-contained HTML page: text, sortable tables and figures, in one file that asks nothing of a network.

    page = Page("Title", lead="The sentence a reader should leave with.")
    section = page.section("Learning curves", "What is drawn here.")
    section.table(Table(("gate", "accuracy"), [("se", Cell("88.4", sort=0.884))]))
    section.figures(Figure("Accuracy", data=[{"x": [1, 2], "y": [3, 4]}], layout={}))
    page.write("report.html")

The page follows the system's light or dark theme, prints in light, fits a phone, and works from the keyboard. All
text is escaped here; a content security policy with the hashes of the page's own scripts keeps everything else from
running or loading.

Figures are plain plotly dicts (plotly.js is inlined from the package, MIT licence) whose colours may be named: under
any key that ends in "color", ``"@1"`` to ``"@7"``, ``"@plain"``, ``"@ink"``, ``"@muted"``, ``"@grid"``, ``"@line"`` and
``"@paper"`` become the theme's colour, and ``"@1/0.2"`` the same at 20 % opacity. A legend button shows and hides the
traces whose ``legendgroup``, and the shapes and annotations whose ``name``, is its series' key.

Where what is drawn depends on what a reader chooses, the page has lists (``Section.choices``), a strip of buttons and
slots, and a script of its own that draws: see ``Live``.
"""

from __future__ import annotations

from excite.page.controls import Choice, Live, Meter, Option
from excite.page.document import Figure, Page, Section
from excite.page.series import Series, series_styles
from excite.page.tables import Cell, Row, Table
from excite.page.text import counted, figure_text, typeset

__all__ = [
    "Cell",
    "Choice",
    "Figure",
    "Live",
    "Meter",
    "Option",
    "Page",
    "Row",
    "Section",
    "Series",
    "Table",
    "counted",
    "figure_text",
    "series_styles",
    "typeset",
]
