"""Task metrics. A file here is one; its name is what the recipe says."""
