"""The models, one file each: layers, objective, samples."""
