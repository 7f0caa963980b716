"""Runs of a sweep as processes of their own: a queue, its display, and what Hydra calls `hydra/launcher=local`."""
