"""Reward models: pairs of a better and a worse completion, the model that tells them apart, and its losses."""
