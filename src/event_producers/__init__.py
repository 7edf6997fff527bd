"""The import paths of version 2; everything lives in `bloodbank`."""
