"""Checks of results on disk against their manifest, their inputs, and float64."""
