"""For tests of the page of plots: made-up descriptions, and the panels that are drawn of them."""

from longeval.rope.base import Geometry
from longeval.rope.plot.figure import make_figure

SMALL = Geometry(head_dim=16, theta=10000.0, native_length=64, factor=4.0)
WAVELENGTHS = [6.4, 20.3, 90.7, 700.0]


def description(name, *, scale=1.0, native=64, factor=4.0, **changes):
    """A description with numbers of its own in every key; as rounded if its name says so."""
    rounded = name.startswith("resonance")
    wavelengths = [scale * wavelength for wavelength in WAVELENGTHS]
    shown = [round(wavelength) for wavelength in wavelengths] if rounded else wavelengths
    gaps = [0.0 if rounded else 0.012 * scale, 0.0 if rounded else 0.034 * scale, 1.5, 0.25 * scale]
    return {
        "name": name,
        "head_dim": 2 * len(shown),
        "theta": 10000.0,
        "native_length": native,
        "factor": factor,
        "length": round(factor * native),
        "wavelengths": shown,
        "rounding_errors": [after / before - 1 for after, before in zip(shown, wavelengths, strict=True)],
        "periods": shown if rounded else None,
        "turns": [1] * len(shown) if rounded else None,
        "interpolation": [1.0, 1.3 * scale, 2.7 * scale, 4.0],
        "feature_gaps": gaps,
        "pre_critical": sum(wavelength <= native for wavelength in wavelengths),
        "unique_positions": "120" if rounded else None,
        "feature_gap": max(gaps[:2]),
        "decay": {"distances": [0, 1, 5, 40, 255], "mean_cos": [1.0, 0.9 * scale, 0.5, 0.2, -0.3]},
        "precision": [
            {"positions": 131072, "float32_product": 0.003 * scale, "bfloat16_inv_freq": 1.8, "longeval": 2.5e-8},
            {"positions": 1048576, "float32_product": 0.043 * scale, "bfloat16_inv_freq": 1.9, "longeval": 2.9e-8},
        ],
    } | changes


def panels(*descriptions):
    """The axes by panel: 1, 2, 3, 4 (unrounded), 5, 6, and "4b" (rounded)."""
    return dict(zip((1, 2, 3, 4, "4b", 5, 6), make_figure(descriptions).axes, strict=True))


def headline(axes):
    return axes.get_title(loc="left").replace("\n", " ")
