"""The documentation site: Markdown pages, built by `make docs` with warnings as errors."""

project = "xpbayes"
author = "The xpbayes developers"
copyright = "2026, the xpbayes developers"
extensions = ["myst_parser"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "xpbayes"
html_copy_source = False
html_show_sourcelink = False
nitpicky = True
