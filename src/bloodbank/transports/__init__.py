"""Ways to carry events: the protocol in `base`, one backend a file beside it."""
