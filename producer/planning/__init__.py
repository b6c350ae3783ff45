"""What to fetch of a shop, when it was enough, and what that proves."""
