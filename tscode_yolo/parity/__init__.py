"""Do exported files compute what PyTorch computes? ``command`` asks, ``worker`` measures in a process a format."""
