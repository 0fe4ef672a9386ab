"""What the black-box tests share: a real launcher, an HTTP client, tiny models and their reference answers."""
