"""A table as LaTeX, to be taken into a paper by `\\input`; it needs the package booktabs."""

from __future__ import annotations

from collections.abc import Sequence

from nlu_ppo.tables.sections import MISSING, Section, Table, sections

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "±": r"$\pm$",
    "-": "{-}",  # two in a row would become one dash
    "'": r"\textquotesingle{}",
    "`": r"\textasciigrave{}",
    # where a line ends, or a row of a table, these would be taken for an option
    "*": "{*}",
    "[": "{[}",
    "]": "{]}",
    ",": "{,}",
    "?": "{?}",
    "!": "{!}",
}


def to_latex(table: Table) -> str:
    """Every section as a `table*`, which goes over both columns of a page that has two."""
    parts = [
        "% Written by `python -m nlu_ppo.tables`: it will be written again, so edit a copy.",
        "% In the preamble: \\usepackage[T1]{fontenc} \\usepackage{booktabs,textcomp,graphicx}",
    ]
    parts += [_section(table.title, section) for section in sections(table)]
    return "\n\n".join(parts) + "\n"


def latex_text(text: str) -> str:
    """Text that LaTeX sets as it is. What plain pdfLaTeX has no letter for stands as its code, as in U+4E2D."""
    return "".join(map(_letter, " ".join(text.split())))


def _letter(letter: str) -> str:
    if letter in _SPECIAL:
        return _SPECIAL[letter]
    if letter.isascii() and letter.isprintable():
        return letter
    if "À" <= letter <= "ÿ" and letter not in "×÷":
        return letter
    return f"U+{ord(letter):04X}"


def _section(title: str, section: Section) -> str:
    body = []
    for index, row in enumerate(section.rows):
        body.append(
            _line([_cell(text, number) for text, (_, number) in zip(row, section.columns, strict=True)])
        )
        if index in section.ends:
            body.append(r"\midrule")
    notes = " ".join(map(latex_text, section.notes))
    return "\n".join(
        [
            r"\begin{table*}",
            r"\centering\small",
            rf"\caption{{{latex_text(f'{title}: {section.title}')}.{f' {notes}' if notes else ''}}}",
            # no wider than the page, whatever the number of columns
            r"\resizebox{\ifdim\width>\textwidth\textwidth\else\width\fi}{!}{%",
            rf"\begin{{tabular}}{{{''.join('r' if number else 'l' for _, number in section.columns)}}}",
            r"\toprule",
            _line([latex_text(header) for header, _ in section.columns]),
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}}",
            r"\end{table*}",
        ]
    )


def _cell(text: str, number: bool) -> str:
    if text == MISSING:
        return "--"
    if number and text.startswith("-"):
        return "$-$" + latex_text(text[1:])
    return latex_text(text)


def _line(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"
