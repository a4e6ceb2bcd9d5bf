"""What a sampler predicts, and how to listen to it."""
