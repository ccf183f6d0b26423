"""What a person reads: HTML, Markdown, JUnit."""
