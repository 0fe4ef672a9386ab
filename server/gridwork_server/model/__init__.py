"""What a model folder holds: its configuration, its code, its weights, and how they are loaded."""
