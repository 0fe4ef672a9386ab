"""A conversation in a terminal: its history, its commands, the lines that are typed, and how answers are shown."""
