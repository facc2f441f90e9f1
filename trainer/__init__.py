"""One worker's life. The only folder that imports MindSpore."""
