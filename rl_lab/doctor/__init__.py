"""Probes with known answers: what is wrong with an environment or an agent, and what that does to learning."""
