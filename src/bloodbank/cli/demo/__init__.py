"""`bb demo`: a day of events through a real server, and the two questions asked of it."""
