"""Coverage-guided fuzzing of what reads answers: `make fuzz`."""
