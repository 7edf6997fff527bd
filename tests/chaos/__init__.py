"""Nothing accepted is lost: real processes under load, a seeded script of faults, and a verdict that compares sets."""
