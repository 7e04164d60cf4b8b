"""The runs, one verb a file, each readable from top to bottom; they are the Python API (`xpbayes.train`, ...) as well.

Paths or objects go in; objects come out, and files too where an output is named.
"""
