"""What stands between a delivery and a handler: one file a step."""
