"""What evaluate.py calls: the defence of a run measured, written down and laid beside others."""
