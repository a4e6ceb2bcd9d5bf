"""Latent Variable Defense: stop unsafe video generations while they are being denoised."""
