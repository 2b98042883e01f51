"""Studies: many jobs, whoever launches them, and one folder that says what came of each."""
