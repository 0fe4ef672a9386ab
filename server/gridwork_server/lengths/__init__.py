"""Models whose forward() depends on the length of the sequence: which calls do, and where the length counts."""
