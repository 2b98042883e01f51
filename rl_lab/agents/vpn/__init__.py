"""Value Prediction Networks (Oh, Singh and Lee, 2017; https://arxiv.org/abs/1707.03497), and their baselines."""
