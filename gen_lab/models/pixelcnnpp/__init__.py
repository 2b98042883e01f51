"""PixelCNN++ (Salimans et al., 2017; https://arxiv.org/abs/1701.05517): the network, and its cache for sampling."""
