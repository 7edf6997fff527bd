"""Places that keep the index of causes: the protocol in `base`, one backend a file beside it."""
