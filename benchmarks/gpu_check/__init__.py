"""`make gpu-check`: is this project right and fast on this machine's GPU? One command, no network, no files.

It needs torch, transformers, PEFT, NumPy and rich, and nothing else of the project's own requirements
(docs/gpu.md). Without CUDA it runs at toy sizes, so that every line is tried; then its numbers mean nothing.
"""
