"""Re-crawls that start by themselves."""
