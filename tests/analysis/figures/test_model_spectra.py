import numpy as np
from matplotlib.text import Text
from numpy.testing import assert_allclose

from xpbayes.analysis.figures import spectra as model_spectra
from xpbayes.analysis.figures.spectra import giant_branch_teff, hydrogen_lines, main_sequence_logg, over_continuum
from xpbayes.runs.predict import predict_flux


def test_tracks_are_those_of_eqs_28_and_29():
    assert_allclose(main_sequence_logg(np.array([4.0, 5.0, 5.5, 6.2, 6.3, 9.0])), [4.6, 4.6, 4.35, 4.0, 3.95, 3.95])
    assert_allclose(giant_branch_teff(np.array([1.65, 3.65, 4.15])), [4.31628, 5.2, 5.9])


def test_hydrogen_lines_are_where_the_sun_has_them():
    """Vacuum wavelengths of H-alpha, H-beta and Paschen 12, NIST."""
    assert_allclose(hydrogen_lines(2, range(3, 5)), [656.461, 486.269], atol=0.02)
    assert_allclose(hydrogen_lines(3, range(12, 13)), [875.286], atol=0.02)


def test_a_smooth_continuum_vanishes_and_a_line_stays():
    wavelength = np.arange(392.0, 993.0, 10.0)
    x = (wavelength - 692) / 300
    smooth = np.exp(1 + 2 * x - x**2 + 0.5 * x**5)
    line = 1 - 0.3 * np.exp(-0.5 * ((wavelength - 652) / 8) ** 2)
    flat, dipped = over_continuum(wavelength, np.stack([smooth, smooth * line]))
    assert_allclose(flat, 1.0, atol=1e-10)
    assert 0.7 < dipped[26] < 0.8 and np.abs(np.delete(dipped, range(22, 31)) - 1).max() < 0.05
    assert_allclose(over_continuum(wavelength, 7 * smooth[None] * line), dipped[None])  # whatever the unit


def test_spectra_are_those_of_predict_flux(trained):
    for line in (model_spectra.MAIN_SEQUENCE_LINE, model_spectra.METALLICITY_LINE, model_spectra.GIANT_LINE):
        spectra = model_spectra.sequence(trained, line)
        at = len(line.value) // 2
        teff, feh, logg = spectra.labels[at]
        other = predict_flux(trained, teff=1e3 * teff, feh=feh, logg=logg)
        assert_allclose(spectra.flux[at], other.flux, rtol=1e-4)
        assert bool(spectra.likely[at]) == (not other.unlikely)
    assert_allclose(model_spectra.sequence(trained, model_spectra.METALLICITY_LINE).labels[:, 0], 5.5)


def test_extrapolations_are_dotted(trained):
    spectra = model_spectra.sequence(trained, model_spectra.MAIN_SEQUENCE_LINE)
    assert not spectra.likely[-1]  # no star of 11,000 K was in training
    left, right = model_spectra.draw_sequence(spectra).axes[:2]
    assert right.lines[len(spectra.likely) - 1].get_linestyle() == ":"
    assert [text.get_text() for text in left.get_legend().get_texts()] == ["as in training", "extrapolation"]


def test_names_of_lines_do_not_collide(trained):
    figure = model_spectra.draw_sequence(model_spectra.sequence(trained, model_spectra.MAIN_SEQUENCE_LINE))
    figure.draw_without_rendering()
    names = figure.axes[1].texts
    assert {"Ca II H, K", "Hδ", "Ca I", "Hγ", "Ca II triplet", "H Paschen"} <= {name.get_text() for name in names}
    boxes = sorted((Text.get_window_extent(name) for name in names), key=lambda box: box.x0)
    assert all(a.x1 < b.x0 for a, b in zip(boxes[:-1], boxes[1:], strict=True))
    axis = figure.axes[1].get_window_extent()
    assert all(axis.x0 <= box.x0 and box.x1 <= axis.x1 + 1 and box.y1 <= axis.y1 + 1 for box in boxes)
