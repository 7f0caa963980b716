"""The run folder is the truth; MLflow mirrors it and can be rebuilt from it."""
