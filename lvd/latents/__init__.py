"""The capture on disk: x0 latents of many samples at every step, and how they were made."""
