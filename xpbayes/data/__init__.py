"""Stars in memory and on disk: the table of spectra, the device batch, scratch files, rejected rows."""
