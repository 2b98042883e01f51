"""Our worlds as Gymnasium environments."""
