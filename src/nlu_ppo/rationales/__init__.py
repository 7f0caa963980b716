"""Analyses that argue for a label, written by a model: what is asked for, by whom, and where it is kept."""
