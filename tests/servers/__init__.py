"""Real servers for tests: private processes on free ports with data folders of their own."""
