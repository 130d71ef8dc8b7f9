"""Readers of pictures and data sets, one per layout, and the transforms of each task."""
