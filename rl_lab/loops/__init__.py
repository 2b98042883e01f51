"""The loops: train, plan, crew, fit_q, train_sb3, and many seeds at once."""
