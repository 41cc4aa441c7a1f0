"""The look of a report: one column on a telephone, more where there is room; light, dark and on paper."""

from __future__ import annotations

# Okabe and Ito's colours, which people with any colour vision can distinguish; lighter ones in the dark.
_LIGHT = ("#0072b2", "#d55e00", "#009e73", "#b6589b", "#3f8fc4", "#a87400", "#6b6b6b", "#7a4fb5")
_DARK = ("#56b4e9", "#ff8c42", "#2fc99a", "#e39ac8", "#9cd3f5", "#f0c541", "#b8b8b8", "#b79af0")

_LIGHT_PAGE = "--paper:#fff;--ink:#1c1c1c;--pale:#5b5b5b;--rule:#dcdcdc;--card:#f5f6f7;color-scheme:light"
_DARK_PAGE = "--paper:#14171a;--ink:#e8e8e8;--pale:#a9adb2;--rule:#363b41;--card:#1e2327;color-scheme:dark"


def _colours(palette: tuple[str, ...]) -> str:
    return ";".join(f"--c{place}:{colour}" for place, colour in enumerate(palette))


def _classes() -> str:
    return "".join(
        f".line{place}{{stroke:var(--c{place})}}.fill{place}{{fill:var(--c{place})}}"
        f"svg.chart text.text{place}{{fill:var(--c{place});font-weight:600}}"
        for place in range(len(_LIGHT))
    )


STYLE = f"""
:root{{{_LIGHT_PAGE};{_colours(_LIGHT)}}}
@media screen and (prefers-color-scheme:dark){{:root{{{_DARK_PAGE};{_colours(_DARK)}}}}}
*{{box-sizing:border-box}}
html{{-webkit-text-size-adjust:100%}}
body{{margin:0 auto;max-width:70rem;padding:1rem;background:var(--paper);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;overflow-wrap:anywhere}}
h1{{font-size:1.6rem;line-height:1.2;margin:.5rem 0}}
h2{{font-size:1.25rem;margin:2.2rem 0 .6rem;border-bottom:1px solid var(--rule);padding-bottom:.2rem}}
h3{{font-size:1rem;margin:1.2rem 0 .4rem}}
p{{margin:.5rem 0;max-width:46rem}}
a{{color:var(--c0)}}
nav ul{{display:flex;flex-wrap:wrap;gap:.2rem 1rem;list-style:none;padding:0;margin:.6rem 0}}
.note{{border-left:3px solid var(--c5);padding:.3rem .7rem;background:var(--card)}}
.pale,figcaption{{color:var(--pale);font-size:.875rem}}
.scroll{{overflow-x:auto;margin:.6rem 0}}
table{{border-collapse:collapse;font-size:.9rem}}
th,td{{padding:.25rem .6rem;text-align:left;border-bottom:1px solid var(--rule);vertical-align:top}}
td{{overflow-wrap:normal}}
td+td:not(.number){{overflow-wrap:anywhere}}
th{{font-weight:600;white-space:nowrap}}
td.number,th.number{{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}}
th.number{{white-space:normal;overflow-wrap:normal}}
.charts{{display:grid;gap:1rem;grid-template-columns:repeat(auto-fit,minmax(min(100%,26rem),1fr));align-items:start}}
figure{{margin:0;break-inside:avoid;min-width:0}}
.charts>figure{{max-width:44rem;background:var(--card);padding:.7rem;border-radius:.4rem}}
svg.chart{{display:block;width:100%;height:auto;max-width:42rem}}
svg.chart text{{font-size:11.5px;fill:var(--ink)}}
svg.chart .tick{{fill:var(--pale)}}
.grid{{stroke:var(--rule);stroke-width:1}}
.axis{{stroke:var(--pale);stroke-width:1}}
.line{{fill:none;stroke-width:2;stroke-linejoin:round}}
.mark{{stroke:var(--card);stroke-width:1.5}}
{_classes()}
.legend{{display:flex;flex-wrap:wrap;gap:.1rem .9rem;list-style:none;margin:0 0 .3rem;padding:0;font-size:.85rem}}
.legend svg{{vertical-align:middle}}
.pictures{{display:grid;gap:.7rem;grid-template-columns:repeat(auto-fill,minmax(min(100%,10rem),1fr))}}
.row{{display:grid;gap:.5rem;grid-template-columns:repeat(auto-fit,minmax(min(100%,9.5rem),1fr));
max-width:calc(var(--columns)*24rem);margin:.4rem 0 1.2rem}}
.picture{{display:block;width:100%;height:auto;background:var(--card)}}
.picture rect{{fill:none;stroke-width:2;vector-effect:non-scaling-stroke}}
.picture rect.under{{stroke:#fff;stroke-width:4}}
.picture rect.right{{stroke:#0072b2}}
.picture rect.wrong{{stroke:#d55e00}}
.picture text.name{{font-weight:600;paint-order:stroke;stroke:#fff;stroke-width:.25em;stroke-linejoin:round}}
.picture text.right{{fill:#00527f}}
.picture text.wrong{{fill:#a34700}}
.picture image.cells{{image-rendering:pixelated}}
@media (max-width:40rem){{svg.chart text{{font-size:13.5px}}}}
.hidden{{position:absolute;width:0;height:0}}
details{{margin:.5rem 0}}
summary{{cursor:pointer;color:var(--c0)}}
pre{{overflow-x:auto;background:var(--card);padding:.7rem;font-size:.8rem;border-radius:.4rem;white-space:pre-wrap}}
code{{font-size:.875em}}
@media print{{body{{max-width:none;padding:0;font-size:11pt}}nav{{display:none}}h2{{break-after:avoid}}
tr,figure,.row{{break-inside:avoid}}.scroll{{overflow:visible}}
*{{-webkit-print-color-adjust:exact;print-color-adjust:exact}}}}
"""
