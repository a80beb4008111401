"""Experiment scripts: command lines, presets, pictures and results."""
