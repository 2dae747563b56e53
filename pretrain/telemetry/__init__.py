"""Meters and the places where numbers are written."""
