"""Zero-shot, few-shot, SFT and PPO side by side for small language models on language understanding."""

__version__ = "0.1.0"
