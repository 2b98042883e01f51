"""Studies: many jobs, from any launcher, and one folder with the outcome of each."""
