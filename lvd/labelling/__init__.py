"""What people label a capture with: what is looked at first, what is suggested, the page, other tools."""
