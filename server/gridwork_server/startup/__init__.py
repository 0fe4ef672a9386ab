"""What makes a start fast: imports that are put off, and what is known of them beforehand."""
