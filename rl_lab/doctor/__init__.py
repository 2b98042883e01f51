"""Probes of known answer: what is wrong with an environment or an agent, and what that does to learning."""
