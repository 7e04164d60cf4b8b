"""The documentation site: Markdown pages and a notebook, built by `make docs` with warnings as errors."""

project = "xpbayes"
author = "The xpbayes developers"
copyright = "2026, the xpbayes developers"
extensions = ["myst_nb"]
nb_execution_mode = "off"  # what the notebook shows is stored in it: `make notebook`
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "xpbayes"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
nitpicky = True
