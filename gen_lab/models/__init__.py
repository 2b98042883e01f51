"""The models, a file each: layers, objective, samples."""
