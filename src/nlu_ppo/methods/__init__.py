"""The ways to get a model to do a task: each takes a Setting and returns the Setting to evaluate."""
