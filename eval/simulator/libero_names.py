"""Names and horizons of LIBERO's suites, readable without importing LIBERO."""

from __future__ import annotations

# Maximum length of an episode in steps (method of OpenVLA's and WorldVLA's LIBERO evaluation).
LIBERO_SUITES = {
    "libero_spatial": 220,
    "libero_object": 280,
    "libero_goal": 300,
    "libero_10": 520,
    "libero_90": 400,
}
