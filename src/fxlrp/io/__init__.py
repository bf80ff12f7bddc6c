"""What is read from disk, written to it, or printed: images, files that are whole, folders of one process, text."""
