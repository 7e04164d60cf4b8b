"""A naive three-dimensional dust map from a catalogue's (E, parallax): ZGR23 Section 5.4, Figs. 20 and 21.

`build.build_dust_map` does everything, read it first; `healpix_map.DustMap` is what comes out and what answers queries,
`curve_map.CurveMap` the same of the extinction curve.
"""
